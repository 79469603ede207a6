from __future__ import annotations

import pytest

from launch import topology


# Figures of Google Cloud's pages on planning TPUs in GKE and on TPU v5e, v5p and v6e.
@pytest.mark.parametrize(
  ('text', 'accelerator_type', 'machine_type', 'hosts', 'per_host'),
  [
    ('v5e:1x1', 'v5litepod-1', 'ct5lp-hightpu-1t', 1, 1),
    ('v5e:2x4', 'v5litepod-8', 'ct5lp-hightpu-8t', 1, 8),
    ('v5e:4x4', 'v5litepod-16', 'ct5lp-hightpu-4t', 4, 4),
    ('v5e:16x16', 'v5litepod-256', 'ct5lp-hightpu-4t', 64, 4),
    ('v6e:2x2', 'v6e-4', 'ct6e-standard-4t', 1, 4),
    ('v6e:16x16', 'v6e-256', 'ct6e-standard-4t', 64, 4),
    ('v5p:2x2x1', 'v5p-8', 'ct5p-hightpu-4t', 1, 4),
    ('v5p:4x4x8', 'v5p-256', 'ct5p-hightpu-4t', 32, 4),
    ('v4:4x4x4', 'v4-128', 'ct4p-hightpu-4t', 16, 4),
  ],
)
def test_slices_are_what_google_cloud_calls_them(
  text, accelerator_type, machine_type, hosts, per_host
):
  found = topology.parse(text)
  assert str(found) == text
  assert found.accelerator_type == accelerator_type
  assert found.machine_type == machine_type
  assert (found.hosts, found.devices_per_host) == (hosts, per_host)


def test_other_hardware_is_hosts_and_devices_of_each():
  gpus = topology.parse('gpu:4x8')
  assert (gpus.hosts, gpus.devices_per_host, gpus.devices) == (4, 8, 32)
  assert topology.parse('cpu:3').shape == (3, 1)


@pytest.mark.parametrize(
  ('text', 'why'),
  [
    ('', 'expected one such as'),
    ('v5e', 'expected one such as'),
    ('v5e:0x4', 'expected one such as'),
    ('v9:4x4', 'expected one of cpu, gpu, v4'),
    ('v5e:4x5', '2x2, 2x4, 4x4'),
    ('v5e:16x32', '2x2, 2x4, 4x4'),
    ('v5p:4x4', 'multiples of 4'),
    ('v5p:8x4x4', 'rising order'),
    ('v5p:64x64x64', '6144 chips'),
    ('gpu:8', 'gpu:HOSTSxDEVICES'),
    ('cpu:1x2x3', 'cpu:HOSTSxDEVICES'),
  ],
)
def test_hardware_that_there_is_not_is_refused_with_what_there_is(text, why):
  with pytest.raises(ValueError, match=why):
    topology.parse(text)


def test_only_tpus_have_accelerator_types():
  with pytest.raises(ValueError, match='has no TPUs'):
    _ = topology.parse('gpu:1x8').accelerator_type
