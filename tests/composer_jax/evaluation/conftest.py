"""A small composer that can be understood: it looks its answers up."""

import dataclasses
import html.parser
import json
import pathlib
from xml.etree import ElementTree

import numpy as np
import pytest
import skimage.data

from composer_jax import conditions
from composer_jax.evaluation.report import write_report
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

  encoder, prior = BlockColours(), None
  names = tuple(condition.name for condition in conditions.ALL)
  image_size = condition_size = SIZE
  sizes = (SIZE,)
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

  def compose(self, stored, kept=None, *, seeds, size=None, sampling=None):
    assert size in (None, *self.sizes)
    assert not sampling
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


@pytest.fixture(scope='session')
def lookup_type():
  return Lookup


class Tree(html.parser.HTMLParser):
  """A page as a tree of elements; refuses one whose tags do not match."""

  _VOID = ('br', 'img', 'link', 'meta')

  def __init__(self, text):
    super().__init__()
    self._open = [ElementTree.Element('page')]
    self.root = self._open[0]
    self.feed(text)
    self.close()
    assert self._open == [self.root], f'{self._open[-1].tag} is not closed'

  def handle_starttag(self, tag, attrs):
    assert len(dict(attrs)) == len(attrs), f'{tag} has an attribute twice'
    element = ElementTree.SubElement(
      self._open[-1], tag, {name: value or '' for name, value in attrs}
    )
    if tag not in self._VOID:
      self._open.append(element)

  def handle_startendtag(self, tag, attrs):
    self.handle_starttag(tag, attrs)
    if tag not in self._VOID:
      self._open.pop()

  def handle_endtag(self, tag):
    closed = self._open.pop()
    assert closed.tag == tag, f'{closed.tag} is closed as {tag}'

  def handle_data(self, data):
    parent = self._open[-1]
    if len(parent):
      parent[-1].tail = (parent[-1].tail or '') + data
    else:
      parent.text = (parent.text or '') + data


@pytest.fixture(scope='session')
def tree():
  """Reads HTML."""
  return lambda text: Tree(text).root


class Data:
  """Twelve held-out images; names are hostile, and a third have no caption."""

  info = {
    'size': SIZE,
    'source': 'folder:<script>source()</script>',
    'licence': 'CC0',
    'credit': 'NASA & "others" <b>',
    'kept': 1200,
    'rejected': 5,
    'texts': 800,
    'digest': 'c0ffee' * 8,
    'counts': {'by_reason': {'not_an_image': 3, 'truncated': 2}},
    'splits': {'train': {'kept': 1188}, 'test': {'kept': 12}},
  }

  def __init__(self, records):
    self.records = [
      record
      | {
        'key': f'"><img src=x{i} onerror=alert({i})>.png',
        'text': f'<script>alert({i})</script> & "oh{"!" * i}"' if i % 3 else '',
      }
      for i, record in enumerate(records)
    ]

  def __len__(self):
    return len(self.records)

  def __getitem__(self, index):
    return self.records[index]


@pytest.fixture(scope='session')
def data(records):
  return Data(records)


@dataclasses.dataclass
class Written:
  """A report and what it was made from."""

  composer: Lookup
  data: Data
  options: dict
  out: pathlib.Path
  report: dict
  page: ElementTree.Element


@pytest.fixture(scope='session')
def written(data, tmp_path_factory):
  """A report of eight images, four of which are shown. Not to be changed."""
  home = tmp_path_factory.mktemp('report')
  for stage in ('encoder', 'base'):
    (home / 'model' / stage).mkdir(parents=True)
    rows = ({'step': i, 'loss': 1 / i, 'speed': i % 3} for i in range(1, 9))
    lines = ''.join(json.dumps(row) + '\n' for row in rows)
    (home / 'model' / stage / 'metrics.jsonl').write_text(lines)
  composer = Lookup(data.records)
  options = {
    'num_shown': 4,
    'num_measured': 8,
    'seed': 2,
    'progress': False,
    'model_dir': home / 'model',
    'rejected': [
      {'key': 'a<i>.png', 'reason': 'not_an_image', 'message': 'a<i>.png: no image'},
      {'key': 'b.png', 'reason': 'not_an_image', 'message': 'b.png: nor this'},
    ],
    'commands': ["composer-jax report --out '<out>'"],
  }
  report = write_report(composer, data, home / 'out', **options)
  page = Tree((home / 'out' / 'index.html').read_text('utf-8')).root
  return Written(composer, data, options, home / 'out', report, page)
