"""Grids of samples that show how a training run is getting on."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from composer_jax.conditions import by_name
from composer_jax.images import Picture
from composer_jax.sampling.cascade import sample_stage
from composer_jax.seeds import generator
from composer_jax.training.stages import Diffusion, to_float
from composer_jax.training.step import TrainState, initial_state


class GridSampler:
  """Recomposes a few held-out images with the averaged weights.

  A row an image: the original, all conditions together, then each alone.

  Args:
    stage: of the run.
    records: held-out records, as the data set gives them.
  """

  def __init__(self, stage: Diffusion, records: Sequence[dict[str, Any]]):
    config = stage.config
    self._config = config
    self._images = np.stack([record['image'] for record in records])
    chosen = by_name(config.unet.conditions)
    self._stored = {
      c.name: np.stack(
        [
          record[c.name]
          if c.stored
          else c.extract(Picture(record['image']), generator(row, c.name))
          for row, record in enumerate(records)
        ]
      )
      for c in chosen
    }
    graphs = []
    jax.eval_shape(lambda: graphs.append(initial_state(stage, config)[0]))
    self._sample = jax.jit(
      functools.partial(sample_stage, config, graphs[0]), static_argnames='steps'
    )

  def __call__(self, state: TrainState, step: int) -> np.ndarray:
    """Draws the grid: uint8 (rows * S, columns * S, 3)."""
    config, names = self._config, list(self._stored)
    size = config.unet.image_size
    keys = jax.vmap(jax.random.key)(jnp.arange(len(self._images)))
    low_res = None
    if config.unet.low_res_size:
      low_res = to_float(jnp.asarray(self._images), config.unet.low_res_size)
    original = np.asarray(to_float(jnp.asarray(self._images), size))
    columns = [original]
    for wanted in (names, *([name] for name in names)):
      kept = {name: np.full(len(keys), name in wanted) for name in names}
      columns.append(
        np.asarray(
          self._sample(
            state.ema,
            self._stored,
            kept,
            keys,
            low_res,
            config.sample.guidance,
            config.sample.eta,
            steps=config.sample.steps,
          )
        )
      )
    grid = np.stack(columns, axis=1)
    rows, count = grid.shape[:2]
    grid = grid.transpose(0, 2, 1, 3, 4).reshape(rows * size, count * size, 3)
    return np.round((np.clip(grid, -1, 1) + 1) * 127.5).astype(np.uint8)
