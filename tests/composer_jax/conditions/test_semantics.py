from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial import distance

from composer_jax.conditions.semantics import (
  Semantics,
  cosine,
  stripes,
  unit_features,
)

RNG = np.random.default_rng(0)


def test_the_stored_value_is_the_image_embedding_in_half_precision(
  encoder, photographs
):
  images = np.stack([picture.pixels for picture in photographs])
  stored = Semantics().embed(encoder, images, ['', 'a', 'b'])
  assert stored.dtype == np.float16
  np.testing.assert_array_equal(stored, encoder.embed_images(images).astype(np.float16))
  np.testing.assert_allclose(
    np.linalg.norm(stored.astype(np.float32), axis=1), 1, atol=1e-3
  )


def test_captions_do_not_matter(encoder, photographs):
  images = photographs[0].pixels[None]
  one, other = (Semantics().embed(encoder, images, [text]) for text in ('', 'cat'))
  np.testing.assert_array_equal(one, other)


def test_an_embedding_of_zeros_counts_as_absent():
  stored = np.zeros((3, 768), np.float16)
  stored[1, 700] = 1e-4
  assert Semantics().present(stored).tolist() == [False, True, False]


@pytest.mark.parametrize('width', [48, 768])
def test_features_have_root_mean_square_one_whatever_the_width(width):
  embedding = RNG.normal(size=(4, width)) * [[0.03], [1], [12], [0]]
  stored = embedding.astype(np.float16).astype(np.float64)
  features = np.asarray(unit_features(embedding.astype(np.float16)))
  assert features.dtype == np.float32
  lengths = np.linalg.norm(stored[:3], axis=1, keepdims=True)
  np.testing.assert_allclose(features[:3], stored[:3] / lengths * width**0.5, rtol=1e-5)
  assert not features[3].any()


def test_semantics_give_a_vector_and_four_extra_tokens_of_the_network():
  stored = np.full((2, 768), 3, np.float16)
  vector, tokens, embedding = Semantics().features(stored)
  assert vector.shape == (2, 768) and tokens is None
  np.testing.assert_array_equal(embedding, stored)
  assert Semantics.extra_tokens == 4


def test_cosine_equals_that_of_scipy_for_half_precision_too():
  for _ in range(5):
    a, b = RNG.normal(size=(2, 100)).astype(np.float16)
    wanted = 1 - distance.cosine(a.astype(float), b.astype(float))
    assert cosine(a, b) == pytest.approx(wanted, abs=1e-12)
    assert Semantics().fidelity(a, b) == {'cosine': cosine(a, b)}


def test_cosine_with_zeros_is_zero():
  assert cosine(np.zeros(4), np.ones(4)) == 0


def test_stripes_are_red_above_zero_and_blue_below_and_pale_at_zero():
  drawn = stripes(np.array([1.0, -1.0, 0.0, 0.5]), height=3, width=8)
  assert drawn.shape == (3, 8, 3) and drawn.dtype == np.uint8
  assert (drawn == drawn[:1]).all()
  up, down, zero, half = drawn[0, ::2].astype(int)
  np.testing.assert_array_equal(drawn[0, 1::2], drawn[0, ::2])
  assert up[0] > up[2] + 50
  assert down[2] > down[0] + 50
  assert zero.min() > 240
  assert up.sum() < half.sum() < zero.sum()


@pytest.mark.parametrize('dtype', ['float16', 'float32'])
def test_stripes_of_an_absent_embedding_are_pale(dtype):
  assert stripes(np.zeros(7, dtype)).min() > 240
