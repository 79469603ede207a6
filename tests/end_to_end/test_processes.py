"""Jobs of several real processes, of which some really die."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import time

import pytest

from tests.end_to_end.conftest import TINY, command, environment, metrics

STEPS = 24

SMALLEST = [
  *TINY,
  '--config.model.image_size=16',
  '--config.model.multipliers=(1,)',
  '--config.model.attention=(True,)',
  '--config.model.blocks=1',
  "--config.model.conditions=('palette','intensity')",
  '--config.optimizer.name=adamw',
  '--config.train.sample_every=8',
  '--config.sample.steps=2',
]
"""Overrides of a model that each process compiles soon."""


def words(data, workdir, *more, steps=STEPS):
  return [
    'train',
    '--config=configs/demo/base.py',
    f'--workdir={workdir}',
    f'--config.data.path={data}',
    '--config.optimizer.cooldown=0.0',  # It depends on the number of steps.
    f'--config.train.steps={steps}',
    *SMALLEST,
    *more,
  ]


def quick(devices):
  """An environment in which programs are compiled fast."""
  variables = environment(devices)
  variables['XLA_FLAGS'] += ' --xla_backend_optimization_level=0'
  return variables


def start(count, *arguments, devices=1):
  """Starts the processes of a job, which find each other on this machine."""
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    port = probe.getsockname()[1]
  return [
    subprocess.Popen(
      command(*arguments),
      env={
        **quick(devices),
        'JAX_CPU_COLLECTIVES_IMPLEMENTATION': 'gloo',
        'JAX_COORDINATOR_ADDRESS': f'127.0.0.1:{port}',
        'JAX_NUM_PROCESSES': str(count),
        'JAX_PROCESS_ID': str(index),
      },
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for index in range(count)
  ]


def finish(processes, timeout=400):
  """Exit statuses and outputs of processes, once they have ended."""
  try:
    outputs = [process.communicate(timeout=timeout)[0] for process in processes]
  finally:
    for process in processes:
      process.kill()
  return [process.returncode for process in processes], outputs


def train(count, *arguments, devices=1):
  codes, outputs = finish(start(count, *arguments, devices=devices))
  assert codes == [0] * count, '\n'.join(output[-2000:] for output in outputs)


def wait_for_step(processes, workdir, step):
  """Returns when a job has written the metrics of a step."""
  path, deadline = workdir / 'metrics.jsonl', time.monotonic() + 180
  while not path.exists() or path.read_text().count('\n') < step:
    for process in processes:
      assert process.poll() is None, process.stdout.read()[-3000:]
    assert time.monotonic() < deadline
    time.sleep(0.01)


def losses(workdir):
  return {step: row['loss'] for step, row in metrics(workdir).items()}


def test_four_processes_have_the_losses_of_one_with_four_devices(data, tmp_path):
  one, four = tmp_path / 'one', tmp_path / 'four'
  shared = ('--config.mesh.data=2', '--config.mesh.fsdp=2')
  alone = command(*words(data, one, *shared, steps=4))
  done = subprocess.run(alone, env=quick(4), capture_output=True, text=True)
  assert done.returncode == 0, done.stderr[-3000:]
  train(4, *words(data, four, *shared, steps=4))
  wanted, found = losses(one), losses(four)
  assert sorted(found) == sorted(wanted) == [1, 2, 3, 4]
  for step, loss in found.items():
    assert loss == pytest.approx(wanted[step], rel=1e-5), step


def test_a_job_that_is_killed_then_preempted_ends_with_the_bits_of_an_unbroken_one(
  data, tmp_path
):
  unbroken, broken = tmp_path / 'unbroken', tmp_path / 'broken'
  more = ('--config.train.save_every=4', '--preempted-exit-code=75')
  train(2, *words(data, unbroken, *more))
  arguments = words(data, broken, *more)

  processes = start(2, *arguments)
  wait_for_step(processes, broken, random.randint(2, STEPS // 2))
  victim, other = random.sample(processes, 2)
  victim.kill()
  # The other one cannot go on alone.
  codes, _ = finish([other])
  assert codes != [0]
  killed_at = max(losses(broken))
  assert killed_at < STEPS

  processes = start(2, *arguments)
  wait_for_step(processes, broken, killed_at + 1)
  random.choice(processes).send_signal(signal.SIGTERM)  # Both stop where one is told.
  codes, outputs = finish(processes)
  assert codes == [75, 75], outputs
  assert 'saved; run again to go on' in outputs[0]
  assert 'run again' not in outputs[1]

  train(2, *arguments)
  assert losses(broken) == losses(unbroken)
  assert sorted(losses(broken)) == list(range(1, STEPS + 1))


def test_a_process_that_hangs_is_named_and_ends_the_others(data, tmp_path):
  arguments = words(data, tmp_path, '--config.train.hang_seconds=4', steps=10_000)
  processes = start(2, *arguments)
  wait_for_step(processes, tmp_path, 4)
  os.kill(processes[1].pid, signal.SIGSTOP)
  begin = time.monotonic()
  output, _ = processes[0].communicate(timeout=60)
  processes[1].kill()
  finish(processes[1:])
  assert processes[0].returncode == 76, output[-2000:]
  assert 'no step for 4 s: process 1 gives no sign of life' in output
  assert time.monotonic() - begin < 30
