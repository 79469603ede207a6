from __future__ import annotations

import pickle
import shutil

import numpy as np
import pytest

from composer_jax import conditions
from data_pipelines.dataset import load_dataset


def test_records_are_read_at_random(prepared):
  dataset = load_dataset(prepared)
  assert len(dataset) == dataset.info['splits']['train']['kept']
  forward = [dataset[i]['key'] for i in range(len(dataset))]
  assert [dataset[i]['key'] for i in range(-1, -len(dataset) - 1, -1)] == forward[::-1]
  assert len(set(forward)) == len(dataset)
  for index in (len(dataset), -len(dataset) - 1):
    with pytest.raises(IndexError, match=f'of {len(dataset)}'):
      dataset[index]


def test_a_record_has_image_texts_and_conditions(prepared):
  dataset = load_dataset(prepared)
  for index in range(len(dataset)):
    record = dataset[index]
    number = int(record['key'].removesuffix('.png'))
    assert record['text'] == (f'café number {number}' if number % 2 else '')
    assert record['image'].shape == (32, 32, 3)
    for condition in conditions.by_name(dataset.conditions):
      spec = condition.spec(32)
      assert record[condition.name].shape == spec.shape
      assert record[condition.name].dtype == spec.dtype
      assert spec.low <= record[condition.name].min()
      assert record[condition.name].max() <= spec.high


def test_only_the_conditions_asked_for_are_read(prepared):
  one = load_dataset(prepared).conditions[0]
  dataset = load_dataset(prepared, conditions=[one])
  assert dataset.conditions == (one,)
  assert set(dataset[0]) == {'key', 'text', 'image', one}


def test_it_can_be_sent_to_a_worker(prepared):
  dataset = load_dataset(prepared)
  dataset[0]
  sent = pickle.loads(pickle.dumps(dataset))
  np.testing.assert_array_equal(sent[3]['image'], dataset[3]['image'])


def test_what_is_not_there_is_refused_by_name(prepared, tmp_path):
  with pytest.raises(ValueError, match="no split 'dev', only train, test"):
    load_dataset(prepared, 'dev')
  embedded = next(c.name for c in conditions.ALL if c.embedded)
  with pytest.raises(ValueError, match=f"has no '{embedded}', only"):
    load_dataset(prepared, conditions=[embedded])
  with pytest.raises(FileNotFoundError, match='not completely prepared'):
    load_dataset(tmp_path)
  lost = shutil.copytree(prepared, tmp_path / 'lost')
  path = sorted(lost.glob('composer-train*'))[0]
  path.unlink()
  with pytest.raises(FileNotFoundError, match=path.name):
    load_dataset(lost)
