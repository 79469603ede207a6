from __future__ import annotations

import numpy as np
import pytest
import skimage.data

from composer_jax.composer import Composer, decompose, square_of
from composer_jax.images import Picture
from composer_jax.trained import load_encoder
from tests.composer_jax.tiny import (
  NAMES,
  SIZE,
  TOKENS,
  WIDTH,
  composer_of,
  denoising,
)

ASTRONAUT = Picture(skimage.data.astronaut())


@pytest.fixture(scope='module')
def composer():
  return composer_of()


def stored_of(composer, count):
  found = composer.decompose(ASTRONAUT)
  return {name: np.repeat(value[None], count, 0) for name, value in found.items()}


def test_absent_conditions_and_dropped_ones_are_the_same(composer):
  stored = stored_of(composer, 2)
  few = {name: stored[name] for name in ('palette', 'sketch')}
  seeds = np.array([1, 2])
  kept = {name: np.full(2, name in few) for name in stored}
  np.testing.assert_array_equal(
    composer.compose(few, seeds=seeds), composer.compose(stored, kept, seeds=seeds)
  )


def test_more_images_than_a_batch_equal_those_of_their_seeds(composer):
  count = 40
  stored = {'palette': stored_of(composer, count)['palette']}
  seeds = np.arange(count)
  images = composer.compose(stored, seeds=seeds, sampling={'steps': 1})
  assert images.shape == (count, SIZE, SIZE, 3)
  last = composer.compose(
    {'palette': stored['palette'][33:]}, seeds=seeds[33:], sampling={'steps': 1}
  )
  # Sums in another order round differently, by a gray level at most.
  assert np.abs(images[33:].astype(int) - last).max() <= 1


def test_an_unknown_condition_and_a_wrong_shape_are_named(composer):
  with pytest.raises(ValueError, match=r"no condition 'smell'; it knows caption"):
    composer.compose({'smell': np.zeros((1, 3))}, seeds=np.array([0]))
  with pytest.raises(ValueError, match=r'palette has shape \(1, 3\).*\(1, 180\)'):
    composer.compose({'palette': np.zeros((1, 3))}, seeds=np.array([0]))


def test_a_caption_needs_an_encoder(composer):
  with pytest.raises(ValueError, match='needs a model with a dual encoder'):
    composer.embed_caption('a cup')


def test_the_middle_is_cut_out_and_transparency_goes_over_white():
  pixels = np.zeros((20, 40, 3), np.uint8)
  pixels[:, 10:30] = 200
  alpha = np.full((20, 40), 255, np.uint8)
  alpha[:10] = 0
  square = square_of(Picture(pixels, alpha), 20)
  np.testing.assert_array_equal(square.pixels[:10], 255)
  np.testing.assert_array_equal(square.pixels[10:], 200)


def test_decomposing_is_the_same_each_time_and_draws_by_seed():
  first, again, other = (decompose(ASTRONAUT, 32, seed=seed) for seed in (1, 1, 2))
  assert set(first) == set(NAMES) - {'caption', 'semantics'}
  for name in first:
    np.testing.assert_array_equal(first[name], again[name])
  np.testing.assert_array_equal(first['sketch'], other['sketch'])
  assert (first['mask'] != other['mask']).any()


@pytest.mark.parametrize(
  ('large', 'message'),
  [
    ({'model': {'image_size': 16, 'low_res_size': 4}}, 'from 4 pixels, .* gives 8'),
    (
      {'model': {'image_size': 16, 'low_res_size': 8}, 'names': ('depth',)},
      'knows depth, which the base model does not',
    ),
    (
      {'model': {'image_size': 16, 'low_res_size': 8}, 'maps': 16},
      r'takes sketch as \(16, 16, 1\), the base model as \(8, 8, 1\)',
    ),
  ],
)
def test_stages_that_do_not_fit_are_refused(large, message):
  base = denoising(names=('palette', 'sketch'))
  with pytest.raises(ValueError, match=message):
    Composer([base, denoising(**({'names': ('sketch',)} | large))], None)


@pytest.fixture(scope='module')
def cascade():
  """A base model and two upsamplers, the last of which sees no condition."""
  first = {'image_size': 16, 'low_res_size': 8}
  second = {'image_size': 32, 'low_res_size': 16, 'fold': 4}
  names = ('palette', 'sketch')
  stages = [denoising(names=names), denoising(1, ('sketch',), first)]
  return Composer([*stages, denoising(2, (), second)], None)


def test_a_smaller_size_is_what_the_next_stage_begins_with(cascade):
  assert cascade.sizes == (8, 16, 32)
  stored = stored_of(cascade, 2)
  wish = {name: stored[name] for name in ('palette', 'sketch')}
  seeds = np.array([3, 4])
  sides = [
    cascade.compose(wish, seeds=seeds, size=size).shape[1] for size in cascade.sizes
  ]
  assert sides == [8, 16, 32]
  shorter = Composer(list(cascade.stages[:2]), None)
  np.testing.assert_array_equal(
    cascade.compose(wish, seeds=seeds, size=16), shorter.compose(wish, seeds=seeds)
  )
  with pytest.raises(ValueError, match='size is 12; expected one of 8, 16, 32'):
    cascade.compose(wish, seeds=seeds, size=12)


class Letters:
  """An encoder with an answer for an empty caption too."""

  width, num_tokens = WIDTH, TOKENS

  def embed_captions(self, captions):
    table = np.random.default_rng(0).normal(size=(256, WIDTH))
    codes = [list(text.encode()[:TOKENS].ljust(TOKENS, b'.')) for text in captions]
    words = table[np.array(codes)]
    return words, words.sum(axis=1)


def test_where_models_learned_so_no_caption_is_the_empty_one():
  encoder, seeds = Letters(), np.array([1, 2])
  blank = np.concatenate(
    [part[0].reshape(-1, WIDTH) for part in encoder.embed_captions([''])]
  )
  semantics = np.random.default_rng(1).normal(size=(2, WIDTH)).astype(np.float16)
  caption = np.stack([blank.astype(np.float16)] * 2)
  wish = {'semantics': semantics}
  empty = Composer([denoising(empty_caption=True)], encoder)
  dropped = Composer([denoising()], encoder)
  made = empty.compose(wish, seeds=seeds)
  wanted = dropped.compose(
    {**wish, 'caption': caption}, base={'caption': caption}, seeds=seeds
  )
  np.testing.assert_array_equal(made, wanted)
  assert (made != dropped.compose(wish, seeds=seeds)).any()


def test_tiles_are_for_the_upsamplers():
  base = denoising(names=('sketch',))
  large = denoising(names=('sketch',), model={'image_size': 16, 'low_res_size': 8})
  tiles = {'tile': 8, 'overlap': 4}
  composer = Composer([base, large], None)
  wish = {'sketch': stored_of(composer, 1)['sketch']}
  whole = composer.compose(wish, seeds=np.array([1]))
  tiled = composer.compose(wish, seeds=np.array([1]), sampling=tiles)
  assert (tiled != whole).any()
  with pytest.raises(ValueError, match=r'tile is 8, .*; expected tile 0 .* base model'):
    Composer([base], None).compose(wish, seeds=np.array([1]), sampling=tiles)


def test_folders_without_a_model_are_clear_errors(tmp_path):
  with pytest.raises(FileNotFoundError, match='holds no base/ folder'):
    Composer.load(tmp_path)
  (tmp_path / 'base').mkdir()
  with pytest.raises(FileNotFoundError, match=r'config.json does not exist'):
    Composer.load(tmp_path)
  with pytest.raises(FileNotFoundError, match=r'config.json does not exist'):
    load_encoder(tmp_path)
  (tmp_path / 'base' / 'config.json').write_text('{"stage": "diff')
  with pytest.raises(ValueError, match=r'config.json is damaged'):
    Composer.load(tmp_path)
