from __future__ import annotations

import base64
import dataclasses
import io
import json
import pickle

import numpy as np
import pytest
import skimage.data
from PIL import Image

import composer_jax
from composer_jax import recipe
from composer_jax.images import Picture, encode_png, png_text
from composer_jax.sampling.expression import Term
from tests.composer_jax.tiny import EMBEDDED, NAMES, SIZE, composer_of


@pytest.fixture(scope='module')
def composer():
  return composer_of()


@pytest.fixture(scope='module')
def stored(composer):
  """A value of each condition; those that an encoder makes are random."""
  photograph = Picture(skimage.data.astronaut())
  rng = np.random.default_rng(0)
  random = {n: rng.normal(size=s).astype(np.float16) for n, s in EMBEDDED.items()}
  return composer.decompose(photograph, seed=1) | random


@pytest.fixture(scope='module')
def full(composer, stored):
  """A recipe with everything in it."""
  return recipe.Recipe(
    model=composer.fingerprint,
    seed=2**32 - 1,
    terms=(Term(1.0, stored), Term(-0.7, {'palette': stored['palette'][::-1]})),
    strengths={'sketch': 0.5},
    windows={'depth': (0.0, 0.6)},
    base={'intensity': stored['intensity']},
    # No short decimal numbers.
    sampling={'steps': 3, 'guidance': 0.1 + 0.2, 'eta': 1 / 3, 'interval': (0.0, 0.9)},
  )


def assert_same(one, two):
  for field in ('model', 'seed', 'strengths'):
    assert getattr(one, field) == getattr(two, field)
  for field in ('windows', 'sampling'):
    ours, theirs = (json.dumps(getattr(side, field)) for side in (one, two))
    assert ours == theirs
  assert [t.weight for t in one.terms] == [t.weight for t in two.terms]
  assert_same_arrays(one.base, two.base)
  for ours, theirs in zip(one.terms, two.terms, strict=True):
    assert_same_arrays(ours.values, theirs.values)


def assert_same_arrays(one, two):
  assert one.keys() == two.keys()
  for name, array in one.items():
    assert two[name].dtype == array.dtype
    assert two[name].shape == array.shape
    assert two[name].tobytes() == array.tobytes()


def plain_recipe(model, conditions, **more):
  return recipe.Recipe(model, 0, (Term(1.0, conditions),), **more)


@pytest.mark.parametrize('name', NAMES)
def test_each_condition_comes_back_from_a_png_bit_by_bit(full, stored, tmp_path, name):
  one = plain_recipe(full.model, {name: stored[name]})
  path = tmp_path / 'made.png'
  path.write_bytes(recipe.to_png(np.zeros((4, 4, 3), np.uint8), one))
  assert_same(one, recipe.from_png(path))


def test_everything_together_comes_back(full, tmp_path):
  path = tmp_path / 'made.png'
  path.write_bytes(recipe.to_png(np.zeros((4, 4, 3), np.uint8), full))
  assert set(full.terms[0].values) == set(NAMES)
  assert_same(full, recipe.from_png(path))


def test_what_was_left_to_the_model_comes_back_as_that(full, tmp_path):
  one = plain_recipe(full.model, {})
  path = tmp_path / 'made.png'
  path.write_bytes(recipe.to_png(np.zeros((4, 4, 3), np.uint8), one))
  assert_same(one, recipe.from_png(path))


def test_the_recipe_leaves_the_pixels_alone(full):
  pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
  with Image.open(io.BytesIO(recipe.to_png(pixels, full))) as image:
    np.testing.assert_array_equal(np.array(image), pixels)


def test_the_recipe_is_text_that_names_what_it_holds(full):
  text = png_text(recipe.to_png(np.zeros((4, 4, 3), np.uint8), full))['composer_jax']
  plain = json.loads(text)
  assert plain['version'] == composer_jax.__version__
  assert plain['seed'] == 2**32 - 1
  assert plain['model'] == full.model
  with np.load(io.BytesIO(base64.b64decode(plain['conditions']))) as arrays:
    first = {f'0.{name}' for name in NAMES}
    assert set(arrays.files) == first | {'1.palette', 'base.intensity'}


def test_pixels_that_stay_come_back_and_are_laid_over_what_is_made(composer, full):
  rng = np.random.default_rng(0)
  kept = rng.integers(0, 256, (SIZE, SIZE, 4), np.uint8)
  kept[..., 3] = 255 * (np.arange(SIZE) < SIZE // 2)
  one = dataclasses.replace(full, kept=kept)
  again = recipe.Recipe.from_json(one.to_json(), 'it')
  np.testing.assert_array_equal(again.kept, kept)
  made, free = recipe.make(composer, again), recipe.make(composer, full)
  half = SIZE // 2
  np.testing.assert_array_equal(made[:, :half], kept[:, :half, :3])
  np.testing.assert_array_equal(made[:, -1], free[:, -1])  # Far from the seam.
  with pytest.raises(ValueError, match='The pixels to keep are'):
    recipe.make(composer, dataclasses.replace(full, kept=kept[1:]))
  damaged = dataclasses.replace(full, kept=kept[..., :3]).to_json()
  with pytest.raises(ValueError, match='pixels to keep that are no image'):
    recipe.Recipe.from_json(damaged, 'it')


def test_a_recipe_makes_the_same_image_again(composer, full, tmp_path):
  path = tmp_path / 'made.png'
  image = recipe.make(composer, full)
  assert image.shape == (SIZE, SIZE, 3)
  assert image.dtype == np.uint8
  path.write_bytes(recipe.to_png(image, full))
  # Another composer, as if another process had loaded the same model.
  again = recipe.make(composer_of(), recipe.from_png(path))
  np.testing.assert_array_equal(again, np.array(Image.open(path)))


def test_all_of_a_recipe_goes_into_the_image(composer, full):
  image = recipe.make(composer, full)
  first, second = full.terms
  changes = [
    {'seed': 1},
    {'strengths': {}},
    {'windows': {}},
    {'base': {}},
    {'terms': (first,)},
    {'terms': (first, Term(0.7, second.values))},
  ]
  for name, value in (('steps', 4), ('guidance', 4.0), ('eta', 0.0)):
    changes.append({'sampling': {**full.sampling, name: value}})
  for name in NAMES:
    rest = {n: array for n, array in first.values.items() if n != name}
    changes.append({'terms': (Term(1.0, rest), second)})
  for change in changes:
    other = recipe.make(composer, dataclasses.replace(full, **change))
    assert (other != image).any(), change.keys()


def test_what_a_recipe_leaves_open_is_the_models_own(composer, full):
  left = dataclasses.replace(full, sampling={})
  spelt = dataclasses.replace(
    full, sampling={'steps': 3, 'guidance': 1.5, 'eta': 0.5, 'sampler': 'ddim'}
  )
  image = recipe.make(composer, left)
  np.testing.assert_array_equal(image, recipe.make(composer, spelt))


@pytest.mark.parametrize('change', [{'seed': 1}, {'guidance': 2.5}])
def test_the_recipe_of_another_model_is_refused(full, change):
  other = composer_of(**change)
  assert other.fingerprint != full.model
  with pytest.raises(ValueError, match=f'for model {full.model:.16}, this one is'):
    recipe.make(other, full)


def test_the_digest_of_a_model_is_the_same_each_time(composer):
  assert composer_of().fingerprint == composer.fingerprint
  assert len(composer.fingerprint) == 64


def test_a_png_without_a_recipe_is_refused(tmp_path):
  path = tmp_path / 'plain.png'
  path.write_bytes(encode_png(np.zeros((4, 4, 3), np.uint8), text={'Title': 'x'}))
  with pytest.raises(ValueError, match='plain.png holds no recipe'):
    recipe.from_png(path)


def test_another_file_is_refused(tmp_path):
  path = tmp_path / 'made.jpg'
  Image.new('RGB', (4, 4)).save(path)
  with pytest.raises(ValueError, match='made.jpg: a JPEG file, expected a PNG'):
    recipe.from_png(path)
  with pytest.raises(FileNotFoundError):
    recipe.from_png(tmp_path / 'absent.png')


def archive_of(**arrays):
  buffer = io.BytesIO()
  np.savez_compressed(buffer, **arrays)
  return buffer.getvalue()


def with_archive(data):
  """A change of a recipe: other bytes where its conditions were."""
  return lambda plain: plain | {'conditions': base64.b64encode(data).decode()}


INTACT = archive_of(**{'0.sketch': np.random.default_rng(0).bytes(3000)})
DAMAGES = {
  'not JSON': lambda plain: '{' + json.dumps(plain),
  'empty': lambda plain: '',
  'a list': lambda plain: json.dumps([plain]),
  'no version': lambda plain: {k: v for k, v in plain.items() if k != 'version'},
  'no seed': lambda plain: {k: v for k, v in plain.items() if k != 'seed'},
  'no conditions': lambda plain: {k: v for k, v in plain.items() if k != 'conditions'},
  'a field too many': lambda plain: plain | {'colour': 'red'},
  'a condition nobody knows': with_archive(archive_of(**{'0.smell': np.zeros(3)})),
  'conditions that are a number': lambda plain: plain | {'conditions': 5},
  'conditions cut off': lambda plain: plain | {'conditions': plain['conditions'][:-9]},
  'an empty archive': with_archive(b''),
  'an archive cut off': with_archive(INTACT[:-100]),
  'no archive': with_archive(b'this is no archive at all'),
  'a single array': with_archive(np.lib.format.magic(1, 0) + b'v\0{}'),
  'a seed that is no number': lambda plain: plain | {'seed': 'seven'},
  'no seed at all': lambda plain: plain | {'seed': None},
  'a term that has no weight': lambda plain: plain | {'weights': [1.0]},
  'no terms': lambda plain: with_archive(archive_of())(plain) | {'weights': []},
  'an array of no term': with_archive(archive_of(sketch=np.zeros(3))),
  'a weight without end': lambda plain: plain | {'weights': [1.0, float('nan')]},
  'a strength that is none': lambda plain: plain | {'strengths': {'sketch': 'much'}},
  'a strength of nothing': lambda plain: plain | {'strengths': {'smell': 1.0}},
  'a window with one end': lambda plain: plain | {'windows': {'depth': [0.5]}},
  'a setting nobody knows': lambda plain: plain | {'sampling': {'speed': 3}},
  'no steps': lambda plain: plain | {'sampling': {'steps': 0}},
  'half a step': lambda plain: plain | {'sampling': {'steps': 1.5}},
}


@pytest.mark.parametrize('damage', DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_recipe_is_refused_and_named(full, damage, tmp_path):
  text = full.to_json()
  assert_same(full, recipe.Recipe.from_json(text, 'intact'))
  damaged = damage(json.loads(text))
  if not isinstance(damaged, str):
    damaged = json.dumps(damaged)
  path = tmp_path / 'made.png'
  pixels = np.zeros((4, 4, 3), np.uint8)
  path.write_bytes(encode_png(pixels, text={'composer_jax': damaged}))
  with pytest.raises(ValueError, match='made.png holds a damaged recipe'):
    recipe.from_png(path)


@pytest.mark.parametrize('flip', [1, 128])
def test_one_wrong_byte_among_the_arrays_is_refused_or_harmless(full, flip):
  arrays = {'palette': np.zeros(180, 'f4'), 'sketch': np.arange(400, dtype='f4') % 7}
  plain = json.loads(plain_recipe(full.model, arrays).to_json())
  archive = base64.b64decode(plain['conditions'])
  directory = archive.index(b'PK\x01\x02')  # Of the archive, after all arrays.
  refused = 0
  for place in range(directory):
    wrong = bytearray(archive)
    wrong[place] ^= flip
    text = json.dumps(with_archive(bytes(wrong))(plain))
    try:
      read = recipe.Recipe.from_json(text, 'x.png').terms[0].values
    except ValueError as error:
      assert 'x.png holds a damaged recipe' in str(error)
      refused += 1
      continue
    assert read.keys() == arrays.keys()
    for name, array in read.items():
      np.testing.assert_array_equal(array, arrays[name])
  assert refused > directory / 2


class Trap:
  """Leaves a file behind when it is unpickled."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return open, (self.path, 'w')


def test_code_in_a_recipe_is_refused_and_not_run(full, tmp_path):
  mark = tmp_path / 'sprung'
  trap = np.empty(1, object)
  trap[0] = Trap(str(mark))
  damaged = with_archive(archive_of(**{'0.sketch': trap}))(json.loads(full.to_json()))
  with pytest.raises(ValueError, match='x.png holds a damaged recipe'):
    recipe.Recipe.from_json(json.dumps(damaged), 'x.png')
  assert not mark.exists()
  pickle.loads(pickle.dumps(trap[0])).close()  # The trap works.
  assert mark.exists()
