from __future__ import annotations

import json
import math

import jax
import numpy as np
import pytest

from composer_jax import cli
from composer_jax.ahead_of_time import load_program, save_program

SMALL = [
  '--config=configs/demo/base.py',
  '--config.model.image_size=16',
  '--config.model.channels=128',
  '--config.model.multipliers=(1,)',
  '--config.model.attention=(True,)',
  '--config.model.blocks=1',
  "--config.model.conditions=('palette',)",
  '--config.model.dtype=bfloat16',
  '--config.optimizer.name=adamw',
  '--config.data.batch_size=32',
  '--config.mesh.data=1',
  '--config.mesh.fsdp=-1',
]


@pytest.fixture(autouse=True)
def in_haste():
  """What a program costs to run is not the question here; compiling it is slow."""
  before = jax.config.jax_optimization_level
  jax.config.update('jax_optimization_level', 'O1')
  yield
  jax.config.update('jax_optimization_level', before)


def test_a_train_step_for_four_chips_says_what_it_costs(capsys):
  words = ['compile', *SMALL, '--topology=v5e:2x2', '--json']
  assert cli.main(words) == 0
  found = json.loads(capsys.readouterr().out)
  assert cli.main(['describe', *SMALL, '--json']) == 0
  model = json.loads(capsys.readouterr().out)
  assert found['parameters'] == model['parameters']
  assert found['chips'] == 4
  assert found['fits'] is True
  # Forward and backward, of 8 images a chip; the first layer needs no gradient of x.
  work = 3 * 8 * model['forward_flops']
  assert 0.8 * work < found['flops_per_chip'] < 1.1 * work
  assert found['mfu'] == pytest.approx(
    work / found['estimated_step_seconds'] / 197e12, rel=1e-6
  )
  # Weights, their average, and both moments are split: a quarter on each chip.
  state = 4 * 4 * found['parameters'] / 4
  assert state < found['argument_bytes'] < 1.5 * state
  assert found['collectives']['all-gather']['count'] > 0
  assert found['temporary_bytes'] > 0
  assert found['compile_seconds'] > 0
  # No kernel is faster than the matrix units.
  assert found['kernel_seconds'] > found['flops_per_chip'] / 197e12


def test_a_model_that_trains_on_crops_works_on_no_more_on_two_slices(capsys):
  words = [
    *(*SMALL, '--config.model.conditions=()', '--config.data.batch_size=64'),
    *('--config.mesh.data=2', '--config.mesh.fsdp=4'),
    '--config.model.palette_map=False',
  ]
  crops = ['--config.diffusion.crop=8', '--config.model.low_res_size=8']
  slices = ['--topology=v5e:2x2', '--slices=2']
  assert cli.main(['compile', *words, *crops, *slices, '--json']) == 0
  found = json.loads(capsys.readouterr().out)
  whole = ['--config.model.image_size=8', '--config.model.low_res_size=4']
  assert cli.main(['describe', *words, *whole, '--json']) == 0
  model = json.loads(capsys.readouterr().out)
  assert found['parameters'] == model['parameters']
  assert found['chips'] == 8
  assert found['collectives']['all-reduce']['count'] > 0
  work = 3 * 8 * model['forward_flops']
  # Of whole images it would be four times as much; the smallest products are no longer
  # products once compiled.
  assert 0.7 * work < found['flops_per_chip'] < 1.1 * work
  assert found['mfu'] == pytest.approx(
    work / found['estimated_step_seconds'] / 197e12, rel=1e-6
  )


def test_slices_are_counted_from_one(capsys):
  with pytest.raises(SystemExit):
    cli.main(['compile', *SMALL, '--topology=v5e:2x2', '--slices=0'])
  assert '--slices is 0; expected 1 or more' in capsys.readouterr().err


def test_what_does_not_fit_is_told_by_the_exit_status(capsys, monkeypatch):
  from composer_jax import ahead_of_time

  tight = ahead_of_time.Chip(197e12, 819e9, memory=1e6, clock=1.5e9)
  monkeypatch.setitem(ahead_of_time.CHIPS, 'v5e', tight)
  words = ['compile', *SMALL, '--topology=v5e:2x2', '--what=sample']
  assert (
    cli.main([*words, '--config.data.batch_size=4', '--config.sample.steps=2']) == 1
  )
  assert 'does NOT fit' in capsys.readouterr().out


@pytest.mark.parametrize('topology', ['v7x:2x2', 'v5e:5x1000'])
def test_unknown_topologies_are_refused(topology, capsys):
  assert cli.main(['compile', *SMALL, f'--topology={topology}']) == 1
  error = capsys.readouterr().err
  assert f"--topology is '{topology}'" in error
  assert 'v5p:4x4x8' in error or 'v5e:16x16' in error


def test_a_program_that_was_saved_gives_the_same_numbers(tmp_path):
  def function(x):
    return {'y': x * 2 + 1}

  x = np.arange(6.0, dtype=np.float32)
  compiled = jax.jit(function).lower(x).compile()
  save_program(compiled, tmp_path / 'program')
  again = load_program(tmp_path / 'program', ((x,), {}), {'y': x})
  np.testing.assert_array_equal(again(x)['y'], function(x)['y'])
  assert math.prod(again(x)['y'].shape) == 6
