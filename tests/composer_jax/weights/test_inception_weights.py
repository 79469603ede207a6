from __future__ import annotations

import jax
import numpy as np
import pytest
import torch
from flax import nnx
from safetensors.torch import save_file

from composer_jax.weights.inception_weights import read_inception, sources
from composer_jax.weights.mapping import give
from tests.composer_jax.models.inception_reference import ReferenceInception


@pytest.fixture(scope='module')
def published():
  """Tensors by name. Not to be changed."""
  return ReferenceInception().state_dict()


def test_every_tensor_arrives_once_whatever_its_precision(published, tmp_path):
  half = {name: x.half() for name, x in published.items() if x.is_floating_point()}
  save_file(half, tmp_path / 'inception.safetensors')
  state = nnx.state(read_inception(tmp_path / 'inception.safetensors'))
  assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(state))
  assert {x.dtype for x in jax.tree.leaves(state)} == {np.dtype(np.float32)}
  back = give(nnx.to_pure_dict(state), sources(state))
  assert back.keys() == half.keys()
  for name, x in half.items():
    np.testing.assert_array_equal(back[name], x.float(), err_msg=name)


def test_all_that_does_not_fit_is_named_in_one_error(published, tmp_path):
  tensors = dict(published)
  del tensors['Conv2d_1a_3x3.conv.weight'], tensors['Mixed_7c.branch3x3_2b.bn.bias']
  # What torchvision's own network has.
  tensors['AuxLogits.fc.weight'] = torch.zeros(1000, 768)
  tensors['fc.weight'] = torch.zeros(1000, 2048)
  tensors['Mixed_5b.branch1x1.bn.running_var'] = torch.zeros(64, dtype=torch.int32)
  path = tmp_path / 'inception.safetensors'
  save_file(tensors, path)
  with pytest.raises(ValueError, match='missing.*unknown.*wrong') as error:
    read_inception(path)
  message = str(error.value)
  for part in (
    f'{path} does not hold the Inception v3 of FID; missing: ',
    'Conv2d_1a_3x3.conv.weight for Conv2d_1a_3x3/conv/kernel (3, 3, 3, 32)',
    'Mixed_7c.branch3x3_2b.bn.bias for Mixed_7c/branch3x3_2b/bn/bias (384,)',
    'unknown: AuxLogits.fc.weight (1000, 768)',
    'fc.weight (1000, 2048) float32 for fc/kernel (2048, 1008)',
    'Mixed_5b.branch1x1.bn.running_var (64,) int32',
    'Convert pt_inception-2015-12-05-6726825d.pth',
  ):
    assert part in message
  assert 'num_batches_tracked' not in message


@pytest.mark.parametrize('name', ['inception.pth', 'inception.safetensors'])
def test_the_published_pickle_is_refused_with_the_way_out(tmp_path, name):
  torch.save({'fc.bias': torch.zeros(1008)}, tmp_path / name)
  with pytest.raises(ValueError, match='pickle.*save the tensors with safetensors'):
    read_inception(tmp_path / name)


def test_a_file_that_is_not_there_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match='none.safetensors'):
    read_inception(tmp_path / 'none.safetensors')
