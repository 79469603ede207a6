"""Jobs of several real processes, of which some really die."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import time

import pytest

from composer_jax.training import processes as processes_lib
from tests.composer_jax.training.job import PREEMPTED
from tests.forked import Forked

STEPS = 40


def command(workdir, *more):
  return ['tests.composer_jax.training.job', str(workdir), *more]


def environment(devices=1):
  flags = os.environ.get('XLA_FLAGS', '')
  return {
    **os.environ,
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': f'{flags} --xla_force_host_platform_device_count={devices}',
  }


def start(count, *words):
  """Starts the processes of a job, which find each other on this machine."""
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    port = probe.getsockname()[1]
  return [
    Forked(
      command(*words),
      {
        **environment(),
        'JAX_CPU_COLLECTIVES_IMPLEMENTATION': 'gloo',
        'JAX_COORDINATOR_ADDRESS': f'127.0.0.1:{port}',
        'JAX_NUM_PROCESSES': str(count),
        'JAX_PROCESS_ID': str(index),
      },
    )
    for index in range(count)
  ]


def finish(processes):
  """Exit statuses and outputs of processes, once they have ended."""
  try:
    outputs = [process.communicate(timeout=120)[0] for process in processes]
  finally:
    for process in processes:
      process.kill()
  return [process.returncode for process in processes], outputs


def train(count, *words):
  codes, outputs = finish(start(count, *words))
  assert codes == [0] * count, '\n'.join(output[-2000:] for output in outputs)


def losses(workdir):
  path = workdir / 'metrics.jsonl'
  text = path.read_text() if path.exists() else ''
  rows = [json.loads(line) for line in text.splitlines(keepends=True) if '\n' in line]
  return {row['step']: row['loss'] for row in rows}


def wait_for_step(processes, workdir, step):
  """Returns when a job has written the metrics of a step."""
  deadline = time.monotonic() + 120
  while max(losses(workdir), default=0) < step:
    for process in processes:
      assert process.poll() is None, process.read()[-3000:]
    assert time.monotonic() < deadline
    time.sleep(0.02)


def saving(workdir):
  """Whether a checkpoint is being written."""
  folder = workdir / 'checkpoints'
  return folder.exists() and any('tmp' in entry.name for entry in os.scandir(folder))


def test_four_processes_then_two_have_the_losses_of_one_with_four_devices(tmp_path):
  one, many = tmp_path / 'one', tmp_path / 'many'
  alone = Forked(command(one, '8'), environment(4))
  assert finish([alone])[0] == [0], alone.read()[-3000:]
  train(4, many, '6')
  train(2, many, '8')  # Resumed on another mesh, by fewer processes.
  wanted, found = losses(one), losses(many)
  assert sorted(found) == sorted(wanted) == [1, 2, 3, 4, 5, 6, 7, 8]
  for step, loss in found.items():
    assert loss == pytest.approx(wanted[step], rel=1e-5), step


def kill_one(processes):
  """Kills one process without warning; the others cannot go on without it."""
  victim, *others = random.sample(processes, len(processes))
  victim.kill()
  codes, outputs = finish([*others, victim])
  assert not {0, PREEMPTED} & set(codes), outputs


def test_a_job_that_is_killed_and_preempted_ends_with_the_bits_of_an_unbroken_one(
  tmp_path,
):
  unbroken, broken = tmp_path / 'unbroken', tmp_path / 'broken'
  steps = str(STEPS)
  train(4, unbroken, steps)

  processes = start(4, broken, steps)
  time.sleep(random.uniform(0, 3))
  random.choice(processes).kill()  # While it starts; the others wait for it,
  for process in processes:  # and a launcher ends that.
    process.send_signal(signal.SIGTERM)
  codes, _ = finish(processes)
  assert 0 not in codes
  assert not losses(broken)

  processes = start(4, broken, steps)
  wait_for_step(processes, broken, random.randint(2, STEPS // 4))
  kill_one(processes)  # At a random step.

  for _ in range(5):
    if saving(broken):  # It died of it: what it was writing is still there.
      break
    processes = start(4, broken, steps)
    deadline = time.monotonic() + 60
    while not saving(broken) and time.monotonic() < deadline:
      time.sleep(0.001)
    kill_one(processes)
  assert saving(broken)
  killed_at = max(losses(broken))
  assert killed_at < STEPS

  processes = start(4, broken, steps)
  wait_for_step(processes, broken, min(killed_at + 2, STEPS - 4))
  random.choice(processes).send_signal(signal.SIGTERM)  # All stop where one is told.
  codes, outputs = finish(processes)
  assert codes == [PREEMPTED] * 4, outputs

  train(4, broken, steps)
  assert losses(broken) == losses(unbroken)
  assert sorted(losses(broken)) == list(range(1, STEPS + 1))


def test_what_one_process_cannot_read_all_go_without(tmp_path):
  train(2, tmp_path / 'unbroken', '12')
  train(2, tmp_path / 'broken', '8')
  part = tmp_path / 'broken/checkpoints/8/state/ocdbt.process_1/d'
  largest = max(part.iterdir(), key=lambda path: path.stat().st_size)
  os.truncate(largest, largest.stat().st_size // 2)
  codes, outputs = finish(start(2, tmp_path / 'broken', '12'))
  assert codes == [0, 0], outputs
  assert all('checkpoints/8 is damaged' in output for output in outputs)
  assert 'another process cannot read its part of it' in outputs[0]
  assert 'another process' not in outputs[1]
  assert losses(tmp_path / 'broken') == losses(tmp_path / 'unbroken')


def test_a_process_that_hangs_is_named_and_ends_the_others(tmp_path):
  processes = start(2, tmp_path, '10000', '4')
  wait_for_step(processes, tmp_path, 4)
  os.kill(processes[1].pid, signal.SIGSTOP)
  begin = time.monotonic()
  output, _ = processes[0].communicate(timeout=60)
  processes[1].kill()
  finish(processes[1:])
  assert processes[0].returncode == 76, output[-2000:]
  assert 'no step for 4 s: process 1 gives no sign of life' in output
  assert time.monotonic() - begin < 30


@pytest.mark.parametrize(
  ('variables', 'message'),
  [
    ({'JAX_NUM_PROCESSES': '2'}, 'JAX_NUM_PROCESSES is set and JAX_COORDINATOR_ADDR'),
    (
      {
        'JAX_COORDINATOR_ADDRESS': 'a:1',
        'JAX_NUM_PROCESSES': '2',
        'JAX_PROCESS_ID': '2',
      },
      "JAX_NUM_PROCESSES is '2' and JAX_PROCESS_ID '2'; expected",
    ),
  ],
)
def test_a_job_that_is_half_described_is_refused(monkeypatch, variables, message):
  for name, value in variables.items():
    monkeypatch.setenv(name, value)
  with pytest.raises(ValueError, match=message):
    processes_lib.join()
