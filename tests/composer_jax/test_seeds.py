from __future__ import annotations

import hashlib
import itertools
import os
import subprocess
import sys

import numpy as np
import pytest

from composer_jax.seeds import generator

PURPOSES = [
  (),
  ('',),
  (0,),
  (1,),
  ('1',),
  (True,),
  (-1,),
  (2**80,),
  (1, 2),
  (12,),
  (2, 1),
  ('a', 'bc'),
  ('ab', 'c'),
  ('abc',),
  ('a', 'bc', ''),
  (7, 'photos/é.png', 'mask'),
  (7, 'photos/é.png', 'intensity'),
  (7, 'not utf-8: \udcff', 'mask'),
]


def draws(*purpose):
  return tuple(generator(*purpose).integers(0, 2**63, 4).tolist())


@pytest.mark.parametrize('purpose', PURPOSES, ids=repr)
def test_the_same_purpose_gives_the_same_numbers(purpose):
  assert draws(*purpose) == draws(*purpose)


def test_different_purposes_give_different_numbers():
  for one, two in itertools.combinations(PURPOSES, 2):
    assert draws(*one) != draws(*two), (one, two)


def test_the_numbers_are_those_of_the_written_scheme():
  # A change would give other masks and backgrounds for the same seed.
  digest = hashlib.blake2b(b'int:7\0str:a.png\0str:mask', digest_size=16).digest()
  expected = np.random.default_rng(int.from_bytes(digest, 'little'))
  np.testing.assert_array_equal(
    generator(7, 'a.png', 'mask').random(5), expected.random(5)
  )


@pytest.mark.parametrize('hash_seed', ['1', '2'])
def test_every_process_gives_the_same_numbers(hash_seed):
  # Python's own `hash` of a string differs between these.
  code = (
    'from composer_jax.seeds import generator;'
    "print(*generator(3, 'key', 'mask').integers(0, 2**63, 4))"
  )
  there = subprocess.run(
    [sys.executable, '-c', code],
    env=os.environ
    | {'PYTHONHASHSEED': hash_seed, 'PYTHONPATH': os.pathsep.join(sys.path)},
    capture_output=True,
    text=True,
    check=True,
  ).stdout
  assert tuple(map(int, there.split())) == draws(3, 'key', 'mask')


def test_neighbouring_seeds_are_unrelated():
  values = np.array([generator(seed, 'mask').random(2) for seed in range(2000)])
  assert abs(values.mean() - 0.5) < 0.02
  assert abs(np.corrcoef(values[:-1, 0], values[1:, 0])[0, 1]) < 0.08
