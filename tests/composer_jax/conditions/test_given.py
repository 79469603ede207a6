from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skimage.measure import block_reduce

from composer_jax.conditions import by_name
from composer_jax.conditions.given import first_guess

RNG = np.random.default_rng(0)
X_T = jnp.zeros((2, 4, 4, 3))
KEPT = {'mask': np.array([True, False]), 'palette': np.ones(2, bool)}
KNOWN = by_name(['palette', 'mask'])


def stored_of(size):
  """Colours and, at random, where they are visible; (2, size, size, 4)."""
  mask = RNG.integers(0, 256, (2, size, size, 4)).astype(np.uint8)
  mask[..., 3] = np.where(RNG.random(mask.shape[:3]) < 0.7, 255, 0)
  mask[..., :3] *= mask[..., 3:] // 255
  palette = np.full((2, 180), 1 / 180, np.float32)
  return {'mask': jnp.asarray(mask), 'palette': jnp.asarray(palette)}


def test_nothing_is_guessed_unless_a_spread_says_so():
  low = jnp.ones_like(X_T)
  assert first_guess(X_T, KNOWN, stored_of(4), KEPT, given_spread=0.0) is None
  assert first_guess(X_T, (), {}, {}, given_spread=0.0, low_res=low) is None


def test_the_guess_of_an_upsampler_is_its_low_resolution_image():
  low = jnp.asarray(RNG.normal(size=X_T.shape), jnp.float32)
  guess = first_guess(
    X_T,
    KNOWN,
    stored_of(4),
    KEPT,
    given_spread=0.0,
    low_res=low,
    low_res_spread=0.25,
  )
  np.testing.assert_array_equal(guess.image, low)
  assert guess.spread == 0.25


@pytest.mark.parametrize('scale', [1, 2])
def test_what_the_intensity_shows_sharpens_the_low_resolution_image(scale):
  side, small = 8, 4
  intensity = RNG.integers(0, 256, (2, side * scale, side * scale, 1)).astype(np.uint8)
  low = jnp.asarray(RNG.normal(size=(2, side, side, 3)), jnp.float32)
  guess = first_guess(
    jnp.zeros_like(low),
    by_name(['intensity', 'mask']),
    {'intensity': jnp.asarray(intensity)},
    {'intensity': np.array([0.5, 0.0])},
    given_spread=0.0,
    low_res=low,
    low_res_spread=0.25,
    details=side // small,
  )
  # Of the first image's gray exactly what one of 4 x 4 pixels can't hold is added.
  gray = block_reduce(intensity[0, ..., 0] / 127.5 - 1, (scale, scale), np.mean)
  reduced = jnp.asarray(block_reduce(gray, (2, 2), np.mean))
  finer = gray - np.asarray(jax.image.resize(reduced, (side, side), 'cubic'))
  np.testing.assert_allclose(guess.image[0], low[0] + finer[..., None], atol=1e-5)
  np.testing.assert_array_equal(guess.image[1], low[1])
  assert guess.spread == 0.25
  assert np.abs(finer).max() > 0.1


@pytest.mark.parametrize('scale', [1, 2])
@pytest.mark.parametrize('low_res_spread', [0.0, 0.25])
def test_a_given_pixel_is_guessed_where_it_is_wholly_visible(scale, low_res_spread):
  stored = stored_of(4 * scale)
  low = jnp.asarray(RNG.normal(size=X_T.shape), jnp.float32)
  guess = first_guess(
    X_T,
    KNOWN,
    stored,
    KEPT,
    given_spread=0.1,
    low_res=low,
    low_res_spread=low_res_spread,
  )
  mask = np.asarray(stored['mask'], np.float64)
  seen = 0
  for b, y, x in np.ndindex(2, 4, 4):
    part = mask[b, scale * y : scale * (y + 1), scale * x : scale * (x + 1)]
    if KEPT['mask'][b] and (part[..., 3] == 255).all():
      image, spread = part[..., :3].mean((0, 1)) / 127.5 - 1, 0.1
      seen += 1
    elif low_res_spread:
      image, spread = low[b, y, x], low_res_spread
    else:
      image, spread = np.zeros(3), 1.0
    np.testing.assert_allclose(guess.image[b, y, x], image, atol=1e-6)
    np.testing.assert_allclose(guess.spread[b, y, x], spread, atol=1e-7)
  assert 0 < seen < 16


def test_conditions_that_are_not_there_give_nothing():
  guess = first_guess(X_T, KNOWN, {}, {}, given_spread=0.1)
  np.testing.assert_array_equal(guess.image, 0)
  assert guess.spread == 1.0
