from __future__ import annotations

import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from composer_jax import conditions
from data_pipelines.records import RecordType

TYPE = RecordType(
  {
    'image': ((4, 4, 3), 'uint8'),
    'height': ((4, 4, 1), 'float16'),
    'share': ((5,), 'float32'),
  }
)


def a_record():
  rng = np.random.default_rng(0)
  return {
    'key': 'sub/é.png',
    'text': 'crème brûlée \N{SHORTCAKE}',
    'image': rng.integers(0, 256, (4, 4, 3)).astype(np.uint8),
    'height': np.array([np.nan, -0.0, np.inf, 6e-8] * 4, np.float16).reshape(4, 4, 1),
    # Ends in zero bytes, which NumPy's own byte strings would lose.
    'share': np.array([1e-45, 1, -1, 0, 0], np.float32),
  }


def assert_same(one, two):
  assert one.keys() == two.keys()
  for name, value in one.items():
    if isinstance(value, str):
      assert two[name] == value
    else:
      assert two[name].dtype == value.dtype
      assert two[name].shape == value.shape
      assert two[name].tobytes() == value.tobytes()


def test_what_is_decoded_is_what_was_encoded_to_the_bit():
  assert_same(a_record(), TYPE.decode(TYPE.encode(a_record())))


def test_empty_texts_survive():
  record = a_record() | {'text': '', 'key': ''}
  assert_same(record, TYPE.decode(TYPE.encode(record)))


def test_bytes_do_not_depend_on_the_order_of_the_fields():
  turned = dict(reversed(a_record().items()))
  assert TYPE.encode(turned) == TYPE.encode(a_record())


def test_arrays_need_not_be_contiguous():
  record = a_record()
  mirrored = record | {'image': record['image'][:, ::-1]}
  decoded = TYPE.decode(TYPE.encode(mirrored))
  np.testing.assert_array_equal(decoded['image'], record['image'][:, ::-1])


def test_tfds_reads_what_is_encoded_without_tensorflow():
  read = TYPE.features().deserialize_example_np(TYPE.encode(a_record()))
  read |= {name: read[name].decode() for name in TYPE.texts}
  assert_same(a_record(), read)
  assert 'tensorflow' not in sys.modules


def test_what_tfds_encodes_is_decoded():
  assert_same(a_record(), TYPE.decode(TYPE.features().serialize_example(a_record())))


def test_features_survive_being_saved(tmp_path):
  TYPE.features().save_config(tmp_path)
  loaded = tfds.features.FeaturesDict.from_config(tmp_path)
  read = loaded.deserialize_example_np(TYPE.encode(a_record()))
  np.testing.assert_array_equal(read['share'], a_record()['share'])
  assert read['height'].dtype == np.float16


@pytest.mark.parametrize(
  ('change', 'said'),
  [
    ({'image': np.zeros((4, 5, 3), np.uint8)}, r'image: uint8 \(4, 5, 3\)'),
    ({'share': np.zeros(5)}, r'share: float64 \(5,\), expected float32'),
    ({'extra': np.zeros(1)}, 'extra'),
  ],
)
def test_a_field_of_another_type_is_refused_by_name(change, said):
  with pytest.raises(ValueError, match=said):
    TYPE.encode(a_record() | change)


def test_a_missing_field_is_refused():
  record = a_record()
  del record['share']
  with pytest.raises(ValueError, match='share'):
    TYPE.encode(record)


@pytest.mark.parametrize(
  'damage', [lambda b: b[:-9], lambda b: b'\xff' * 20, lambda b: b'']
)
def test_damaged_bytes_are_refused(damage):
  with pytest.raises(ValueError, match='Prepare|prepare'):
    TYPE.decode(damage(TYPE.encode(a_record())))


def test_the_type_of_prepared_images_follows_the_specs():
  stored = [c for c in conditions.ALL if c.stored and not c.embedded]
  made = RecordType.of(16, stored)
  assert made.arrays['image'] == ((16, 16, 3), 'uint8')
  for condition in stored:
    spec = condition.spec(16)
    assert made.arrays[condition.name] == (spec.shape, spec.dtype)


def test_a_name_cannot_be_both_text_and_array():
  with pytest.raises(ValueError, match='key'):
    RecordType({'key': ((1,), 'uint8')})
