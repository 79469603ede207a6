"""Training on meshes of eight virtual devices, against a single one."""

from __future__ import annotations

import numpy as np
import pytest

from tests.virtual_devices import run_on_devices

STEPS = 3
MESHES = {
  '1': {},
  '8x1x1': {'data': 8},
  '1x8x1': {'fsdp': 8},
  '2x2x2': {'data': 2, 'fsdp': 2, 'tensor': 2},
}

PROGRAM = """
import json, sys
import jax
import numpy as np
from composer_jax.sharding.mesh import batch_placer, make_mesh
from composer_jax.training.stages import abstract_inputs
from composer_jax.training.step import abstract_state, initial_state, make_step
from tests.composer_jax.training.conftest import small_config
from tests.composer_jax.training.test_meshes import MESHES, STEPS

plain = small_config('')
stage, shapes = abstract_inputs(plain)
begin = jax.device_get(jax.jit(lambda: initial_state(stage, plain)[1])())
rng = np.random.default_rng(0)
batch = {
  name: (255 * rng.random(leaf.shape)).astype(leaf.dtype)
  for name, leaf in shapes.items()
}
found = {}
for name, sizes in MESHES.items():
  rules = {'smallest': 0}
  mesh_sizes = {'data': 1} | sizes | {'rules': rules}
  config = small_config('', mesh=mesh_sizes)
  mesh = make_mesh(config.mesh, jax.devices()[: config.mesh.least])
  stage, _ = abstract_inputs(config)
  _, layout = abstract_state(stage, config, mesh)
  state = jax.tree.map(lambda x, like: jax.device_put(x, like.sharding), begin, layout)
  given = batch_placer(mesh, config.mesh.rules, 8)(batch)
  # Called as it is, it would be compiled again for what it has returned.
  step = make_step(stage, config, mesh).lower(layout, given, np.float32(100)).compile()
  losses = []
  for _ in range(STEPS):
    state, metrics = step(state, given, np.float32(100))
    losses.append(float(metrics['loss']))
  parts = {
    leaf.size // leaf.addressable_shards[0].data.size
    for leaf in jax.tree.leaves(state.opt_state)
  }
  found[name] = {'losses': losses, 'parts': sorted(parts)}
print(json.dumps(found))
"""


@pytest.fixture(scope='module')
def found():
  return run_on_devices(8, PROGRAM)


@pytest.mark.parametrize('mesh', [name for name in MESHES if name != '1'])
def test_the_losses_are_those_of_one_device(found, mesh):
  np.testing.assert_allclose(found[mesh]['losses'], found['1']['losses'], rtol=1e-5)


def test_the_optimiser_is_split_as_far_as_the_mesh_goes(found):
  assert found['1']['parts'] == [1]
  assert found['8x1x1']['parts'] == [1]
  assert max(found['1x8x1']['parts']) == 8
  assert max(found['2x2x2']['parts']) == 4
