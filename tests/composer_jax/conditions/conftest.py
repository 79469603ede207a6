from __future__ import annotations

import numpy as np
import pytest
import skimage.data

from composer_jax.images import Picture

WIDTH, TOKENS = 768, 77


class RandomProjections:
  """An encoder of the paper's sizes: fixed random maps of pixels and letters.

  Like a trained one, it has an answer for an empty caption too.
  """

  width, num_tokens = WIDTH, TOKENS

  def embed_images(self, images):
    rng = np.random.default_rng(0)
    rows = images[:, ::4, ::4].reshape(len(images), -1).astype(np.float64) - 127.5
    return unit(rows @ rng.normal(size=(rows.shape[1], self.width)))

  def embed_captions(self, captions):
    rng = np.random.default_rng(1)
    table = rng.normal(size=(256, self.width)).astype(np.float32)
    letters = [caption.encode()[:TOKENS].ljust(TOKENS, b'\0') for caption in captions]
    words = table[np.array([list(row) for row in letters])]
    return words, unit(words.sum(axis=1))


def unit(rows):
  return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope='session')
def encoder():
  return RandomProjections()


@pytest.fixture(scope='session')
def photographs():
  """Pictures of 48 x 48 with edges, several parts and many colours."""
  return [
    Picture(np.ascontiguousarray(image()[40:280:5, 100:340:5]))
    for image in (skimage.data.astronaut, skimage.data.chelsea, skimage.data.coffee)
  ]


@pytest.fixture(scope='session')
def pictures(photographs):
  """The photographs, one of them cut out, and what may upset a measurement."""
  y, x = np.indices((48, 48))
  disc = (np.hypot(y - 20, x - 15) < 12) | (np.hypot(y - 35, x - 40) < 6)
  cut_out = Picture(photographs[0].pixels, (disc * 255).astype(np.uint8))
  nothing = Picture(photographs[0].pixels, np.zeros((48, 48), np.uint8))
  noise = np.random.default_rng(0).integers(0, 256, (48, 48, 3), np.uint8)
  flat = [np.full((48, 48, 3), value, np.uint8) for value in (0, 90, 255)]
  return [*photographs, cut_out, nothing, Picture(noise), *map(Picture, flat)]
