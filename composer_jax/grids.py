"""Grids of samples that show how a training run is getting on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils

from composer_jax.conditions import by_name
from composer_jax.diffusion.resolution import to_float, to_uint8
from composer_jax.images import Picture
from composer_jax.sampling.cascade import Denoising
from composer_jax.sampling.guidance import Branch, Wish
from composer_jax.seeds import generator
from composer_jax.sharding.mesh import make_mesh
from composer_jax.training.stages import Diffusion
from composer_jax.training.step import TrainState, abstract_state

BATCH = 32
"""Images of one call of the compiled program, at most."""


class StageSampler:
  """Composes with the weights that a stage has at some step.

  Args:
    stage: of the run.
  """

  def __init__(self, stage: Diffusion):
    config = stage.config
    mesh = make_mesh(config.mesh)
    graph, shapes = abstract_state(stage, config, mesh)
    self.config = config.unet
    self._denoising = Denoising(config, stage.condition_shapes, graph, shapes.ema, mesh)

  def __call__(
    self,
    weights: nnx.State,
    originals: np.ndarray,
    stored: Mapping[str, np.ndarray],
    kept: Mapping[str, np.ndarray],
    seeds: np.ndarray,
  ) -> np.ndarray:
    """Composes images, in all processes of a job alike.

    Args:
      weights: of the stage.
      originals: uint8 (B, S, S, 3), from which an upsampler starts.
      stored: each condition that the stage knows, (B, *shape).
      kept: by name, bool (B,).
      seeds: integers (B,).

    Returns:
      float32 (B, s, s, 3) in [-1, 1].
    """
    self._denoising.weights = weights
    made, batch = [], min(BATCH, len(seeds))
    for begin in range(0, len(seeds), batch):
      rows = np.minimum(np.arange(begin, begin + batch), len(seeds) - 1)
      branch = Branch(
        {name: array[rows] for name, array in stored.items()},
        {name: array[rows] for name, array in kept.items()},
      )
      wish = Wish((branch,), np.ones((1, batch), np.float32))
      keys = jax.vmap(jax.random.key)(jnp.asarray(seeds[rows], jnp.uint32))
      low_res = None
      if self.config.low_res_size:
        low_res = to_float(jnp.asarray(originals[rows]), self.config.low_res_size)
      images = self._denoising(wish, keys, low_res)
      made.append(multihost_utils.process_allgather(images, tiled=True))
    return np.concatenate(made)[: len(seeds)]


class GridSampler:
  """Recomposes a few held-out images with the averaged weights.

  A row an image: the original, all conditions together, then each alone.

  Args:
    stage: of the run.
    records: held-out records, as the data set gives them.
  """

  def __init__(self, stage: Diffusion, records: Sequence[dict[str, Any]]):
    self._images = np.stack([record['image'] for record in records])
    self._stored = {
      c.name: np.stack(
        [
          record[c.name]
          if c.stored
          else c.extract(Picture(record['image']), generator(row, c.name))
          for row, record in enumerate(records)
        ]
      )
      for c in by_name(stage.config.unet.conditions)
    }
    self._sample = StageSampler(stage)

  def __call__(self, state: TrainState, step: int) -> np.ndarray:
    """Draws the grid: uint8 (rows * S, columns * S, 3)."""
    names, seeds = list(self._stored), np.arange(len(self._images))
    size = self._sample.config.image_size
    columns = [np.asarray(to_float(jnp.asarray(self._images), size))]
    for wanted in (names, *([name] for name in names)):
      kept = {name: np.full(len(seeds), name in wanted) for name in names}
      columns.append(self._sample(state.ema, self._images, self._stored, kept, seeds))
    grid = np.stack(columns, axis=1)
    rows, count = grid.shape[:2]
    grid = grid.transpose(0, 2, 1, 3, 4).reshape(rows * size, count * size, 3)
    return to_uint8(grid)
