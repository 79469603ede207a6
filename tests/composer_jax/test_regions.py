from __future__ import annotations

import numpy as np
import pytest

from composer_jax.regions import cover, lay_over

SIDE = 32
RNG = np.random.default_rng(0)


def region(left=8):
  found = np.zeros((1, SIDE, SIDE), bool)
  found[:, :, left:] = True
  return found


@pytest.mark.parametrize('feather', [0, 0.5, 3])
def test_outside_nothing_changes(feather):
  originals, made = RNG.integers(0, 256, (2, 1, SIDE, SIDE, 3), np.uint8)
  regions = RNG.random((1, SIDE, SIDE)) < 0.5
  laid = lay_over(made, originals, regions, feather)
  np.testing.assert_array_equal(laid[~regions], originals[~regions])
  if not feather:
    np.testing.assert_array_equal(laid[regions], made[regions])


def test_inside_the_original_fades_with_the_distance():
  originals = np.full((1, SIDE, SIDE, 3), 200, np.uint8)
  made = np.full((1, SIDE, SIDE, 3), 40, np.uint8)
  row = lay_over(made, originals, region(), 2.0)[0, 5, :, 1].astype(float)
  distance = np.arange(1, SIDE - 7)
  expected = 40 + 160 * np.exp(-(distance - 0.5) / 2)
  np.testing.assert_allclose(row[8:], expected, atol=0.51)
  assert (row[:8] == 200).all()
  assert row[-1] == 40  # Far inside, nothing is left of it.


def test_an_image_that_is_all_region_is_what_was_made():
  originals, made = RNG.integers(0, 256, (2, 1, SIDE, SIDE, 3), np.uint8)
  regions = np.ones((1, SIDE, SIDE), bool)
  np.testing.assert_array_equal(lay_over(made, originals, regions, 2.0), made)


def test_a_region_covers_each_pixel_that_it_touches():
  one = np.zeros((1, 8, 8), bool)
  one[0, 3, 5] = True
  assert np.argwhere(cover(one, 4)[0]).tolist() == [[1, 2]]
  assert cover(one, 16)[0].sum() == 4
