from __future__ import annotations

import jax
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp

from composer_jax.models.layers import Dense
from composer_jax.models.scan import (
  make_layers,
  run_layers,
  stack_layers,
  unstack_layers,
)

WIDTH = 6


class Net(nnx.Module):
  """Dense, tanh and a shift of its own, some layers deep, then a norm."""

  def __init__(self, count: int, scan: bool):
    rngs = nnx.Rngs(0)
    self.blocks = make_layers(
      lambda key: Dense(WIDTH, WIDTH, rngs=nnx.Rngs(key)),
      rngs.params(),
      count,
      scan=scan,
    )
    self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)

  def __call__(self, x, shifts):
    return run_layers(
      self.blocks, lambda layer, x, shift: jnp.tanh(layer(x)) + shift, x, shifts
    )


def params_of(model):
  return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def inputs(count):
  rng = np.random.default_rng(0)
  return (
    rng.normal(size=(4, WIDTH)).astype(np.float32),
    rng.normal(size=(count, WIDTH)).astype(np.float32),
  )


@pytest.mark.parametrize('scan', [False, True])
@pytest.mark.parametrize('count', [1, 3])
def test_layers_follow_one_another_each_with_its_own_weights_and_part(count, scan):
  model = Net(count, scan)
  blocks = params_of(model)['blocks']
  layers = unstack_layers(blocks) if scan else blocks
  assert len(layers) == count
  x, shifts = inputs(count)
  wanted = x
  for index in range(count):
    kernel, bias = (np.asarray(layers[index][name]) for name in ('kernel', 'bias'))
    wanted = np.tanh(wanted @ kernel + bias) + shifts[index]
  np.testing.assert_allclose(model(x, shifts), wanted, atol=1e-6)


def test_new_layers_differ_and_are_the_same_whether_scanned_or_not():
  unrolled, scanned = (params_of(Net(3, scan)) for scan in (False, True))
  jax.tree.map(
    np.testing.assert_array_equal, unstack_layers(scanned, 'blocks'), unrolled
  )
  kernels = np.asarray(scanned['blocks']['kernel'])
  assert np.abs(kernels[0] - kernels[1]).max() > 0.1


def test_gradients_of_the_scan_are_those_of_the_unrolled_layers():
  x, shifts = inputs(3)
  grads = []
  for scan in (False, True):
    grad = nnx.grad(lambda model: jnp.sum(model(x, shifts) ** 2))(Net(3, scan))
    grads.append(nnx.to_pure_dict(grad))
  stacked = stack_layers(grads[0], 'blocks')
  assert np.abs(stacked['blocks']['kernel']).min(axis=(1, 2)).max() > 0
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), stacked, grads[1]
  )


@pytest.mark.parametrize('scan', [False, True])
def test_only_the_scanned_program_is_as_long_for_many_layers_as_for_few(scan):
  def length(count):
    return str(jax.make_jaxpr(Net(count, scan))(*inputs(count))).count('tanh')

  assert (length(2), length(9)) == ((1, 1) if scan else (2, 9))


def test_stacking_and_unstacking_undo_each_other_and_share_the_rest():
  unrolled = params_of(Net(3, False))
  stacked = stack_layers(unrolled, 'blocks')
  assert stacked['blocks']['kernel'].shape == (3, WIDTH, WIDTH)
  assert stacked['norm'] is unrolled['norm']
  again = unstack_layers(stacked, 'blocks')
  jax.tree.map(np.testing.assert_array_equal, again, unrolled)
  twice = stack_layers(again, 'blocks')
  jax.tree.map(np.testing.assert_array_equal, twice, stacked)


@pytest.mark.parametrize('order', [1, -1])
def test_layers_deep_in_a_model_are_stacked_by_number_not_by_order(order):
  layers = {index: {'w': np.full(2, index)} for index in range(12)}
  layers = dict(list(layers.items())[::order])
  stacked = stack_layers({'down': {1: {'blocks': layers}}}, 'down', 1, 'blocks')
  stacked = stacked['down'][1]['blocks']['w']
  np.testing.assert_array_equal(stacked[:, 0], np.arange(12))


def test_a_stacked_model_takes_the_converted_weights_of_an_unrolled_one():
  x, shifts = inputs(3)
  unrolled, scanned = Net(3, False), Net(3, True)
  changed = jax.tree.map(lambda w: w * 1.5 + 0.1, params_of(unrolled))
  nnx.update(unrolled, changed)
  nnx.update(scanned, stack_layers(changed, 'blocks'))
  np.testing.assert_allclose(unrolled(x, shifts), scanned(x, shifts), atol=1e-6)


@pytest.mark.parametrize(
  ('convert', 'params', 'path', 'message'),
  [
    (
      stack_layers,
      {'a': {0: {'w': np.ones(2)}, 1: {'w': np.ones(3)}}},
      ('a',),
      'Layers 0 and 1 of a differ in w; only layers of the same',
    ),
    (
      stack_layers,
      {0: {'w': np.ones(2)}, 1: {'v': np.ones(2)}},
      (),
      'Layers 0 and 1 of params differ in v, w;',
    ),
    (
      stack_layers,
      {'a': {'kernel': np.ones((2, 2))}},
      ('a',),
      "a holds \\['kernel'\\]; expected layers numbered from 0.*stacked already",
    ),
    (stack_layers, {0: {}, 2: {}}, (), 'expected layers numbered from 0'),
    (
      stack_layers,
      {'a': {'b': {}}},
      ('a', 'c'),
      "a holds \\['b'\\]; expected the key 'c'",
    ),
    (
      unstack_layers,
      {'a': {'w': np.ones((2, 3)), 'v': np.ones(3)}},
      ('a',),
      'a holds .*w.*2, 3.*; expected arrays with one common leading layer axis',
    ),
    (unstack_layers, {'a': np.ones(3)}, ('a',), 'a holds ndarray; expected a dict'),
  ],
  ids=['shapes', 'names', 'stacked', 'gap', 'path', 'axes', 'array'],
)
def test_what_has_no_layers_is_refused_by_name(convert, params, path, message):
  with pytest.raises(ValueError, match=message):
    convert(params, *path)
