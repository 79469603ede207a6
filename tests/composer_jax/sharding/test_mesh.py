from __future__ import annotations

import jax
import pytest

from composer_jax.ahead_of_time import open_topology
from composer_jax.sharding.mesh import MeshConfig, make_mesh
from tests.virtual_devices import run_on_devices


def test_minus_one_takes_the_devices_that_are_left():
  mesh = make_mesh(MeshConfig())
  count = jax.device_count()
  assert dict(mesh.shape) == {'data': count, 'fsdp': 1, 'tensor': 1, 'spatial': 1}
  assert MeshConfig(data=2, fsdp=-1, tensor=4).sizes(64) == (2, 8, 4, 1)


@pytest.mark.parametrize(
  ('sizes', 'message'),
  [
    ({'data': 3, 'fsdp': 5}, 'data 3, fsdp 5, tensor 1, spatial 1; expected .* is 8,'),
    ({'fsdp': 16}, 'data -1, fsdp 16, tensor 1, spatial 1; expected .* product is 8'),
    ({'fsdp': -1}, 'Only one of'),
  ],
)
def test_sizes_must_multiply_to_the_devices(sizes, message):
  with pytest.raises(ValueError, match=message):
    MeshConfig(**sizes).sizes(8)


@pytest.mark.parametrize('size', [0, -2])
def test_a_size_is_positive_or_open(size):
  with pytest.raises(ValueError, match=f'config.mesh.tensor is {size}; expected at'):
    MeshConfig(tensor=size)


def test_kernels_are_asked_to_be_at_most_as_good_as_can_be():
  with pytest.raises(ValueError, match='kernel_target is 97; expected 0.5 to 1'):
    MeshConfig(kernel_target=97)


def test_a_batch_is_split_over_data_and_fsdp():
  found = run_on_devices(
    8,
    """
    import json
    import numpy as np
    from composer_jax.sharding.mesh import MeshConfig, batch_placer, make_mesh

    config = MeshConfig(fsdp=4)
    mesh = make_mesh(config)
    put = batch_placer(mesh, config.rules, 8)
    x = put({'x': np.arange(16.0).reshape(8, 2)})['x']
    print(json.dumps({
      'mesh': dict(mesh.shape),
      'rows': sorted(float(s.data[0, 0]) for s in x.addressable_shards),
      'shards': [list(s.data.shape) for s in x.addressable_shards],
    }))
  """,
  )
  assert found['mesh'] == {'data': 2, 'fsdp': 4, 'tensor': 1, 'spatial': 1}
  assert found['rows'] == [0, 2, 4, 6, 8, 10, 12, 14]
  assert found['shards'] == [[1, 2]] * 8


def test_data_lies_along_the_slices_and_all_else_within_one():
  _, devices = open_topology('v5e:2x2', slices=2)
  mesh = make_mesh(MeshConfig(fsdp=2, tensor=2), devices)
  slices = [{d.slice_index for d in part.ravel()} for part in mesh.devices]
  assert slices == [{0}, {1}]
  with pytest.raises(ValueError, match='data is 1; expected a multiple of 2, the numb'):
    make_mesh(MeshConfig(fsdp=8), devices)


def test_an_axis_may_take_part_of_a_dimension_of_the_torus():
  _, devices = open_topology('v6e:4x4')
  mesh = make_mesh(MeshConfig(fsdp=8), devices)
  assert dict(mesh.shape) == {'data': 2, 'fsdp': 8, 'tensor': 1, 'spatial': 1}
  assert len({device.id for device in mesh.devices.ravel()}) == 16
