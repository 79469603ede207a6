from __future__ import annotations

import hashlib
import shutil

import numpy as np
import pytest
from array_record.python import array_record_module

from composer_jax import conditions
from data_pipelines.dataset import load_dataset
from data_pipelines.embed import prepare_onto
from data_pipelines.shard import write_file

EMBEDDED = tuple(c.name for c in conditions.ALL if c.embedded)
PROVENANCE = {'digest': 'abc', 'trained_on': ['these', 'images']}


class SmallEncoder:
  """A fixed random projection of the image and of the caption's hash."""

  width, num_tokens = 6, 3

  def __init__(self, seed=0, breaks_after=None):
    self.weights = np.random.default_rng(seed).normal(size=(12, self.width))
    self.calls, self.breaks_after, self.sizes = 0, breaks_after, set()

  def _unit(self, features):
    projected = features @ self.weights
    return (projected / np.linalg.norm(projected, axis=-1, keepdims=True)).astype('f4')

  def embed_images(self, images):
    self.calls += 1
    self.sizes.add(len(images))
    if self.breaks_after is not None and self.calls > self.breaks_after:
      raise KeyboardInterrupt
    quarters = images.reshape(len(images), 2, -1, 2, images.shape[2] // 2, 3)
    return self._unit(quarters.mean(axis=(2, 4)).reshape(len(images), 12))

  def embed_captions(self, captions):
    digests = [hashlib.sha256(c.encode()).digest()[:12] for c in captions]
    sentence = self._unit(np.array([list(d) for d in digests], np.float32))
    words = np.repeat(sentence[:, None], self.num_tokens, 1)
    return words, sentence


@pytest.fixture
def own(prepared, tmp_path):
  """A copy of the prepared folder that a test may add to."""
  return shutil.copytree(prepared, tmp_path / 'own')


def add(directory, encoder=None, **changes):
  arguments = {'provenance': PROVENANCE, 'batch_size': 4, 'progress': False}
  return prepare_onto(
    directory, EMBEDDED, encoder or SmallEncoder(), **(arguments | changes)
  )


def test_values_are_the_encoders_record_by_record(own):
  add(own)
  encoder = SmallEncoder()
  for split in ('train', 'test'):
    dataset = load_dataset(own, split)
    assert set(EMBEDDED) <= set(dataset.conditions)
    for index in range(len(dataset)):
      record = dataset[index]
      for condition in conditions.by_name(EMBEDDED):
        expected = condition.embed(encoder, record['image'][None], [record['text']])[0]
        assert record[condition.name].dtype == np.float16
        np.testing.assert_allclose(record[condition.name], expected, atol=1e-3)


def test_statistics_of_the_semantics_are_those_of_the_training_images(own):
  made = add(own)
  assert 'statistics' not in made['caption']
  dataset = load_dataset(own, 'train')
  values = np.stack([dataset[i]['semantics'] for i in range(len(dataset))])
  there = dataset.added['semantics']['statistics']
  np.testing.assert_allclose(there['mean'], values.astype('f8').mean(0), atol=1e-6)
  np.testing.assert_allclose(there['std'], values.astype('f8').std(0), atol=1e-6)


def test_the_base_files_are_not_touched(own, prepared, files_of):
  add(own)
  after = files_of(own)
  for name, content in files_of(prepared).items():
    assert after.pop(name) == content
  assert all(name.startswith('added/') for name in after)


def test_all_batches_are_full_so_that_nothing_is_compiled_twice(own):
  encoder = SmallEncoder()
  add(own, encoder)
  assert encoder.sizes == {4}


def test_a_broken_run_is_resumed_to_the_same_bytes(own, prepared, tmp_path, files_of):
  whole = shutil.copytree(prepared, tmp_path / 'whole')
  add(whole)
  with pytest.raises(KeyboardInterrupt):
    add(own, SmallEncoder(breaks_after=4))
  assert not list(own.glob('added/*/added.json'))[1:]
  encoder = SmallEncoder()
  add(own, encoder)
  assert files_of(own) == files_of(whole)
  again = SmallEncoder()
  add(own, again)
  assert again.calls == 0


def test_another_encoder_is_refused_unless_told_to_replace(own, files_of):
  add(own)
  before = files_of(own)
  other = {'digest': 'xyz'}
  with pytest.raises(ValueError, match='abc.*not by.*xyz.*overwrite'):
    add(own, SmallEncoder(1), provenance=other)
  assert files_of(own) == before
  (about, *_) = add(own, SmallEncoder(1), provenance=other, overwrite=True).values()
  assert about['encoder'] == other
  record = load_dataset(own)[0]
  (condition, *_) = conditions.by_name(EMBEDDED)
  expected = condition.embed(SmallEncoder(1), record['image'][None], [record['text']])
  np.testing.assert_allclose(record[condition.name], expected[0], atol=1e-3)


def test_an_unfinished_addition_is_not_there_for_readers(own):
  with pytest.raises(KeyboardInterrupt):
    add(own, SmallEncoder(breaks_after=1))
  with pytest.raises(ValueError, match='has no'):
    load_dataset(own, conditions=EMBEDDED)


def test_additions_to_other_records_are_refused(own):
  add(own)
  info = own / 'dataset.json'
  digest = load_dataset(own, conditions=()).info['digest']
  info.write_text(info.read_text().replace(digest, '0' * 64))
  load_dataset(own, conditions=())
  with pytest.raises(ValueError, match='made for other records'):
    load_dataset(own)


def test_values_of_another_record_are_refused(own):
  add(own)
  home = own / 'added' / EMBEDDED[0]
  path = sorted(home.glob('composer-train*'))[0]
  reader = array_record_module.ArrayRecordReader(str(path))
  write_file(home, path.name, reader.read_all()[::-1], {})
  with pytest.raises(ValueError, match=f'expected .*; add {EMBEDDED[0]} again'):
    load_dataset(own)[0]


def test_a_value_that_is_not_finite_is_refused(own):
  encoder = SmallEncoder()
  encoder.weights[:] = np.nan
  with pytest.raises(ValueError, match='not finite'):
    add(own, encoder)


def test_measured_conditions_are_refused(own):
  measured = next(c.name for c in conditions.ALL if not c.embedded)
  with pytest.raises(ValueError, match=f'{measured} is measured'):
    prepare_onto(own, [measured], SmallEncoder(), provenance={})


def test_an_unprepared_folder_is_refused(tmp_path):
  with pytest.raises(FileNotFoundError, match=r'dataset\.json is missing'):
    add(tmp_path)
