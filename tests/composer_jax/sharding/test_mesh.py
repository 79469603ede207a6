from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import jax
import pytest

from composer_jax.sharding.mesh import make_mesh


def on_eight_devices(code):
  """Runs code in a new process with eight virtual devices; gives what it prints."""
  run = subprocess.run(
    [sys.executable, '-c', textwrap.dedent(code)],
    env={
      'XLA_FLAGS': '--xla_force_host_platform_device_count=8',
      'JAX_PLATFORMS': 'cpu',
    },
    capture_output=True,
    text=True,
    check=True,
  )
  return json.loads(run.stdout)


def test_minus_one_takes_the_devices_that_are_left():
  mesh = make_mesh(-1, 1)
  assert dict(mesh.shape) == {'data': jax.device_count(), 'fsdp': 1}


def test_sizes_must_multiply_to_the_devices():
  with pytest.raises(ValueError, match='3 x 5; expected a product of'):
    make_mesh(3, 5)


def test_only_one_size_can_be_open():
  with pytest.raises(ValueError, match='Only one'):
    make_mesh(-1, -1)


def test_batches_and_weights_are_split_over_eight_devices():
  found = on_eight_devices("""
    import json
    import numpy as np
    from composer_jax.sharding.mesh import make_mesh, put_batch, weight_shardings

    mesh = make_mesh(-1, 4)
    batch = put_batch(mesh, {'x': np.arange(16.0).reshape(8, 2)})['x']
    weights = {'long': np.zeros((3, 8, 64)), 'odd': np.zeros(7), 'scalar': np.zeros(())}
    specs = weight_shardings(mesh, weights)
    print(json.dumps({
      'mesh': dict(mesh.shape),
      'rows': sorted(float(s.data[0, 0]) for s in batch.addressable_shards),
      'shards': [list(s.data.shape) for s in batch.addressable_shards],
      'parts': {n: list(specs[n].shard_shape(weights[n].shape)) for n in weights},
    }))
  """)
  assert found['mesh'] == {'data': 2, 'fsdp': 4}
  assert found['rows'] == [0, 2, 4, 6, 8, 10, 12, 14]
  assert found['shards'] == [[1, 2]] * 8
  assert found['parts'] == {'long': [3, 8, 16], 'odd': [7], 'scalar': []}
