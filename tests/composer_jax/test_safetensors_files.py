from __future__ import annotations

import hashlib
import json
import pickle

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from composer_jax.safetensors_files import open_weights

DTYPES = ['float32', 'float16', 'float64', 'bfloat16', 'int64', 'uint8', 'bool']


def some(dtype, *shape, seed=0):
  values = np.random.default_rng(seed).normal(size=shape) * 3
  return np.asarray(values).astype(dtype)


def write_shards(folder, weight_map=None):
  """Two shards with an index; `weight_map` changes it."""
  shards = {
    'model-00001-of-00002.safetensors': {'a': some('float32', 2, 3)},
    'model-00002-of-00002.safetensors': {'b': some('float16', 4), 'c': np.int64(7)},
  }
  where = {}
  for file, tensors in shards.items():
    save_file({name: np.asarray(x) for name, x in tensors.items()}, folder / file)
    where |= dict.fromkeys(tensors, file)
  index = {'metadata': {'total_size': 40}, 'weight_map': where | (weight_map or {})}
  path = folder / 'model.safetensors.index.json'
  path.write_text(json.dumps(index))
  return path, {name: x for tensors in shards.values() for name, x in tensors.items()}


@pytest.mark.parametrize('dtype', DTYPES)
def test_tensors_are_listed_and_read_as_they_were_saved(tmp_path, dtype):
  saved = {'wide': some(dtype, 3, 5), 'one': some(dtype), 'none': some(dtype, 0, 2)}
  save_file(saved, tmp_path / 'model.safetensors')
  files = open_weights(tmp_path)
  assert set(files.entries) == set(saved)
  for name, expected in saved.items():
    entry, got = files.entries[name], files.read(name)
    assert (entry.shape, entry.dtype) == (expected.shape, expected.dtype)
    assert (got.shape, got.dtype) == (expected.shape, expected.dtype)
    np.testing.assert_array_equal(got, expected)
  assert 'bfloat16' not in dtype or got.dtype == ml_dtypes.bfloat16


def test_a_file_larger_than_memory_is_opened_and_read_in_part(tmp_path):
  large, small = 2**40, some('float32', 6)
  header = {
    'large': {'dtype': 'F32', 'shape': [large // 4], 'data_offsets': [0, large]},
    'small': {'dtype': 'F32', 'shape': [6], 'data_offsets': [large, large + 24]},
  }
  text = json.dumps(header).encode()
  path = tmp_path / 'large.safetensors'
  with path.open('wb') as file:
    file.write(len(text).to_bytes(8, 'little') + text)
    file.seek(large, 1)  # A hole, which takes no space on the disk.
    file.write(small.tobytes())
  files = open_weights(path)
  assert files.entries['large'].shape == (large // 4,)
  np.testing.assert_array_equal(files.read('small'), small)


def test_what_was_read_may_be_changed_and_outlives_the_file(tmp_path):
  save_file({'a': np.ones(5, np.float32)}, tmp_path / 'model.safetensors')
  files = open_weights(tmp_path)
  first = files.read('a')
  first += 1
  np.testing.assert_array_equal(files.read('a'), np.ones(5))
  (tmp_path / 'model.safetensors').unlink()
  np.testing.assert_array_equal(first, np.full(5, 2))


def test_shards_are_one_set_of_tensors(tmp_path):
  path, saved = write_shards(tmp_path)
  for files in (open_weights(path), open_weights(tmp_path)):
    assert set(files.entries) == set(saved)
    for name, expected in saved.items():
      np.testing.assert_array_equal(files.read(name), expected)
    assert files.digests() == {
      p.name: hashlib.sha256(p.read_bytes()).hexdigest()
      for p in tmp_path.glob('*.safetensors')
    }


def test_the_name_that_diffusers_gives_is_found_too(tmp_path):
  save_file({'a': np.zeros(1)}, tmp_path / 'diffusion_pytorch_model.safetensors')
  assert list(open_weights(tmp_path).entries) == ['a']


class Trap:
  """Makes a file when it is loaded, as a hostile pickle may do anything."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return open, (str(self.path), 'w')


@pytest.mark.parametrize(
  'name',
  [
    'pytorch_model.bin',
    'model.pt',
    'clip.pth',
    'last.ckpt',
    'weights.pkl',
    'model.safetensors',  # In truth a pickle.
  ],
)
@pytest.mark.parametrize('writer', ['pickle', 'torch'])
def test_pickles_are_refused_unopened(tmp_path, name, writer):
  sprung = tmp_path / 'sprung'
  if writer == 'pickle':
    (tmp_path / name).write_bytes(pickle.dumps(Trap(sprung)))
  else:
    torch.save({'a': torch.zeros(9), 'b': Trap(sprung)}, tmp_path / name)
  for path in (tmp_path / name, tmp_path):
    with pytest.raises(ValueError, match='runs whatever code it holds') as caught:
      open_weights(path)
    assert str(tmp_path / name) in str(caught.value)
    assert 'weights_only=True' in str(caught.value)
  assert not sprung.exists()


def test_a_folder_with_both_forms_opens_the_safe_one(tmp_path):
  save_file({'a': np.zeros(1)}, tmp_path / 'model.safetensors')
  (tmp_path / 'pytorch_model.bin').write_bytes(pickle.dumps({}))
  assert list(open_weights(tmp_path).entries) == ['a']


@pytest.mark.parametrize('kept', [0, 3, 8, 40, -1])
def test_a_file_that_is_cut_short_is_one_clear_error(tmp_path, kept):
  path = tmp_path / 'model.safetensors'
  save_file({'a': some('float32', 9), 'b': some('float32', 7)}, path)
  path.write_bytes(path.read_bytes()[:kept])
  with pytest.raises(ValueError, match='is damaged, or no safetensors file') as caught:
    open_weights(tmp_path)
  assert str(path) in str(caught.value)


@pytest.mark.parametrize(
  'content',
  [
    b'\xff' * 64,
    (2**40).to_bytes(8, 'little') + b'{}',
    (9).to_bytes(8, 'little') + b'[1, 2, 3]',
    b'<!DOCTYPE html><html>Not found</html>',
  ],
)
def test_a_file_that_holds_something_else_is_one_clear_error(tmp_path, content):
  (tmp_path / 'model.safetensors').write_bytes(content)
  with pytest.raises(ValueError, match=r'model\.safetensors is damaged, or no'):
    open_weights(tmp_path)


def test_a_pointer_of_git_lfs_is_told_from_damage(tmp_path):
  pointer = 'version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n'
  (tmp_path / 'model.safetensors').write_text(pointer)
  with pytest.raises(ValueError, match='fetch the file itself with `git lfs pull`'):
    open_weights(tmp_path)


def test_types_that_are_not_supported_are_named_with_their_tensor(tmp_path):
  header = {'a': {'dtype': 'F8_E5M2', 'shape': [2], 'data_offsets': [0, 2]}}
  text = json.dumps(header).encode()
  path = tmp_path / 'model.safetensors'
  path.write_bytes(len(text).to_bytes(8, 'little') + text + b'\0\0')
  with pytest.raises(
    ValueError, match=r"'a' is of type F8_E5M2; expected any of .*F32"
  ):
    open_weights(path)


def test_all_missing_shards_are_named(tmp_path):
  path, _ = write_shards(tmp_path, {'d': 'far.safetensors', 'e': 'gone.safetensors'})
  with pytest.raises(FileNotFoundError, match='4 files') as caught:
    open_weights(path)
  assert 'which far.safetensors, gone.safetensors are not beside' in str(caught.value)


@pytest.mark.parametrize('astray', ['a', 'd'])
def test_an_index_that_its_files_contradict_is_refused(tmp_path, astray):
  # The first tensor is in the other shard, the other one in none.
  path, _ = write_shards(tmp_path, {astray: 'model-00002-of-00002.safetensors'})
  with pytest.raises(ValueError, match=f'do not belong together: {astray} are not'):
    open_weights(path)


def test_a_tensor_in_two_shards_is_refused(tmp_path):
  path, saved = write_shards(tmp_path)
  save_file(saved | {'c': np.zeros(1)}, tmp_path / 'model-00002-of-00002.safetensors')
  with pytest.raises(ValueError, match="'a' is in .*00001.* and in .*00002"):
    open_weights(path)


@pytest.mark.parametrize(
  'shard', ['../model.safetensors', '/model.safetensors', 'a/b', 7]
)
def test_an_index_may_not_lead_out_of_its_folder(tmp_path, shard):
  path, _ = write_shards(tmp_path, {'a': shard})
  with pytest.raises(
    ValueError, match=r"weight_map\['a'\] is .*; expected the name of"
  ):
    open_weights(path)


@pytest.mark.parametrize('text', ['{"weight_map": ', '{}', '{"weight_map": []}', '[]'])
def test_a_damaged_index_is_one_clear_error(tmp_path, text):
  path, _ = write_shards(tmp_path)
  path.write_text(text)
  with pytest.raises(ValueError, match=r'model\.safetensors\.index\.json'):
    open_weights(tmp_path)


def test_a_folder_without_weights_says_what_was_expected(tmp_path):
  with pytest.raises(
    FileNotFoundError, match='holds no weights; expected one of model'
  ):
    open_weights(tmp_path)
  with pytest.raises(FileNotFoundError, match=r'absent\.safetensors'):
    open_weights(tmp_path / 'absent.safetensors')
