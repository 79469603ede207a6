"""Grids of samples that show how a training run is getting on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from composer_jax.conditions import by_name
from composer_jax.diffusion.resolution import to_float
from composer_jax.images import Picture
from composer_jax.sampling.cascade import Denoising
from composer_jax.sampling.guidance import Branch, Wish
from composer_jax.seeds import generator
from composer_jax.sharding.mesh import make_mesh
from composer_jax.training.stages import Diffusion
from composer_jax.training.step import TrainState, abstract_state


class GridSampler:
  """Recomposes a few held-out images with the averaged weights.

  A row an image: the original, all conditions together, then each alone.

  Args:
    stage: of the run.
    records: held-out records, as the data set gives them.
  """

  def __init__(self, stage: Diffusion, records: Sequence[dict[str, Any]]):
    config = stage.config
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
    mesh = make_mesh(config.mesh)
    graph, shapes = abstract_state(stage, config, mesh)
    self._denoising = Denoising(config, stage.condition_shapes, graph, shapes.ema, mesh)

  def __call__(self, state: TrainState, step: int) -> np.ndarray:
    """Draws the grid: uint8 (rows * S, columns * S, 3)."""
    config, names = self._denoising.config.unet, list(self._stored)
    self._denoising.weights = state.ema
    size = config.image_size
    keys = jax.vmap(jax.random.key)(jnp.arange(len(self._images)))
    low_res = None
    if config.low_res_size:
      low_res = to_float(jnp.asarray(self._images), config.low_res_size)
    original = np.asarray(to_float(jnp.asarray(self._images), size))
    columns = [original]
    for wanted in (names, *([name] for name in names)):
      kept = {name: np.full(len(keys), name in wanted) for name in names}
      wish = Wish((Branch(self._stored, kept),), np.ones((1, len(keys)), np.float32))
      made = self._denoising(wish, keys, low_res)
      columns.append(multihost_utils.process_allgather(made, tiled=True))
    grid = np.stack(columns, axis=1)
    rows, count = grid.shape[:2]
    grid = grid.transpose(0, 2, 1, 3, 4).reshape(rows * size, count * size, 3)
    return np.round((np.clip(grid, -1, 1) + 1) * 127.5).astype(np.uint8)
