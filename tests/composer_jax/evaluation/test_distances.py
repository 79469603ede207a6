from __future__ import annotations

import itertools
import math
import tracemalloc

import numpy as np
import pytest
from scipy import linalg
from scipy.spatial.distance import cdist

from composer_jax.evaluation.distances import (
  clip_score,
  cmmd,
  cosines,
  frechet,
  kernel,
  precision_recall,
)

LARGE = 4000
"""Samples whose distances, of 128 MB, are more than is held at once."""


def normal(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape)


def with_moments(count, mean, root, seed=0):
  """Samples of exactly this mean, and covariance root @ root.T."""
  drawn = normal(count, len(mean), seed=seed)
  white = linalg.orth(drawn - drawn.mean(axis=0)) * math.sqrt(count - 1)
  return white @ root.T + mean


def test_the_frechet_distance_of_independent_features_adds_up():
  m, n = np.array([1.0, -2, 0]), np.array([0.5, 0, 3])
  spread_a, spread_b = np.array([1.0, 2, 0.1]), np.array([3.0, 0.5, 0.1])
  a = with_moments(40, m, np.diag(spread_a))
  b = with_moments(25, n, np.diag(spread_b), seed=1)
  expected = np.square(m - n).sum() + np.square(spread_a - spread_b).sum()
  assert frechet(a, b) == pytest.approx(expected, rel=1e-12)


def test_the_frechet_distance_in_the_plane_is_the_closed_form():
  # The trace of the root of a 2 x 2 matrix follows from its trace and determinant.
  p, q = np.array([[2.0, 0.3], [-1, 0.4]]), np.array([[0.5, -1.5], [0.2, 1]])
  a, b = p @ p.T, q @ q.T
  assert not np.allclose(a @ b, b @ a)
  root = math.sqrt(np.trace(a @ b) + 2 * math.sqrt(linalg.det(a @ b)))
  expected = 4 + 9 + np.trace(a) + np.trace(b) - 2 * root
  samples = with_moments(30, np.zeros(2), p), with_moments(50, np.array([2.0, -3]), q)
  assert frechet(*samples) == pytest.approx(expected, rel=1e-12)


def test_the_frechet_distance_is_that_of_the_moments_and_a_matrix_root():
  a = normal(300, 24) @ normal(24, 24, seed=1) + 5
  b = normal(200, 24, seed=2) @ normal(24, 24, seed=3)
  covariances = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
  root = linalg.sqrtm(covariances[0] @ covariances[1])
  expected = np.square(a.mean(axis=0) - b.mean(axis=0)).sum() + np.trace(
    covariances[0] + covariances[1] - 2 * root.real
  )
  assert frechet(a, b) == pytest.approx(expected, rel=1e-9)


def test_fewer_samples_than_features_are_no_less_exact():
  # On two lines, the root has one eigenvalue.
  rng = np.random.default_rng(0)
  u, v = (x / linalg.norm(x) for x in normal(2, 50))
  s, t = rng.normal(size=6), rng.normal(size=4)
  expected = np.square(s.mean() * u - t.mean() * v).sum()
  expected += s.var(ddof=1) + t.var(ddof=1)
  expected -= 2 * s.std(ddof=1) * t.std(ddof=1) * abs(u @ v)
  assert frechet(np.outer(s, u), np.outer(t, v)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize('shape', [(100, 8), (8, 100)])
def test_equal_sets_have_no_frechet_distance_whatever_their_scales(shape):
  a = normal(*shape) * np.logspace(-6, 0, shape[1])
  assert 0 <= frechet(a, a) < 1e-12
  assert 0 <= frechet(a, a[::-1]) < 1e-12


def test_the_frechet_distance_is_symmetric():
  a, b = normal(30, 5), 2 * normal(20, 5, seed=1) + 1
  assert frechet(a, b) == pytest.approx(frechet(b, a), rel=1e-12)


def cubic(x, y):
  return (sum(p * q for p, q in zip(x, y, strict=True)) / len(x) + 1) ** 3


def unbiased(x, y, k):
  """The estimate as it is written: means over pairs of different samples."""
  within = sum(
    np.mean([k(p, q) for p, q in itertools.permutations(one, 2)]) for one in (x, y)
  )
  return within - 2 * np.mean([k(p, q) for p in x for q in y])


def test_the_kernel_distance_is_the_mean_over_pairs():
  x, y = normal(7, 5), normal(7, 5, seed=1) + 0.4
  found = kernel(x, y, subset_size=7, subsets=3)
  assert found.mean == pytest.approx(unbiased(x, y, cubic), rel=1e-12)
  assert found.std == pytest.approx(0, abs=1e-12)  # There is but one such subset.


def test_mean_and_spread_are_those_of_all_possible_subsets():
  x, y = normal(5, 3), normal(4, 3, seed=1) + 0.4
  possible = [
    unbiased(p, q, cubic)
    for p in itertools.combinations(x, 2)
    for q in itertools.combinations(y, 2)
  ]
  count = 4000
  found = kernel(x, y, subset_size=2, subsets=count)
  error = np.std(possible) / math.sqrt(count)
  assert found.mean == pytest.approx(np.mean(possible), abs=4 * error)
  assert found.std == pytest.approx(np.std(possible), rel=0.1)


def test_the_kernel_distance_of_one_distribution_is_zero_on_average():
  found = []
  for i in range(300):
    x, y = normal(12, 4, seed=i), normal(12, 4, seed=1000 + i)
    found.append(kernel(x, y, subset_size=12, subsets=1).mean)
  assert min(found) < 0
  error = np.std(found) / math.sqrt(len(found))
  # The biased estimate is about a third of its value at this size off.
  assert abs(np.mean(found)) < 3 * error
  biased = np.mean([cubic(x, x) for x in normal(12, 4)]) / 12
  assert error < biased / 10


def test_the_seed_decides_which_subsets_are_drawn():
  x, y = normal(30, 4), normal(30, 4, seed=1)
  options = dict(subset_size=10, subsets=5)
  assert kernel(x, y, seed=3, **options) == kernel(x, y, seed=3, **options)
  assert kernel(x, y, seed=3, **options) != kernel(x, y, seed=4, **options)


def share_inside(x, manifold, k):
  """As the paper defines it, with all distances at once."""
  own = np.sort(cdist(manifold, manifold), axis=1)
  return np.mean((cdist(x, manifold) <= own[:, k]).any(axis=1))  # At 0 is itself.


@pytest.mark.parametrize('k', [1, 3, 4])
def test_precision_and_recall_are_those_of_all_distances(k):
  real, generated = normal(70, 4), 0.7 * normal(50, 4, seed=1) + 0.6
  found = precision_recall(real, generated, neighbours=k)
  assert found.precision == share_inside(generated, real, k)
  assert found.recall == share_inside(real, generated, k)
  assert 0 < found.recall < found.precision


def test_many_samples_are_compared_in_parts():
  real, generated = normal(LARGE, 2), 1.5 * normal(LARGE, 2, seed=1)
  tracemalloc.start()
  found = precision_recall(real, generated)
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert peak < 75e6 < 8 * LARGE**2
  assert found.precision == share_inside(generated, real, 3)
  assert found.recall == share_inside(real, generated, 3)


def test_a_sample_on_the_surface_of_a_ball_is_inside():
  # The two nearest of 1 are 0 and 3: its ball reaches 3, and so on.
  real = np.array([[0.0], [1], [3], [7]])
  generated = np.array([[-3.0], [-4], [13], [14], [20]])
  found = precision_recall(real, generated, neighbours=2)
  # Balls of real ones reach from -3 to 13; those of generated ones from -23 on.
  assert found == (2 / 5, 1)


@pytest.mark.parametrize('offset', [0, 1e6])
@pytest.mark.parametrize('width', [64, 2048])
def test_equal_samples_lie_in_balls_without_width(width, offset):
  once = normal(9, width) + offset
  real = np.repeat(once, 2, axis=0)
  assert precision_recall(real, once[:7], neighbours=1).precision == 1
  assert precision_recall(real, real[::-1], neighbours=1) == (1, 1)
  assert precision_recall(real, real + 1e-3, neighbours=1) == (0, 0)


def test_a_generator_that_shows_one_kind_of_image_has_precision_but_no_recall():
  kinds = np.array([[0.0, 0], [50, 0], [0, 50], [50, 50]])
  real = np.concatenate([normal(50, 2, seed=i) + at for i, at in enumerate(kinds)])
  found = precision_recall(real, 0.3 * normal(200, 2, seed=9))
  assert found.precision > 0.95
  assert found.recall < 0.25


def unit(x):
  return x / linalg.norm(x, axis=1, keepdims=True)


def mean_gaussian(x, y):
  return np.exp(-cdist(x, y, 'sqeuclidean') / 200).mean()


def test_cmmd_is_the_mean_over_all_pairs():
  a, b = normal(40, 12), normal(30, 12, seed=1) + 0.5
  x, y = unit(a), unit(b)
  expected = mean_gaussian(x, x) + mean_gaussian(y, y) - 2 * mean_gaussian(x, y)
  assert cmmd(a, b) == pytest.approx(1000 * expected, rel=1e-9)
  assert cmmd(a * np.linspace(0.1, 9, 40)[:, None], b) == pytest.approx(cmmd(a, b))


def test_cmmd_pairs_each_sample_with_itself_too():
  one, two, three = np.eye(3)
  apart = math.exp(-2 / 200)
  expected = 1000 * ((1 + apart) / 2 + 1 - 2 * apart)
  found = cmmd(np.array([one, two]), np.array([three, three]))
  assert found == pytest.approx(expected, rel=1e-12)


def test_cmmd_of_small_differences_keeps_its_digits():
  angle = 1e-5
  a = np.array([[1.0, 0], [1, 0]])
  b = np.repeat([[math.cos(angle), math.sin(angle)]], 2, axis=0)
  squared = (2 * math.sin(angle / 2)) ** 2
  expected = -2000 * math.expm1(-squared / 200)
  assert cmmd(a, b) == pytest.approx(expected, rel=1e-5)


def test_cmmd_of_many_samples_is_computed_in_parts():
  a, b = normal(LARGE, 3), normal(LARGE, 3, seed=1) + 0.2
  tracemalloc.start()
  found = cmmd(a, b)
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert peak < 75e6 < 8 * LARGE**2
  x, y = unit(a), unit(b)
  expected = mean_gaussian(x, x) + mean_gaussian(y, y) - 2 * mean_gaussian(x, y)
  assert found == pytest.approx(1000 * expected, rel=1e-9)


def test_cmmd_of_equal_sets_is_zero():
  a = normal(50, 8)
  assert 0 <= cmmd(a, a[::-1]) < 1e-9


def test_the_clip_score_is_the_mean_cosine_of_pairs():
  images = np.array([[3.0, 0], [0, 2], [1, 1], [-1, 0]])
  captions = np.array([[1.0, 0], [1, 0], [5, 0], [2, 0]])
  np.testing.assert_allclose(cosines(images, captions), [1, 0, 0.5**0.5, -1])
  assert clip_score(images, captions) == pytest.approx(0.5**0.5 / 4)


def test_half_precision_is_computed_in_float64():
  a, b = (normal(20, 6, seed=i).astype(np.float16) for i in range(2))
  for distance in (frechet, cmmd, precision_recall, clip_score):
    assert distance(a, b) == distance(a.astype(np.float64), b.astype(np.float64))


def small_kernel(a, b):
  return kernel(a, b, subset_size=4)


@pytest.mark.parametrize(
  ('distance', 'least', 'names'),
  [
    (frechet, 2, 'ab'),
    (small_kernel, 4, 'ab'),
    (precision_recall, 4, ('real', 'generated')),
    (cmmd, 2, 'ab'),
    (cosines, 1, ('images', 'captions')),
  ],
)
def test_features_that_cannot_be_compared_are_refused(distance, least, names):
  enough = normal(least, 3)
  distance(enough, enough)
  for position, name in enumerate(names):

    def refuses(other, message, position=position):
      pair = [enough, enough]
      pair[position] = other
      with pytest.raises(ValueError, match=message):
        distance(*pair)

    few = f'^{name}: {least - 1} samples, expected at least {least}'
    refuses(enough[1:], few)
    refuses(enough[0], rf'^{name}: shape \(3,\), expected \(samples, features\)')
    refuses(enough[:, :0], rf'^{name}: shape \({least}, 0\)')
    refuses(enough[:, :2], r': [23] features, .*: [23]; expected equal numbers')
    for bad in (np.nan, np.inf):
      broken = enough.copy()
      broken[-1, 1] = bad
      refuses(
        broken,
        f'^{name}: 1 of {least} samples are not finite, the first at {least - 1}',
      )


@pytest.mark.parametrize('distance', [cmmd, cosines])
def test_embeddings_without_a_direction_are_refused(distance):
  broken = normal(5, 3)
  broken[2] = 0
  with pytest.raises(ValueError, match='sample 2 has length 0'):
    distance(normal(5, 3), broken)


def test_captions_have_to_be_as_many_as_images():
  with pytest.raises(ValueError, match='images: 5, captions: 4; expected one caption'):
    cosines(normal(5, 3), normal(4, 3))


@pytest.mark.parametrize('options', [{'subset_size': 1}, {'subsets': 0}])
def test_subsets_out_of_range_are_refused(options):
  with pytest.raises(ValueError, match='at least 2 samples in a subset'):
    kernel(normal(9, 3), normal(9, 3), **options)


def test_neighbours_out_of_range_are_refused():
  with pytest.raises(ValueError, match='neighbours: 0, expected at least 1'):
    precision_recall(normal(9, 3), normal(9, 3), neighbours=0)
