from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial import distance

from composer_jax.conditions.caption import Caption

CAPTIONS = ['a red fox', '', 'two apples on a table']
IMAGES = np.zeros((3, 16, 16, 3), np.uint8)


@pytest.fixture
def stored(encoder):
  return Caption().embed(encoder, IMAGES, CAPTIONS)


def test_word_states_are_stored_before_the_sentence(encoder, stored):
  assert stored.shape == (3, 78, 768) and stored.dtype == np.float16
  words, sentences = encoder.embed_captions(CAPTIONS)
  for row in (0, 2):
    np.testing.assert_array_equal(stored[row, :77], words[row].astype(np.float16))
    np.testing.assert_array_equal(stored[row, 77], sentences[row].astype(np.float16))


def test_no_caption_is_stored_as_zeros_and_counts_as_absent(encoder, stored):
  # The encoder itself would have had an answer.
  assert np.abs(encoder.embed_captions([''])[0]).min() > 0
  assert (stored[1] == 0).all()
  assert Caption().present(stored).tolist() == [True, False, True]


def test_pixels_do_not_matter(encoder, stored):
  again = Caption().embed(encoder, IMAGES + 99, CAPTIONS)
  np.testing.assert_array_equal(again, stored)


def test_features_are_the_sentence_at_mean_square_one_and_the_words_as_they_are(
  stored,
):
  vector, tokens, embedding = map(np.asarray, Caption().features(stored))
  assert vector.dtype == tokens.dtype == np.float32
  sentences = stored[:, 77].astype('f4')
  np.testing.assert_array_equal(embedding, sentences)
  lengths = np.linalg.norm(sentences, axis=1, keepdims=True)
  wanted = sentences / np.maximum(lengths, 1e-6) * 768**0.5
  np.testing.assert_allclose(vector, wanted, rtol=1e-5)
  np.testing.assert_array_equal(tokens, stored[:, :77])
  np.testing.assert_allclose((vector[[0, 2]] ** 2).mean(axis=1), 1, atol=2e-3)


def test_the_clip_score_is_the_cosine_of_sentence_and_image(encoder, stored):
  rng = np.random.default_rng(0)
  image = encoder.embed_images(rng.integers(0, 256, (1, 16, 16, 3), np.uint8))[0]
  wanted = 1 - distance.cosine(stored[0, 77].astype(float), image.astype(float))
  got = Caption().fidelity(stored[0], image)
  assert got == {'clip_score': pytest.approx(wanted, abs=1e-9)}


def test_an_encoder_whose_words_and_sentences_differ_in_width_is_refused():
  class Uneven:
    def embed_captions(self, captions):
      return np.ones((len(captions), 5, 12)), np.ones((len(captions), 8))

  with pytest.raises(ValueError, match=r'text width \(12\).*width \(8\)'):
    Caption().embed(Uneven(), IMAGES, CAPTIONS)


def test_captions_come_from_text_and_need_no_extra_tokens():
  assert Caption.from_text and Caption.extra_tokens == 0


def test_drawings_tell_captions_apart(stored):
  first, _, third = map(Caption().draw, stored)
  assert (first != third).any(axis=-1).mean() > 0.5
