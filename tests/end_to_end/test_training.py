from __future__ import annotations

import random
import signal
import subprocess
import time

import pytest

from tests.end_to_end.conftest import (
  TINY_BASE,
  command,
  environment,
  metrics,
  run_here,
)

STEPS = 24


def words(data, workdir, *more):
  return [
    'train',
    '--config=configs/demo/base.py',
    f'--workdir={workdir}',
    f'--config.data.path={data}',
    "--config.model.conditions=('palette','mask')",
    '--config.optimizer.cooldown=0.0',  # It depends on the number of steps.
    '--config.train.sample_every=0',
    *TINY_BASE,
    '--config.data.batch_size=8',
    *more,
  ]


def losses(workdir):
  return {step: row['loss'] for step, row in metrics(workdir).items()}


@pytest.fixture(scope='module')
def unbroken(data, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('unbroken')
  run_here(*words(data, workdir, f'--config.train.steps={STEPS}'))
  assert sorted(losses(workdir)) == list(range(1, STEPS + 1))
  return workdir


def start(data, workdir, least):
  """Starts a run and returns when it has come to a random step, not below `least`."""
  more = (f'--config.train.steps={STEPS}', '--config.train.save_every=6')
  process = subprocess.Popen(
    command(*words(data, workdir, *more)),
    env=environment(),
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )
  wanted = random.randint(least, least + STEPS // 4)
  deadline = time.monotonic() + 120
  path = workdir / 'metrics.jsonl'
  while not path.exists() or path.read_text().count('\n') < wanted:
    assert process.poll() is None, process.stdout.read()[-3000:]
    assert time.monotonic() < deadline
    time.sleep(0.01)
  return process


def test_a_run_stopped_and_killed_at_random_steps_goes_on_bit_for_bit(
  data, unbroken, tmp_path
):
  process = start(data, tmp_path, 2)
  process.send_signal(signal.SIGTERM)
  output, _ = process.communicate(timeout=60)
  assert process.returncode == 0, output[-3000:]
  assert 'saved; run again to go on' in output
  stopped = len(losses(tmp_path))
  assert stopped < STEPS
  process = start(data, tmp_path, stopped + 2)
  process.kill()
  process.communicate(timeout=60)
  assert process.returncode == -signal.SIGKILL
  assert len(losses(tmp_path)) < STEPS
  run_here(*words(data, tmp_path, f'--config.train.steps={STEPS}'))
  assert losses(tmp_path) == losses(unbroken)


def test_a_workdir_of_another_model_is_refused_with_the_difference(data, unbroken):
  other = command(*words(data, unbroken), '--config.model.channels=8')
  done = subprocess.run(other, env=environment(), capture_output=True, text=True)
  assert done.returncode == 1
  assert 'model.channels: 16 there, 8 asked' in done.stderr
  assert 'Traceback' not in done.stderr
