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

STEPS = 16


def words(data, workdir, *more, steps=STEPS):
  return [
    'train',
    '--config=configs/demo/base.py',
    f'--workdir={workdir}',
    f'--config.data.path={data}',
    "--config.model.conditions=('palette','sketch','intensity','mask')",
    '--config.optimizer.cooldown=0.0',  # It depends on the number of steps.
    '--config.optimizer.name=adamw',  # Compiled sooner, as each process does it.
    '--config.model.blocks=1',
    f'--config.train.steps={steps}',
    *TINY,
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


@pytest.fixture(scope='module')
def unbroken(data, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('unbroken')
  train(2, *words(data, workdir, '--config.train.save_every=4'))
  assert sorted(losses(workdir)) == list(range(1, STEPS + 1))
  return workdir


def test_the_number_of_processes_changes_nothing_also_midway(data, tmp_path):
  one, several = tmp_path / 'one', tmp_path / 'several'
  alone = words(data, one, '--config.mesh.fsdp=4', steps=6)
  done = subprocess.run(command(*alone), env=quick(4), capture_output=True, text=True)
  assert done.returncode == 0, done.stderr[-3000:]
  train(4, *words(data, several, '--config.mesh.fsdp=4', steps=3))
  train(2, *words(data, several, '--config.mesh.data=2', steps=6))
  wanted, found = losses(one), losses(several)
  assert sorted(found) == sorted(wanted) == list(range(1, 7))
  for step, loss in found.items():
    assert loss == pytest.approx(wanted[step], rel=1e-5), step


def test_a_job_of_which_one_process_is_killed_goes_on_bit_for_bit(
  data, unbroken, tmp_path
):
  arguments = words(data, tmp_path, '--config.train.save_every=4')
  processes = start(2, *arguments)
  wait_for_step(processes, tmp_path, random.randint(2, STEPS - 4))
  victim, other = random.sample(processes, 2)
  victim.kill()
  # The other one cannot go on alone; whoever started them ends it, at the latest.
  other.terminate()
  finish(processes)
  assert len(losses(tmp_path)) < STEPS
  train(2, *arguments)
  assert losses(tmp_path) == losses(unbroken)


def test_a_signal_to_one_process_saves_in_all_and_says_start_me_again(
  data, unbroken, tmp_path
):
  arguments = words(data, tmp_path, '--preempted-exit-code=75')
  processes = start(2, *arguments)
  wait_for_step(processes, tmp_path, random.randint(2, STEPS // 2))
  random.choice(processes).send_signal(signal.SIGTERM)
  codes, outputs = finish(processes)
  assert codes == [75, 75], outputs
  assert 'saved; run again to go on' in outputs[0]
  assert 'run again' not in outputs[1]
  train(2, *arguments)
  assert losses(tmp_path) == losses(unbroken)


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
