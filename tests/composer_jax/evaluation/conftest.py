"""A small composer that can be understood: it looks its answers up."""

import numpy as np
import pytest
import skimage.data

from composer_jax import conditions
from composer_jax.images import Picture, resize_square

SIZE = 32


class BlockColours:
  """An encoder of 4 x 4 mean colours; of a text it sees only which bytes it has."""

  width = 48
  num_tokens = 5

  def embed_images(self, images):
    count, side = images.shape[:2]
    blocks = images.reshape(count, 4, side // 4, 4, side // 4, 3).mean((2, 4))
    return self._unit(blocks.reshape(count, 48) - 127.5)

  def embed_captions(self, captions):
    rows = [np.bincount([*text.encode()], minlength=256)[:48] + 1 for text in captions]
    sentence = self._unit(np.array(rows, np.float64))
    return np.repeat(sentence[:, None], self.num_tokens, axis=1), sentence

  @staticmethod
  def _unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


class Lookup:
  """A composer that returns, of the images it knows, the one nearest to the wish.

  Without any condition, the seed picks one.
  """

  encoder = BlockColours()
  names = tuple(condition.name for condition in conditions.ALL)
  image_size = condition_size = SIZE
  fingerprint = ('lookup', 1)

  def __init__(self, records):
    self._images = np.stack([record['image'] for record in records])
    texts = [record['text'] for record in records]
    self._known = {
      c.name: c.embed(self.encoder, self._images, texts)
      if c.embedded
      else np.stack([record[c.name] for record in records])
      for c in conditions.ALL
      if c.stored
    }
    self.calls = 0

  def compose(self, stored, kept=None, *, seeds, steps=None, guidance=None):
    self.calls += 1
    distance = np.zeros((len(seeds), len(self._images)))
    for name, wishes in stored.items():
      asked = np.ones(len(seeds), bool) if kept is None else kept[name]
      for row in np.flatnonzero(asked):
        distance[row] += self._distance(name, wishes[row])
    free = np.random.default_rng(int(seeds[0])).uniform(0, 1e-9, distance.shape)
    return self._images[np.argmin(distance + free, axis=1)]

  def _distance(self, name, wish):
    if name in self._known:
      known = self._known[name].astype(np.float64)
    else:  # Drawn from the pixels each time: compare what channels there are.
      known = self._images.astype(np.float64)
      if wish.shape[-1] == 4:
        known, wish = known * (wish[..., 3:] > 0), wish[..., :3]
    axes = tuple(range(1, known.ndim))
    return ((known - wish) ** 2).mean(axes) / (known.var() + 1e-9)


def record(key, text, picture):
  square = resize_square(picture, SIZE)
  rng = np.random.default_rng(0)
  return {'key': key, 'text': text, 'image': square.pixels} | {
    c.name: c.extract(square, rng)
    for c in conditions.ALL
    if c.stored and not c.embedded
  }


@pytest.fixture(scope='session')
def records():
  """Twelve parts of photographs, as a prepared data set would give them."""
  made = []
  for name in ('astronaut', 'chelsea', 'coffee'):
    photograph = getattr(skimage.data, name)()
    for corner in range(4):
      top, left = (corner // 2) * 130, (corner % 2) * 180
      part = Picture(np.ascontiguousarray(photograph[top:, left:][:160, :160]))
      made.append(record(f'{name}-{corner}', f'{name}, part {corner}', part))
  return made


@pytest.fixture
def lookup(records):
  return Lookup(records)
