from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from composer_jax.sharding.mesh import MeshConfig, abstract_mesh, make_mesh
from composer_jax.sharding.rules import (
  AxisRules,
  constrain,
  laid_out,
  partition,
  weight_shardings,
)

MESH = abstract_mesh(MeshConfig(data=2, fsdp=4, tensor=2, spatial=1), 16)


@pytest.mark.parametrize(
  ('axes', 'shape', 'expected'),
  [
    (('batch', None, 'hidden'), (8, 8, 6), (('data', 'fsdp'), None, 'tensor')),
    (('batch', 'rows', None, None), (8, 8, 8, 6), (('data', 'fsdp'), *[None] * 3)),
    (('features', 'hidden'), (3, 3, 8, 6), (None, None, 'fsdp', 'tensor')),
    (('features', 'features'), (8, 8), ('fsdp', None)),
    (('features', 'features'), (6, 8), (None, 'fsdp')),
    (('features', 'hidden'), (6, 5), (None, None)),
    (('batch',), (4,), (None,)),
    ((), (8, 8), (None, None)),
  ],
)  # fmt: skip
def test_axes_are_split_as_far_as_sizes_allow(axes, shape, expected):
  assert partition(axes, shape, AxisRules(), MESH) == P(*expected)


def test_another_table_is_another_layout():
  rules = AxisRules(features=('data', 'fsdp'), hidden=())
  assert partition(('features', 'hidden'), (16, 8), rules, MESH) == P(
    ('data', 'fsdp'), None
  )


def test_unknown_axes_of_the_mesh_are_refused():
  with pytest.raises(ValueError, match="rules.rows names 'space'; expected axes of"):
    AxisRules(rows=('space',))


class Layers(nnx.Module):
  def __init__(self):
    self.kernel = nnx.Param(jnp.zeros((256, 256)), axes=('features', 'hidden'))
    self.small = nnx.Param(jnp.zeros((8, 8)), axes=('features', 'hidden'))
    self.bias = nnx.Param(jnp.zeros(256))


def specs(state, rules):
  found = jax.tree_util.tree_leaves_with_path(weight_shardings(MESH, state, rules))
  return {path[0].key: sharding.spec for path, sharding in found}


def test_large_parameters_with_names_are_split_stacked_or_not():
  for build, lead in (
    (Layers, ()),
    (lambda: nnx.vmap(lambda _: Layers())(jnp.arange(3)), (None,)),
  ):
    state = nnx.state(nnx.eval_shape(build))
    found = specs(state, AxisRules())
    assert found['kernel'] == P(*lead, 'fsdp', 'tensor')
    assert found['small'] == P(*lead, None, None)
    assert found['bias'] == P(*lead, None)
    found = specs(state, AxisRules(smallest=0))
    assert found['small'] == P(*lead, 'fsdp', 'tensor')


def test_activations_are_constrained_only_within_a_layout():
  mesh = make_mesh(MeshConfig())

  def double(x):
    return 2 * constrain(x, 'batch', None)

  def double_laid_out(x):
    with laid_out(mesh, AxisRules()):
      return double(x)

  x = np.ones((4, 3), np.float32)
  assert 'sharding_constraint' not in str(jax.make_jaxpr(double)(x))
  assert 'sharding_constraint' in str(jax.make_jaxpr(double_laid_out)(x))
  np.testing.assert_array_equal(jax.jit(double_laid_out)(x), 2 * x)
