from __future__ import annotations

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from composer_jax import cli, config_files
from composer_jax.conditions import by_name
from composer_jax.describe import describe, flops_by_argument
from composer_jax.diffusion.process import coefficients
from composer_jax.training.stages import Diffusion

PAPER = {
  # Composer, section 3.1.
  'prior': 1.0e9,
  'base64_stage2': 2.0e9,
  'upsampler256': 1.1e9,
  'upsampler1024': 0.3e9,
}
SMALL = [
  '--config=configs/demo/base.py',
  '--config.model.image_size=16',
  '--config.model.channels=32',
  "--config.model.conditions=('palette','sketch')",
]


@pytest.mark.parametrize('name', PAPER)
def test_paper_sizes_are_those_of_the_paper(name):
  found = describe(config_files.parse([f'--config=configs/paper/{name}.py']))
  assert found.parameters == pytest.approx(PAPER[name], rel=0.03)


def test_parameters_are_those_of_the_model_that_is_made():
  small = config_files.parse(SMALL)
  shapes = {c.name: c.spec(16).shape for c in by_name(small.unet.conditions)}
  model = Diffusion(small, shapes).init(jax.random.key(0))
  leaves = jax.tree.leaves(nnx.state(model))
  found = describe(small)
  assert found.parameters == sum(leaf.size for leaf in leaves)
  assert sorted(row.shape for row in found.rows) == sorted(x.shape for x in leaves)
  assert len({row.path for row in found.rows}) == len(found.rows)


def test_flops_of_a_convolution_and_a_dense_layer_are_known():
  found = describe(config_files.parse(SMALL))
  rows = {row.path: row for row in found.rows}
  # 8 x 8 places, 3 x 3 taps, a multiplication and an addition each.
  kernel = rows['conv_in/kernel']
  assert kernel.flops == 2 * 8 * 8 * math.prod(kernel.shape)
  dense = rows['time_out/kernel']
  assert dense.flops == 2 * math.prod(dense.shape)
  assert rows['conv_in/bias'].flops == 0


def test_all_flops_are_those_that_xla_counts():
  # One level on a large grid, as XLA leaves out the taps that fall on the padding.
  large = config_files.parse(
    [
      *SMALL,
      '--config.model.image_size=48',
      '--config.model.fold=1',
      '--config.model.multipliers=(1,)',
      '--config.model.attention=(True,)',
    ]
  )
  shapes = {c.name: c.spec(48).shape for c in by_name(large.unet.conditions)}
  graph, weights = nnx.split(Diffusion(large, shapes).init(jax.random.key(0)))
  stored = {name: jnp.zeros((1, *shape)) for name, shape in shapes.items()}
  kept = {name: jnp.ones(1, bool) for name in shapes}

  def run(weights):
    x_t, t = jnp.zeros((1, 48, 48, 3)), jnp.zeros(1, jnp.int32)
    c = coefficients(jnp.full(1, 0.5), t, x_t.ndim)
    return nnx.merge(graph, weights)(x_t, t, stored, kept, c=c)

  wanted = jax.jit(run).lower(weights).cost_analysis()['flops']
  assert describe(large).forward_flops == pytest.approx(wanted, rel=0.06)


def test_a_scan_counts_as_often_as_it_runs_and_attention_to_no_weight():
  def function(leaves, x):
    def body(x, _):
      return jnp.tanh(x @ leaves[0].astype(jnp.bfloat16)), None

    x, _ = jax.lax.scan(body, x, length=5)
    return (x @ x.T) @ leaves[1].T.reshape(4, 8)

  shapes = [(8, 8), (8, 4), (4, 8)]
  arrays = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
  x = jax.ShapeDtypeStruct((4, 8), jnp.bfloat16)
  found = flops_by_argument(function, arrays[:2], x)
  assert found == {0: 5 * 2 * 4 * 8 * 8, None: 2 * 4 * 4 * 8, 1: 2 * 4 * 4 * 8}


def test_weights_are_split_over_the_devices_asked_for(capsys):
  mesh = ['--config.mesh.data=1', '--config.mesh.fsdp=-1']
  words = ['describe', *SMALL, *mesh, '--config.mesh.rules.smallest=0']
  assert cli.main([*words, '--devices', '8', '--json']) == 0
  found = json.loads(capsys.readouterr().out)
  assert found['parameters'] == sum(row['parameters'] for row in found['arrays'])
  flops = [row['flops'] for row in found['arrays']]
  assert 0 < sum(flops) < found['forward_flops']
  for row in found['arrays']:
    assert np.prod(row['shape']) == row['parameters']
    split = [n for n, axis in zip(row['shape'], row['sharding'], strict=True) if axis]
    assert len(split) <= 1
    assert all(n % 8 == 0 for n in split)
  assert sum('fsdp' in row['sharding'] for row in found['arrays']) > 20


def test_the_table_ends_with_the_totals(capsys):
  assert cli.main(['describe', *SMALL]) == 0
  lines = capsys.readouterr().out.splitlines()
  found = describe(config_files.parse(SMALL))
  assert lines[0].split()[0] == 'module'
  assert f'{found.parameters:,}' in lines[-1]
  assert any(line.startswith('conditions/branches ') for line in lines)


def test_a_dual_encoder_can_be_described_too():
  found = describe(config_files.parse(['--config=configs/demo/dual_encoder.py']))
  assert any(row.path.startswith('vision_model/') for row in found.rows)
  assert found.forward_flops > 0


def test_devices_that_the_mesh_does_not_fit_are_refused(capsys):
  words = ['describe', *SMALL, '--config.mesh.fsdp=3', '--devices', '8']
  assert cli.main(words) == 1
  assert 'expected sizes whose product is 8' in capsys.readouterr().err
