from __future__ import annotations

import matplotlib
import numpy as np
import pytest
import scipy.stats

from composer_jax.conditions.depth import Depth, inflate, rank_fidelity
from composer_jax.images import Picture

S = 129
Y, X = np.indices((S, S)) - S // 2


def test_a_disc_becomes_half_a_sphere_of_its_own_radius():
  radius = 40
  r = np.hypot(Y, X)
  height = inflate((r <= radius).astype(int))
  # Half of the image's side is 10.
  wanted = np.sqrt(np.maximum(radius**2 - r**2, 0)) / (S / 2) * 10
  assert height.max() == pytest.approx(radius / (S / 2) * 10, rel=0.01)
  # At the rim, where a sphere is vertical, the pixels' width shows.
  well_inside = r < 0.9 * radius
  assert np.abs(height - wanted)[well_inside].max() < 0.03 * wanted.max()
  assert (height[r > radius] == 0).all()


def test_a_long_bar_becomes_half_a_cylinder():
  width = 41
  bar = (abs(Y) <= width // 2) & (abs(X) <= 60)
  height = inflate(bar.astype(int))
  middle = height[:, S // 2]
  # The outline runs through the first pixels outside.
  radius = width // 2 + 1
  wanted = np.sqrt(np.maximum(radius**2 - Y[:, 0] ** 2, 0)) / (S / 2) * 10
  np.testing.assert_allclose(middle, wanted, atol=1e-9)


def test_inflation_of_any_parts_equals_the_formula_by_brute_force():
  rng = np.random.default_rng(0)
  ids = np.kron(rng.integers(0, 4, (4, 5)), np.ones((4, 4), int))
  wanted = np.zeros(ids.shape)
  places = np.array(list(np.ndindex(ids.shape)))
  # Beyond the image there is a rim that belongs to nobody.
  rim = [(y, x) for y in range(-1, 17) for x in range(-1, 21)]
  rim = np.array([(y, x) for y, x in rim if y in (-1, 16) or x in (-1, 20)])
  for instance in (1, 2, 3):
    inside = places[ids.ravel() == instance]
    outside = np.concatenate([places[ids.ravel() != instance], rim])
    reach = np.linalg.norm(inside[:, None] - outside[None], axis=-1).min(axis=1)
    radius = reach.max()
    for (y, x), r in zip(inside, reach, strict=True):
      wanted[y, x] = np.sqrt(radius**2 - (radius - r) ** 2) / (20 / 2) * 10
  np.testing.assert_allclose(inflate(ids), wanted, atol=1e-9)


def test_thick_instances_are_nearer_than_thin_ones():
  ids = 1 * (np.hypot(Y, X + 30) <= 25) + 2 * (np.hypot(Y, X - 30) <= 10)
  height = inflate(ids)
  assert height[ids == 1].max() > 2 * height[ids == 2].max() > 0


def test_nothing_is_far_and_everything_reaches_ten():
  assert (inflate(np.zeros((8, 8), int)) == 0).all()
  height = inflate(np.ones((33, 33), int))
  assert height.max() == 10 and height[16, 16] == 10
  assert height.min() >= 0


def test_extraction_inflates_the_parts_of_the_alpha_mask():
  disc = np.hypot(Y, X) <= 40
  picture = Picture(np.zeros((S, S, 3), np.uint8), (disc * 255).astype(np.uint8))
  stored = Depth().extract(picture, np.random.default_rng(0))
  assert stored.dtype == np.float16
  np.testing.assert_allclose(stored[..., 0], inflate(disc.astype(int)), rtol=1e-3)


def test_features_go_from_minus_one_far_to_one_near():
  stored = np.array([0, 2.5, 5, 10], np.float16).reshape(1, 2, 2, 1)
  features = np.asarray(Depth().features(stored))
  np.testing.assert_allclose(features.ravel(), [-1, -0.5, 0, 1])


def test_drawings_are_matplotlib_s_magma():
  stored = np.linspace(0, 10, 12).astype(np.float16).reshape(3, 4, 1)
  wanted = matplotlib.colormaps['magma'](stored[..., 0] / 10, bytes=True)[..., :3]
  error = Depth().draw(stored).astype(int) - wanted
  assert np.abs(error).max() <= 1


def test_rank_correlation_has_spearman_s_closed_form_without_ties():
  rng = np.random.default_rng(0)
  n = 50
  a, b = rng.permutation(n), rng.permutation(n)
  wanted = 1 - 6 * ((a - b) ** 2).sum() / (n * (n**2 - 1))
  got = rank_fidelity(a / n, b / n)
  assert got['rank_correlation'] == pytest.approx(wanted, abs=1e-12)
  assert got['rmse'] == pytest.approx(np.sqrt(((a - b) ** 2).mean()) / n)


def test_rank_correlation_gives_ties_their_average_rank():
  rng = np.random.default_rng(1)
  a, b = rng.integers(0, 6, (2, 20, 20, 1)) / 6
  ranks = [scipy.stats.rankdata(x.ravel()) for x in (a, b)]
  wanted = scipy.stats.pearsonr(*ranks).statistic
  assert rank_fidelity(a, b)['rank_correlation'] == pytest.approx(wanted, abs=1e-12)


def test_order_is_all_that_the_rank_correlation_sees():
  a = np.random.default_rng(0).random((9, 9, 1))
  assert rank_fidelity(a, a**3)['rank_correlation'] == pytest.approx(1)
  assert rank_fidelity(a, 1 - a)['rank_correlation'] == pytest.approx(-1)
  assert rank_fidelity(a, a**3)['rmse'] > 0.1


def test_a_constant_map_has_rank_correlation_zero():
  a = np.random.default_rng(0).random((4, 4, 1))
  for pair in ((a, 0 * a), (0 * a, a), (0 * a, 0 * a)):
    assert rank_fidelity(*pair)['rank_correlation'] == 0


def test_fidelity_measures_in_shares_of_the_largest_depth():
  zeros, fives = np.zeros((4, 4, 1), np.float16), np.full((4, 4, 1), 5, np.float16)
  assert Depth().fidelity(zeros, fives)['rmse'] == pytest.approx(0.5)
