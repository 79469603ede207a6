from __future__ import annotations

import itertools

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from composer_jax.conditions import ALL
from composer_jax.conditions.dropout import draw_kept

BATCH = 400_000
# Composer, section 2.2.
RATES = {c.name: 0.7 if c.name == 'intensity' else 0.5 for c in ALL}
NAMES = list(RATES)
PRESENT = {name: jnp.ones(BATCH, bool) for name in NAMES}


@jax.jit
def jitted(key, present):
  return draw_kept(key, ALL, present)


def draw(present, seed=0):
  return jitted(jax.random.key(seed), present)


@pytest.fixture(scope='module')
def kept():
  """Which condition (8) each sample (B) kept: bool (B, 8)."""
  drawn = draw(PRESENT)
  assert set(drawn) == set(NAMES)
  return np.stack([np.asarray(drawn[name]) for name in NAMES], axis=1)


def assert_rate(events, rate):
  """The share of True among independent events, to five standard deviations."""
  error = abs(np.mean(events) - rate)
  assert error < 5 * (rate * (1 - rate) / len(events)) ** 0.5


def test_all_are_dropped_and_all_are_kept_one_time_in_ten_and_by_chance(kept):
  rates = np.array(list(RATES.values()))
  assert_rate(~kept.any(axis=1), 0.1 + 0.8 * rates.prod())
  assert_rate(kept.all(axis=1), 0.1 + 0.8 * (1 - rates).prod())


@pytest.mark.parametrize('name', NAMES)
def test_each_is_kept_at_its_own_rate(kept, name):
  assert_rate(kept[:, NAMES.index(name)], 0.1 + 0.8 * (1 - RATES[name]))


def test_otherwise_each_falls_without_regard_to_the_others(kept):
  # All 256 subsets occur as often as they should: nothing else is left to test.
  rates = np.array(list(RATES.values()))
  codes = kept @ (1 << np.arange(len(NAMES)))
  for subset in itertools.product([False, True], repeat=len(NAMES)):
    keep = np.array(subset)
    rate = 0.8 * np.where(keep, 1 - rates, rates).prod()
    rate += 0.1 * (keep.all() or not keep.any())
    assert_rate(codes == keep @ (1 << np.arange(len(NAMES))), rate)


def test_samples_of_a_batch_fall_without_regard_to_each_other(kept):
  for column in kept.T:
    first, second = column[:-1:2], column[1::2]
    assert_rate(first & second, column.mean() ** 2)


def test_absent_counts_as_dropped_and_changes_nothing_else():
  half = jnp.arange(BATCH) < BATCH // 2
  lacking, missing, *others = NAMES
  present = {name: PRESENT[name] for name in others} | {lacking: half}
  full, drawn = draw(PRESENT), draw(present)
  assert missing not in drawn
  np.testing.assert_array_equal(drawn[lacking], full[lacking] & half)
  for name in others:
    np.testing.assert_array_equal(drawn[name], full[name])


def test_the_key_decides():
  few = {name: value[:100] for name, value in PRESENT.items()}
  first, again, other = draw(few), draw(few), draw(few, seed=1)
  for name in NAMES:
    np.testing.assert_array_equal(first[name], again[name])
  assert any((first[name] != other[name]).any() for name in NAMES)


def test_nothing_present_is_nothing_kept():
  assert draw({}) == {}
  assert draw({'something else': jnp.ones(3, bool)}) == {}
