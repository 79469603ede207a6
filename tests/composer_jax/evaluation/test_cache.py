from __future__ import annotations

import numpy as np
import pytest

from composer_jax.evaluation.cache import (
  BLOCK,
  CachedComposer,
  digest_of,
  remembered,
)
from composer_jax.sampling.expression import Term


def test_digests_tell_values_apart():
  ones = np.ones(3)
  values = [
    {},
    {'a': ones},
    {'b': ones},
    {'a': ones.astype('f4')},
    {'a': ones[None]},
    {'a': 0 * ones},
    {'a': {'a': ones}},
    [ones],
    [ones, ones],
    [Term(1.0, {'a': ones})],
    [Term(2.0, {'a': ones})],
    'a',
    1,
    None,
  ]
  assert len({digest_of(value) for value in values}) == len(values)
  assert digest_of({'a': 1, 'b': 2}) == digest_of({'b': 2, 'a': 1})
  with pytest.raises(TypeError):
    digest_of(object())  # Its address would be another one each time.


def test_what_was_made_is_not_made_again(tmp_path):
  calls = []

  def make():
    calls.append(1)
    return np.arange(4)

  path = tmp_path / 'new' / 'a.npy'
  for _ in range(2):
    np.testing.assert_array_equal(remembered(path, make), np.arange(4))
  assert len(calls) == 1
  assert [p.name for p in path.parent.iterdir()] == ['a.npy']


class Counting:
  """A composer whose images say what they were made of."""

  fingerprint = 'counting'

  def __init__(self):
    self.calls = []

  def compose(self, stored, kept, *, seeds, start=None, sampling=None):
    self.calls.append(len(seeds))
    made = stored['a'] + (0 if kept is None else kept['a']) + seeds
    return made + (0 if start is None else start.sum(1)) + (sampling or {}).get('x', 0)

  def invert(self, images, stored):
    self.calls.append('invert')
    return images + stored['a']


def test_blocks_are_remembered_with_all_that_belongs_to_their_rows(tmp_path):
  composer = Counting()
  cached = CachedComposer(composer, tmp_path)
  count = BLOCK + 3
  rows = np.arange(count)
  more = {'seeds': 10 * rows, 'start': np.ones((count, 2)) * rows[:, None]}
  kept = {'a': rows % 2}
  expected = rows + rows % 2 + 10 * rows + 2 * rows
  for _ in range(2):
    np.testing.assert_array_equal(cached.compose({'a': rows}, kept, **more), expected)
  assert composer.calls == [BLOCK, 3]
  cached.compose({'a': rows}, kept, **more, sampling={'x': 1})
  assert composer.calls == [BLOCK, 3] * 2
  # A shorter run finds its first block.
  kept, more = {'a': kept['a'][:BLOCK]}, {n: a[:BLOCK] for n, a in more.items()}
  cached.compose({'a': rows[:BLOCK]}, kept, **more)
  assert composer.calls == [BLOCK, 3] * 2


def test_all_else_is_the_model_itself(tmp_path):
  composer = Counting()
  cached = CachedComposer(composer, tmp_path)
  assert cached.fingerprint == 'counting'
  for _ in range(2):
    np.testing.assert_array_equal(cached.invert(np.ones(2), {'a': np.ones(2)}), [2, 2])
  assert composer.calls == ['invert']
  with pytest.raises(AttributeError):
    _ = cached.unknown
