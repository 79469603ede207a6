from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from composer_jax.conditions import by_name
from composer_jax.conditions.given import first_guess

RNG = np.random.default_rng(0)
X_T = jnp.zeros((2, 4, 4, 3))
KEPT = {'mask': np.array([True, False]), 'palette': np.ones(2, bool)}
KNOWN = by_name(['palette', 'intensity', 'mask'])


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


def test_the_least_spread_wins_among_gray_low_resolution_and_visible_pixels():
  stored = stored_of(4)
  intensity = RNG.integers(0, 256, (2, 4, 4, 1)).astype(np.uint8)
  stored['intensity'] = jnp.asarray(intensity)
  kept = KEPT | {'intensity': np.array([0.5, 1.0])}
  gray = np.repeat(intensity / 127.5 - 1, 3, axis=-1)
  visible = np.asarray(stored['mask'])[..., 3:] > 0
  visible[1] = False
  colour = np.asarray(stored['mask'])[..., :3] / 127.5 - 1
  for low_res_spread, behind, spread in ((0.25, X_T, 0.25), (0.0, gray, 0.3)):
    guess = first_guess(
      X_T,
      KNOWN,
      stored,
      kept,
      given_spread=0.1,
      gray_spread=0.3,
      low_res=X_T,
      low_res_spread=low_res_spread,
    )
    np.testing.assert_allclose(
      guess.image, np.where(visible, colour, behind), atol=1e-6
    )
    np.testing.assert_allclose(guess.spread, np.where(visible, 0.1, spread), atol=1e-7)
  kept['intensity'] = np.zeros(2)
  guess = first_guess(X_T, KNOWN, stored, kept, given_spread=0.0, gray_spread=0.3)
  np.testing.assert_array_equal(guess.image, 0)
  np.testing.assert_array_equal(guess.spread, 1)
