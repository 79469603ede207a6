from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from composer_jax.evaluation.bootstrap import (
  GROUPS,
  estimate,
  interval,
  jackknife,
  paired,
)

SKEWED = np.random.default_rng(0).exponential(size=40)


@pytest.mark.parametrize('confidence', [0.5, 0.95])
def test_the_interval_is_the_percentile_interval_of_scipy(confidence):
  there = stats.bootstrap(
    (SKEWED,),
    np.mean,
    n_resamples=40_000,
    method='percentile',
    confidence_level=confidence,
    rng=np.random.default_rng(1),
  ).confidence_interval
  here = interval(SKEWED, confidence=confidence, resamples=40_000)
  # Four standard errors of the difference of two such quantiles.
  tolerance = 0.08 * SKEWED.std() / len(SKEWED) ** 0.5
  np.testing.assert_allclose(here, there, rtol=0, atol=tolerance)


def test_the_ends_are_quantiles_of_the_means_of_all_possible_resamples():
  values = np.array([0.0, 1.0, 5.0, 20.0])
  means = [np.mean(drawn) for drawn in itertools.product(values, repeat=4)]
  low, high = interval(values, confidence=0.6, resamples=100_000)
  assert low == np.quantile(means, 0.2)
  assert high == np.quantile(means, 0.8)


@pytest.mark.parametrize('ones', [3, 10, 17])
def test_a_share_has_the_quantiles_of_a_binomial_distribution(ones):
  values = np.repeat([0.0, 1.0], [20 - ones, ones])
  expected = stats.binom.ppf([0.025, 0.975], 20, ones / 20) / 20
  # The probabilities nearest to the tails decide: none is close enough to flip.
  np.testing.assert_allclose(interval(values, resamples=100_000), expected, atol=1e-12)


@pytest.mark.parametrize('confidence', [0.5, 0.8, 0.95])
def test_intervals_hold_the_true_mean_as_often_as_they_say(confidence):
  rng = np.random.default_rng(2)
  count = 600
  samples = rng.normal(3, 2, (count, 40))
  ends = [interval(x, confidence=confidence, resamples=1000) for x in samples]
  covered = np.mean([low <= 3 <= high for low, high in ends])
  # The percentile interval of 40 values is a little narrow: about a fortieth.
  slack = 3 * (confidence * (1 - confidence) / count) ** 0.5
  assert confidence - slack - 0.02 < covered < confidence + slack


def test_many_values_are_resampled_in_parts_to_the_same_distribution():
  values = np.random.default_rng(3).normal(size=30_000)
  low, high = interval(values, resamples=1000)
  error = values.std() / len(values) ** 0.5
  expected = values.mean() + 1.96 * error * np.array([-1, 1])
  np.testing.assert_allclose([low, high], expected, rtol=0, atol=0.25 * error)


def test_the_seed_decides():
  assert interval(SKEWED, seed=4) == interval(SKEWED, seed=4)
  assert interval(SKEWED, seed=4) != interval(SKEWED, seed=5)


def test_one_resample_is_one_mean():
  low, high = interval(SKEWED, resamples=1)
  assert low == high != SKEWED.mean()


@pytest.mark.parametrize('values', [[7.25], [2.5] * 9])
def test_values_without_spread_give_an_interval_without_width(values):
  assert interval(np.array(values)) == (values[0], values[0])


def test_the_interval_follows_shift_and_scale():
  low, high = interval(SKEWED)
  moved = interval(100 - 3 * SKEWED)
  np.testing.assert_allclose(moved, (100 - 3 * high, 100 - 3 * low))


@pytest.mark.parametrize(
  'values', [[], 3.0, [[1.0, 2.0]], [1.0, np.nan], [np.inf, 1.0, 2.0]]
)
def test_values_that_have_no_interval_are_refused(values):
  with pytest.raises(ValueError, match='one axis and at least one value, all finite'):
    interval(np.array(values))


@pytest.mark.parametrize(
  'options',
  [
    {'confidence': 0},
    {'confidence': 1},
    {'confidence': 95},
    {'confidence': np.nan},
    {'resamples': 0},
  ],
)
def test_options_out_of_range_are_refused(options):
  with pytest.raises(ValueError, match='a share between 0 and 1'):
    interval(SKEWED, **options)


def test_an_estimate_has_the_mean_and_what_it_is_of():
  one = estimate(np.array([1, 2, 6], np.uint8))
  assert one.mean == 3
  assert one.values.dtype == np.float64
  np.testing.assert_array_equal(one.values, [1, 2, 6])
  assert (one.low, one.high) == interval(np.array([1.0, 2.0, 6.0]))
  assert one.low < 3 < one.high


def test_an_estimate_reads_as_a_mean_and_its_interval():
  assert str(estimate(np.array([0.12345]))) == '0.123 [0.123, 0.123]'


def test_pairs_are_compared_one_by_one():
  rng = np.random.default_rng(6)
  easy = rng.normal(0, 10, 50)  # What both have in common.
  a, b = easy + 1 + rng.normal(0, 0.1, 50), easy + rng.normal(0, 0.1, 50)
  gain = paired(a, b)
  np.testing.assert_array_equal(gain.values, a - b)
  assert gain.mean == pytest.approx(a.mean() - b.mean())
  assert gain.low > 0.9
  assert interval(a)[0] < interval(b)[1]  # Apart they tell nothing.


def test_pairs_of_integers_do_not_wrap_around():
  assert paired(np.array([1, 2], np.uint8), np.array([3, 4], np.uint8)).mean == -2


def test_pairs_of_different_shapes_are_refused():
  with pytest.raises(ValueError, match=r'\(3,\) and \(1,\)'):
    paired(np.zeros(3), np.zeros(1))


def test_the_jackknife_of_a_mean_is_students_interval_of_its_groups():
  values = np.random.default_rng(0).normal(size=200)
  found = jackknife(lambda rows: values[rows].mean(), 200, seed=3)
  groups = np.random.default_rng(3).permutation(200) % GROUPS
  means = np.array([values[groups == group].mean() for group in range(GROUPS)])
  expected = stats.t.interval(0.95, GROUPS - 1, means.mean(), stats.sem(means))
  assert found.mean == pytest.approx(values.mean())
  assert (found.low, found.high) == pytest.approx(expected)


def test_the_jackknife_holds_the_true_value_as_often_as_it_says():
  rng = np.random.default_rng(0)
  held = 0
  for seed in range(400):
    values = rng.normal(2, 1, 50)
    found = jackknife(lambda rows, v=values: v[rows].var(ddof=1), 50, seed=seed)
    held += found.low <= 1 <= found.high
  assert 0.9 <= held / 400 <= 0.98


def test_too_few_samples_for_the_jackknife_are_refused():
  with pytest.raises(ValueError, match='19 samples, expected at least 20'):
    jackknife(len, 19)
