from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.spatial.transform import Rotation, Slerp

from composer_jax.regions import cover
from composer_jax.tasks.parts import between, slerp


def test_slerp_is_that_of_rotations():
  """Unit quaternions are vectors too; SciPy goes between them along the arc."""
  rng = np.random.default_rng(0)
  ends = rng.normal(size=(2, 4))
  ends /= np.linalg.norm(ends, axis=1, keepdims=True)
  if ends[0] @ ends[1] < 0:  # As rotations, q and -q are one.
    ends[1] = -ends[1]
  shares = np.linspace(0, 1, 7)
  wanted = Slerp([0, 1], Rotation.from_quat(ends))(shares).as_quat()
  found = slerp(np.tile(ends[0], (7, 1)), np.tile(ends[1], (7, 1)), shares)
  signs = np.sign((wanted * found).sum(1, keepdims=True))
  np.testing.assert_allclose(found, signs * wanted, atol=1e-6)


def test_lengths_go_linearly_and_equal_ends_stay():
  a, b = np.array([[3.0, 0, 0]]), np.array([[0, 1.0, 0]])
  assert np.linalg.norm(slerp(a, b, np.array([0.25]))) == pytest.approx(2.5)
  np.testing.assert_allclose(slerp(a, a, np.array([0.3])), a)


def test_a_palette_between_two_is_a_mixture():
  a, b = np.eye(180, dtype=np.float32)[:2, None]
  mixed = between('palette', a, b, np.array([0.25]))
  np.testing.assert_allclose(mixed[0, :2], [0.75, 0.25])


def test_nothing_lies_between_two_maps():
  with pytest.raises(ValueError, match='between two values of sketch'):
    between('sketch', np.zeros((1, 2, 2, 1)), np.ones((1, 2, 2, 1)), np.array([0.5]))


@pytest.mark.parametrize(('size', 'side'), [(8, 4), (7, 3), (4, 8), (6, 6)])
def test_a_region_covers_all_that_it_covered(size, side):
  rng = np.random.default_rng(size)
  region = rng.random((2, size, size)) < 0.2
  # At the least common multiple of both sides, every pixel is a block.
  fine = math.lcm(size, side)
  blocks = np.kron(region, np.ones((1, fine // size, fine // size), bool))
  small = blocks.reshape(2, side, fine // side, side, fine // side)
  np.testing.assert_array_equal(cover(region, side), small.any((2, 4)))
