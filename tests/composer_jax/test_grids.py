from __future__ import annotations

import jax
import numpy as np
import skimage.data

from composer_jax import conditions
from composer_jax.diffusion.resolution import to_float
from composer_jax.grids import GridSampler
from composer_jax.images import Picture, resize_square
from composer_jax.training.stages import Diffusion
from composer_jax.training.step import initial_state
from tests.composer_jax.tiny import denoising, shapes_of

NAMES = ('palette', 'sketch', 'mask')


def records(count, size=16):
  made = []
  for i in range(count):
    photograph = skimage.data.astronaut()[40 * i : 40 * i + 300, :300]
    picture = resize_square(Picture(np.ascontiguousarray(photograph)), size)
    rng = np.random.default_rng(i)
    stored = [c for c in conditions.by_name(NAMES) if c.stored]
    made.append(
      {'image': picture.pixels} | {c.name: c.extract(picture, rng) for c in stored}
    )
  return made


def test_a_row_shows_the_image_then_all_conditions_then_each_alone():
  config = denoising(names=NAMES, maps=16).config
  stage = Diffusion(config, shapes_of(NAMES, 16))
  _, state = initial_state(stage, config)
  rng = np.random.default_rng(0)
  state.ema = jax.tree.map(
    lambda leaf: jax.numpy.asarray(0.3 * rng.normal(size=leaf.shape), leaf.dtype),
    state.ema,
  )
  rows = records(2)
  grid = GridSampler(stage, rows)(state, 3)
  assert grid.dtype == np.uint8
  assert grid.shape == (2 * 8, (2 + len(NAMES)) * 8, 3)
  images = np.stack([row['image'] for row in rows])
  small = (np.asarray(to_float(images, 8)) + 1) * 127.5
  cells = grid.reshape(2, 8, 5, 8, 3).swapaxes(1, 2)
  np.testing.assert_allclose(cells[:, 0], small, atol=0.51)
  assert len({cell.tobytes() for cell in cells[0]}) == 5
