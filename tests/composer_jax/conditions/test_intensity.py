from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from composer_jax.conditions.intensity import WEIGHTS, Intensity
from composer_jax.images import Picture

RNG = np.random.default_rng(0)


def extract(pixels, seed):
  return Intensity().extract(Picture(pixels), np.random.default_rng(seed))[..., 0]


def distances_to_each(pixels, gray):
  """For each of the fixed weights, the largest difference in gray levels."""
  exact = pixels.astype(np.float64) @ np.array(WEIGHTS).T
  return np.abs(exact - gray[..., None]).max(axis=(0, 1))


def test_weights_are_a_fixed_set_whose_sums_are_one():
  assert len(set(WEIGHTS)) == len(WEIGHTS) >= 3
  np.testing.assert_allclose(np.sum(WEIGHTS, axis=1), 1, atol=1e-9)
  assert np.min(WEIGHTS) > 0


def test_each_sample_is_gray_by_one_of_the_fixed_weights_rounded():
  pixels = RNG.integers(0, 256, (16, 16, 3), np.uint8)
  for seed in range(40):
    distances = np.sort(distances_to_each(pixels, extract(pixels, seed)))
    assert distances[0] <= 0.5 + 1e-4
    assert distances[1] > 3


def test_all_weights_are_drawn_equally_often_and_independently():
  pixels = RNG.integers(0, 256, (8, 8, 3), np.uint8)
  rng = np.random.default_rng(0)
  draws = 3000
  drawn = np.array(
    [
      distances_to_each(
        pixels, Intensity().extract(Picture(pixels), rng)[..., 0]
      ).argmin()
      for _ in range(draws)
    ]
  )
  share = 1 / len(WEIGHTS)
  deviation = (share * (1 - share) / draws) ** 0.5
  shares = np.bincount(drawn, minlength=len(WEIGHTS)) / draws
  assert np.abs(shares - share).max() < 5 * deviation
  assert abs((drawn[1:] == drawn[:-1]).mean() - share) < 5 * deviation


def test_gray_pixels_keep_their_level_whatever_the_weights():
  levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
  pixels = np.repeat(levels[..., None], 3, axis=-1)
  for seed in range(20):
    np.testing.assert_array_equal(extract(pixels, seed), levels)


def test_one_colour_has_several_grays_so_that_it_cannot_be_read_back():
  red = np.full((2, 2, 3), (255, 0, 0), np.uint8)
  grays = {int(extract(red, seed)[0, 0]) for seed in range(60)}
  assert grays == {round(255 * weights[0]) for weights in WEIGHTS}
  assert len(grays) > 3


def test_features_go_from_minus_one_black_to_one_white():
  stored = np.array([0, 51, 255, 204], np.uint8).reshape(1, 2, 2, 1)
  features = np.asarray(Intensity().features(stored))
  np.testing.assert_allclose(features.ravel(), [-1, -0.6, 1, 0.6], atol=1e-6)


def test_drawings_are_gray_pictures():
  stored = RNG.integers(0, 256, (5, 6, 1), np.uint8)
  np.testing.assert_array_equal(Intensity().draw(stored), stored.repeat(3, axis=-1))


def test_correlations_equal_those_of_scipy_and_rmse_is_in_shares_of_white():
  a, b = RNG.integers(0, 256, (2, 12, 12, 1), np.uint8)
  b = (b // 2 + a // 3).astype(np.uint8)
  got = Intensity().fidelity(a, b)
  pair = a.ravel().astype(float), b.ravel().astype(float)
  wanted = scipy.stats.pearsonr(*pair).statistic
  assert got['correlation'] == pytest.approx(wanted, abs=1e-12)
  ranks = [scipy.stats.rankdata(x) for x in pair]
  wanted = scipy.stats.pearsonr(*ranks).statistic
  assert got['rank_correlation'] == pytest.approx(wanted, abs=1e-12)
  wanted = np.sqrt(np.mean((pair[0] - pair[1]) ** 2)) / 255
  assert got['rmse'] == pytest.approx(wanted)


def test_black_against_white_is_as_far_as_it_gets():
  black, white = np.zeros((3, 3, 1), np.uint8), np.full((3, 3, 1), 255, np.uint8)
  for pair in ((black, white), (white, black)):
    assert Intensity().fidelity(*pair) == {
      'correlation': 0,
      'rank_correlation': 0,
      'rmse': 1,
    }
