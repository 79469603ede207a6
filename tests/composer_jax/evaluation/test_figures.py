from __future__ import annotations

import json

import numpy as np
import pytest

from composer_jax.evaluation.bootstrap import GROUPS
from composer_jax.evaluation.figures import difference, key, of_images, of_sets

RNG = np.random.default_rng(0)


def test_a_mean_is_held_against_its_baseline():
  good, bad = RNG.normal(1, 0.1, 50), RNG.normal(0, 0.1, 50)
  figure = of_images('f', good, beside=bad, baseline='b')
  assert figure.apart
  assert not of_images('f', bad, beside=good).apart
  assert of_images('f', bad, higher_is_better=False, beside=good).apart
  assert of_images('f', good).apart is None
  plain = json.loads(json.dumps(figure.to_json()))
  assert plain['mean'] == pytest.approx(good.mean())
  assert plain['low'] < plain['mean'] < plain['high']
  assert plain['values'] == good.tolist()
  assert plain['beside']['what'] == 'b'
  assert plain['beside']['mean'] == pytest.approx(bad.mean())
  assert plain['count'] == 50


def test_a_share_of_images_may_be_bool():
  assert of_images('f', np.array([True, False])).value.mean == 0.5


def test_a_figure_of_sets_has_replicates_and_no_values():
  a = RNG.normal(size=100)
  figure = of_sets('f', lambda rows: a[rows].mean() ** 2, 100)
  assert figure.value.mean == pytest.approx(a.mean() ** 2)
  assert figure.value.replicates.shape == (GROUPS,)
  assert 'values' not in figure.to_json()


def test_a_share_of_sets_stays_within_zero_and_one():
  whole = of_sets('f', lambda rows: 1 - (0 in rows) / 2, 40, share=True)
  assert 0 <= whole.value.low < whole.value.high == 1


def test_the_difference_of_means_is_taken_image_by_image():
  hard = RNG.normal(0, 10, 60)  # What makes images hard for both cancels.
  a, b = hard + 1, hard + RNG.normal(0, 0.01, 60)
  apart = difference(of_images('f', a), of_images('f', b))
  assert apart.mean == pytest.approx(1, abs=0.01)
  assert apart.high - apart.low < 0.02
  # Only images that both have count.
  first = of_images('f', a[:40], indices=np.arange(40))
  last = of_images('f', b[20:], indices=np.arange(20, 60))
  assert len(difference(first, last).values) == 20
  none = of_images('f', b[50:], indices=np.arange(50, 60))
  assert difference(first, none) is None


def test_the_difference_of_figures_of_sets_is_taken_group_by_group():
  a = RNG.normal(0, 10, 100)
  apart = difference(
    of_sets('f', lambda rows: a[rows].mean() + 1, 100),
    of_sets('f', lambda rows: a[rows].mean(), 100),
  )
  assert (apart.mean, apart.low, apart.high) == pytest.approx((1, 1, 1))
  assert difference(of_sets('f', len, 100), of_images('f', a)) is None


def test_names_in_logs_are_plain():
  assert key('all', "FD (model's encoder)") == 'all/FD_model_s_encoder'
