from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from composer_jax.safetensors_files import open_weights
from composer_jax.weights.mapping import Source, convolution, take, transposed


class Small(nnx.Module):
  """A module with lists, a scalar and a parameter of another type."""

  def __init__(self, rngs):
    self.layers = nnx.List(nnx.Linear(2, 3, rngs=rngs) for _ in range(2))
    self.scale = nnx.Param(jnp.ones(()))
    self.half = nnx.Param(jnp.ones(4, jnp.bfloat16))


SHAPES = nnx.state(nnx.eval_shape(lambda: Small(nnx.Rngs(0))))
SOURCES = {
  ('scale',): Source('s'),
  ('half',): Source('h'),
  **{('layers', i, 'kernel'): Source(f'{i}.weight', transposed) for i in range(2)},
  **{('layers', i, 'bias'): Source(f'{i}.bias') for i in range(2)},
}


def theirs(**changes):
  rng = np.random.default_rng(0)
  shapes = {'s': (), 'h': (4,), '0.weight': (3, 2), '1.weight': (3, 2)}
  shapes |= {'0.bias': (3,), '1.bias': (3,)}
  tensors = {n: rng.normal(size=s).astype(np.float16) for n, s in shapes.items()}
  return {n: x for n, x in (tensors | changes).items() if x is not None}


def taken(folder, tensors, **more):
  save_file(tensors, folder / 'model.safetensors')
  return take(open_weights(folder), SOURCES, SHAPES, **more)


def test_parameters_are_filled_by_name_in_the_dtype_of_the_model(tmp_path):
  tensors = theirs()
  got = taken(tmp_path, tensors)
  assert jax.tree.structure(got) == jax.tree.structure(SHAPES)
  for leaf, shape in zip(jax.tree.leaves(got), jax.tree.leaves(SHAPES), strict=True):
    assert (leaf.shape, leaf.dtype) == (shape.shape, shape.dtype)
    assert leaf.flags.c_contiguous
  np.testing.assert_array_equal(got['scale'][...], tensors['s'])
  np.testing.assert_array_equal(got['half'][...], tensors['h'].astype(jnp.bfloat16))
  for i, layer in got['layers'].items():
    np.testing.assert_array_equal(layer['kernel'][...], tensors[f'{i}.weight'].T)
    np.testing.assert_array_equal(layer['bias'][...], tensors[f'{i}.bias'])


def test_several_tensors_are_stacked_or_laid_side_by_side():
  a, b = np.arange(6.0).reshape(2, 3), np.arange(6.0, 12).reshape(2, 3)
  read = {'a': a, 'b': b}.__getitem__
  stacked = Source(('a', 'b'), transposed).make(read)
  np.testing.assert_array_equal(stacked, np.stack([a.T, b.T]))
  beside = Source(('b', 'a'), transposed, axis=-1).make(read)
  np.testing.assert_array_equal(beside, np.concatenate([b.T, a.T], 1))
  assert beside.shape == (3, 4)


def test_tensors_of_several_shapes_make_no_stack():
  # The second could be repeated to the shape of the first.
  read = {'a': np.zeros((2, 3)), 'b': np.zeros((1, 3))}.__getitem__
  with pytest.raises(ValueError, match=r'\(1, 3\) and \(2, 3\) are in one stack'):
    Source(('a', 'b')).make(read)


def test_a_kernel_of_a_convolution_convolves_as_in_pytorch():
  import torch

  rng = np.random.default_rng(1)
  x, weight = rng.normal(size=(1, 2, 5, 6)), rng.normal(size=(4, 2, 3, 3))
  expected = torch.nn.functional.conv2d(torch.tensor(x), torch.tensor(weight))
  got = jax.lax.conv_general_dilated(
    x.astype(np.float32).transpose(0, 2, 3, 1),
    convolution(weight).astype(np.float32),
    (1, 1),
    'VALID',
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )
  np.testing.assert_allclose(got, expected.permute(0, 2, 3, 1), atol=1e-5)


def test_one_error_lists_all_that_is_missing_unknown_and_wrong(tmp_path):
  changes = {
    's': None,
    '1.bias': None,
    'position_ids': np.arange(3),
    'lora.weight': np.zeros((5, 1), np.float32),
    'other': np.zeros(2, np.float32),
    '0.weight': np.zeros((2, 3), np.float32),
    'h': np.zeros(4, np.int8),
    '1.weight': np.zeros(6, np.float32),
  }
  with pytest.raises(ValueError, match='does not hold the model') as caught:
    taken(tmp_path, theirs(**changes), buffers=['position_ids'])
  message = str(caught.value)
  missing, unknown, wrong = re.fullmatch(
    r'.*; missing: (.*); unknown: (.*); wrong: (.*)\. Take .*', message
  ).groups()
  assert set(missing.split(', ')) == {'s for scale ()', '1.bias for layers/1/bias (3,)'}
  assert unknown == 'lora.weight (5, 1), other (2,)'
  assert '0.weight (2, 3) float32 for layers/0/kernel (2, 3) float32' in wrong
  assert '1.weight (6,) float32 for layers/1/kernel (2, 3) float32' in wrong
  assert 'h (4,) int8 for half (4,) bfloat16' in wrong
  assert wrong.count(' for ') == 3
  assert 'position_ids' not in message


def test_buffers_may_also_be_absent(tmp_path):
  got = taken(tmp_path, theirs(), buffers=['position_ids'])
  assert len(jax.tree.leaves(got)) == 6
