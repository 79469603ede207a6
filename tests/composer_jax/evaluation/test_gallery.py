from __future__ import annotations

import numpy as np
import pytest

from composer_jax import conditions
from composer_jax.evaluation.fidelity import hold_out
from composer_jax.evaluation.gallery import Wish, grant, mixtures, strips

NAMES = tuple(c.name for c in conditions.ALL)
LOCAL = tuple(c.name for c in conditions.ALL if c.local)
GLOBAL = tuple(c.name for c in conditions.ALL if not c.local)


@pytest.fixture
def held_out(records, lookup):
  return hold_out(records, NAMES, encoder=lookup.encoder, seed=5)


@pytest.fixture
def partly_silent(records, lookup):
  """Images 0, 1 and 4 have no caption."""
  some = [r | {'text': ''} if i in (0, 1, 4) else r for i, r in enumerate(records)]
  return hold_out(some, NAMES, encoder=lookup.encoder)


def test_each_image_has_a_strip_of_everything_and_one_of_the_global_conditions(
  held_out,
):
  made = strips(held_out, 3)
  titles = ['everything', 'global conditions only']
  assert [(s.index, s.title) for s in made] == [
    (i, t) for i in range(3) for t in titles
  ]
  for strip in made:
    expected = NAMES if strip.title == 'everything' else GLOBAL
    assert len(strip.wishes) == 4
    for wish in strip.wishes:
      assert wish.lenders == dict.fromkeys(expected, strip.index)


@pytest.mark.parametrize('names', [LOCAL, GLOBAL, ('palette',)])
def test_no_strip_is_shown_twice_where_all_conditions_are_of_one_kind(
  records, lookup, names
):
  held_out = hold_out(records, names, encoder=lookup.encoder)
  assert [strip.title for strip in strips(held_out, 1)] == ['everything']


def test_a_strip_has_seeds_that_nothing_else_was_made_with(held_out):
  seeds = [w.seed for s in strips(held_out, 12) for w in s.wishes]
  assert len(set(seeds)) == 4 * 12  # Both strips of an image share theirs.
  assert not set(seeds) & set(held_out.seeds.tolist())


def test_a_mixture_for_each_local_condition_with_each_global_one(held_out):
  made = mixtures(held_out, 8)
  pairs = [(m.local, m.loose) for m in made]
  assert pairs == [(local, loose) for local in LOCAL for loose in GLOBAL]
  for mixture in made:
    assert mixture.rows == [0, 1, 2]
    assert mixture.columns == [3, 4, 5]
    lenders = [wish.lenders for wish in mixture.wishes]
    assert lenders == [
      {mixture.local: row, mixture.loose: column}
      for row in mixture.rows
      for column in mixture.columns
    ]


def test_a_row_of_a_mixture_shares_its_noise(held_out):
  mixture = mixtures(held_out, 8)[0]
  seeds = np.array([wish.seed for wish in mixture.wishes]).reshape(3, 3)
  expected = [[seed] * 3 for seed in held_out.seeds[:3].tolist()]
  np.testing.assert_array_equal(seeds, expected)


@pytest.mark.parametrize(('shown', 'side'), [(2, 1), (3, 1), (4, 2), (5, 2), (12, 3)])
def test_a_mixture_lends_only_from_images_that_are_shown(held_out, shown, side):
  for mixture in mixtures(held_out, shown):
    assert len(mixture.rows) == len(mixture.columns) == side
    assert len({*mixture.rows, *mixture.columns}) == 2 * side
    assert max(*mixture.rows, *mixture.columns) < shown


def test_an_image_without_a_condition_does_not_lend_it(partly_silent):
  for mixture in mixtures(partly_silent, 6):
    assert mixture.rows == [0, 1, 2]
    assert mixture.columns == ([3, 5] if mixture.loose == 'caption' else [3, 4, 5])
    assert len(mixture.wishes) == 3 * len(mixture.columns)


def test_a_condition_that_nobody_can_lend_is_not_mixed(records, lookup):
  silent = hold_out([r | {'text': ''} for r in records], NAMES, encoder=lookup.encoder)
  made = mixtures(silent, 6)
  assert {m.loose for m in made} == set(GLOBAL) - {'caption'}


@pytest.mark.parametrize('names', [LOCAL, GLOBAL])
def test_one_kind_of_condition_cannot_be_mixed(records, lookup, names):
  held_out = hold_out(records, names, encoder=lookup.encoder)
  assert mixtures(held_out, 8) == []


def test_a_wish_is_granted_from_its_lender_alone(held_out, lookup):
  wishes = [
    Wish({'palette': 3}, 0),
    Wish({'sketch': 7}, 0),
    Wish({'palette': 5, 'sketch': 5, 'semantics': 5}, 0),
  ]
  images = grant(held_out, lookup.compose, wishes)
  np.testing.assert_array_equal(images, held_out.images[[3, 7, 5]])


def test_what_is_asked_of_the_composer_is_what_the_wishes_name(partly_silent):
  asked = []

  def compose(stored, kept, *, seeds):
    asked.append((stored, kept, seeds))
    return np.zeros((len(seeds), 4, 4, 3), np.uint8)

  wishes = [
    Wish({'caption': 2, 'depth': 6}, 11),
    Wish({'caption': 4}, 12),  # Has no caption, so nothing is asked for.
    Wish({'depth': 8}, 13),
  ]
  assert grant(partly_silent, compose, wishes).shape == (3, 4, 4, 3)
  ((stored, kept, seeds),) = asked
  assert list(stored) == list(kept) == ['caption', 'depth']
  np.testing.assert_array_equal(kept['caption'], [True, False, False])
  np.testing.assert_array_equal(kept['depth'], [True, False, True])
  np.testing.assert_array_equal(seeds, [11, 12, 13])
  given = partly_silent.asked
  np.testing.assert_array_equal(stored['caption'][0], given['caption'][2])
  np.testing.assert_array_equal(stored['depth'][[0, 2]], given['depth'][[6, 8]])
