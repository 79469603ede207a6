from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from launch import restarts
from launch.local import LocalFleet, supervise
from launch.supervisor import Supervisor

ROOT = pathlib.Path(__file__).parents[2]


def program(tmp_path, body):
  """A command that runs Python, which finds its `index`, `attempt` and `folder`."""
  path = tmp_path / 'program.py'
  path.write_text(
    textwrap.dedent(
      """
      import json, os, pathlib, signal, subprocess, sys, time
      folder = pathlib.Path(__file__).parent
      index = int(os.environ.get('JAX_PROCESS_ID', 0))
      seen = folder / f'attempts-{index}'
      attempt = len(seen.read_text()) + 1 if seen.exists() else 1
      seen.write_text('.' * attempt)

      def meet():
        # Whoever is stopped before its first line has not counted its attempt.
        for i in range(int(os.environ.get('JAX_NUM_PROCESSES', 1))):
          other = folder / f'attempts-{i}'
          while not other.exists() or len(other.read_text()) < attempt:
            time.sleep(0.02)
      """
    )
    + textwrap.dedent(body)
  )
  return [sys.executable, str(path)]


def attempts(tmp_path, index=0):
  return len((tmp_path / f'attempts-{index}').read_text())


def alive(pid):
  """Whether a process runs; one that is only to be waited for does not."""
  try:
    state = pathlib.Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0]
  except FileNotFoundError:
    return False
  return state != 'Z'


def wait_for(what, seconds=10):
  deadline = time.monotonic() + seconds
  while not what():
    assert time.monotonic() < deadline, 'It did not happen in time.'
    time.sleep(0.02)


def test_each_process_knows_its_place_and_they_share_an_address(tmp_path, capfd):
  command = program(
    tmp_path,
    """
    names = ('JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID',
             'JAX_CPU_COLLECTIVES_IMPLEMENTATION', 'JAX_PLATFORMS', 'XLA_FLAGS', 'MINE')
    print(json.dumps({name: os.environ.get(name) for name in names}))
    """,
  )
  code = supervise(
    command,
    3,
    devices_per_process=2,
    logs=tmp_path / 'logs',
    environment={'MINE': 'yes', 'XLA_FLAGS': '--a=1', 'JAX_PLATFORMS': 'cpu'},
  )
  assert code == 0
  logs = [tmp_path / 'logs' / f'process-{i}.log' for i in range(3)]
  told = [json.loads(log.read_text().splitlines()[-1]) for log in logs]
  assert [t['JAX_PROCESS_ID'] for t in told] == ['0', '1', '2']
  assert {t['JAX_NUM_PROCESSES'] for t in told} == {'3'}
  assert len({t['JAX_COORDINATOR_ADDRESS'] for t in told}) == 1
  assert told[0]['JAX_COORDINATOR_ADDRESS'].startswith('127.0.0.1:')
  assert told[1]['JAX_CPU_COLLECTIVES_IMPLEMENTATION'] == 'gloo'
  assert told[1]['XLA_FLAGS'] == '--a=1 --xla_force_host_platform_device_count=2'
  assert told[2]['MINE'] == 'yes'
  # Process 0, and no other, is shown.
  shown = capfd.readouterr().out
  assert json.loads(shown) == told[0]


def test_gpus_are_shared_out(tmp_path):
  command = program(tmp_path, "print(os.environ['CUDA_VISIBLE_DEVICES'])")
  supervise(command, 2, devices_per_process=4, platform='gpu', logs=tmp_path / 'logs')
  logs = [tmp_path / 'logs' / f'process-{i}.log' for i in range(2)]
  assert [log.read_text().split()[-1] for log in logs] == ['0,1,2,3', '4,5,6,7']


def test_one_process_is_an_ordinary_run_even_inside_another_job(tmp_path):
  command = program(tmp_path, "sys.exit('JAX_NUM_PROCESSES' in os.environ)")
  inside = {'JAX_NUM_PROCESSES': '4', 'JAX_PROCESS_ID': '0'}
  assert supervise(command, 1, logs=tmp_path, environment=inside, max_restarts=0) == 0


@pytest.mark.parametrize(
  'death', ['sys.exit(3)', 'os.kill(os.getpid(), signal.SIGKILL)', 'os.abort()']
)
def test_all_start_again_when_one_dies(tmp_path, death):
  command = program(
    tmp_path,
    f"""
    if attempt == 1:
      if index == 1:
        meet()
        {death}
      time.sleep(60)
    """,
  )
  began = time.monotonic()
  assert supervise(command, 3, max_restarts=1, logs=tmp_path / 'logs') == 0
  assert time.monotonic() - began < 20
  assert [attempts(tmp_path, i) for i in range(3)] == [2, 2, 2]
  assert '== attempt 2' in (tmp_path / 'logs' / 'process-0.log').read_text()


def test_it_gives_up_with_the_process_its_code_and_the_end_of_its_log(tmp_path):
  command = program(
    tmp_path,
    """
    print(f'attempt {attempt} of process {index}', flush=True)
    if index == 1:
      meet()
      sys.exit('no such data set')
    time.sleep(60)
    """,
  )
  with pytest.raises(RuntimeError) as error:
    supervise(command, 2, max_restarts=2, logs=tmp_path / 'logs')
  text = str(error.value)
  assert text.startswith(
    'process 1 of 2 ended with exit code 1; gave up after 2 restarts'
  )
  assert 'process-1.log' in text
  assert text.endswith('attempt 3 of process 1\n  no such data set')
  assert 'attempt 2' not in text


def test_a_signal_is_named(tmp_path):
  command = program(tmp_path, 'os.kill(os.getpid(), signal.SIGKILL)')
  with pytest.raises(RuntimeError, match=r'was killed by signal 9 \(SIGKILL\)'):
    supervise(command, 1, max_restarts=0, logs=tmp_path / 'logs')


def test_who_reports_a_hanging_peer_is_not_blamed_and_all_start_again(tmp_path):
  command = program(
    tmp_path,
    """
    if index == 0:
      meet()
      sys.exit(76)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(60)
    """,
  )
  with pytest.raises(RuntimeError, match='process 0 of 2 ended with exit code 76'):
    supervise(command, 2, max_restarts=1, grace_seconds=1, logs=tmp_path / 'logs')
  assert attempts(tmp_path, 1) == 2


def test_being_preempted_is_no_failure_however_often(tmp_path):
  command = program(
    tmp_path,
    """
    def save(*_):
      time.sleep(0.3)
      sys.exit(75)
    signal.signal(signal.SIGTERM, save)
    if attempt <= 4 and index == 0:
      meet()
      sys.exit(75)
    if attempt <= 4:
      time.sleep(60)
    """,
  )
  assert supervise(command, 2, max_restarts=0, logs=tmp_path / 'logs') == 0
  assert [attempts(tmp_path, i) for i in range(2)] == [5, 5]


def test_others_have_their_time_to_save_when_one_was_preempted(tmp_path):
  # Longer than what is left to them after a failure.
  command = program(
    tmp_path,
    """
    if attempt == 1:
      def save(*_):
        time.sleep(3)
        (folder / 'saved').touch()
        sys.exit(75)
      signal.signal(signal.SIGTERM, save)
      if index == 0:
        while not (folder / 'ready').exists():
          time.sleep(0.02)
        sys.exit(75)
      (folder / 'ready').touch()
      time.sleep(60)
    """,
  )
  code = supervise(command, 2, max_restarts=0, grace_seconds=30, logs=tmp_path / 'logs')
  assert code == 0
  assert (tmp_path / 'saved').exists()


def test_one_that_cannot_save_in_time_is_a_failure(tmp_path):
  command = program(
    tmp_path,
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if index == 0:
      while not (folder / 'ready').exists():
        time.sleep(0.02)
      sys.exit(75)
    (folder / 'ready').touch()
    time.sleep(60)
    """,
  )
  with pytest.raises(RuntimeError, match='process 1 of 2 was killed by signal 9'):
    supervise(command, 2, max_restarts=0, grace_seconds=0.5, logs=tmp_path / 'logs')


def start(command, processes, logs, grace=20):
  """A supervisor of its own, as the command line has it."""
  code = (
    'import pathlib, sys; from launch.local import supervise;'
    f' sys.exit(supervise({command!r}, {processes}, grace_seconds={grace},'
    f' logs=pathlib.Path({str(logs)!r})))'
  )
  return subprocess.Popen(
    [sys.executable, '-c', code],
    cwd=ROOT,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
  )


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_all_and_all_may_save(tmp_path, number):
  command = program(
    tmp_path,
    """
    def save(*_):
      (folder / f'saved-{index}').touch()
      sys.exit(75)
    signal.signal(signal.SIGTERM, save)
    signal.signal(signal.SIGINT, save)
    (folder / f'ready-{index}').touch()
    time.sleep(60)
    """,
  )
  running = start(command, 3, tmp_path / 'logs')
  wait_for(lambda: len(list(tmp_path.glob('ready-*'))) == 3)
  running.send_signal(number)
  assert running.wait(20) == restarts.SAVED
  assert len(list(tmp_path.glob('saved-*'))) == 3
  assert attempts(tmp_path) == 1


STUBBORN = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])
(folder / f'pids-{index}').write_text(f'{os.getpid()} {child.pid}')
time.sleep(60)
"""


def pids(tmp_path, processes):
  files = [tmp_path / f'pids-{i}' for i in range(processes)]
  wait_for(lambda: all(f.exists() and len(f.read_text().split()) == 2 for f in files))
  return [int(pid) for f in files for pid in f.read_text().split()]


def test_one_that_ignores_the_signal_is_killed_after_the_grace(tmp_path):
  running = start(program(tmp_path, STUBBORN), 2, tmp_path / 'logs', grace=0.5)
  started = pids(tmp_path, 2)
  running.terminate()
  _, error = running.communicate(timeout=20)
  assert running.returncode == 1
  assert 'was killed by signal 9 (SIGKILL) when asked to stop' in error
  wait_for(lambda: not any(map(alive, started)))


def test_a_second_signal_does_not_wait(tmp_path):
  running = start(program(tmp_path, STUBBORN), 1, tmp_path / 'logs', grace=100)
  started = pids(tmp_path, 1)
  running.terminate()
  time.sleep(0.5)
  assert running.poll() is None
  running.terminate()
  assert running.wait(10) == 1
  wait_for(lambda: not any(map(alive, started)))


def test_nothing_is_left_when_the_supervisor_is_killed_outright(tmp_path):
  running = start(program(tmp_path, STUBBORN), 2, tmp_path / 'logs')
  started = pids(tmp_path, 2)
  assert all(map(alive, started))
  running.kill()
  running.communicate()
  wait_for(lambda: not any(map(alive, started)))


def test_what_a_process_has_started_does_not_outlive_it(tmp_path):
  command = program(
    tmp_path,
    """
    child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])
    (folder / 'pid').write_text(str(child.pid))
    """,
  )
  assert supervise(command, 1, logs=tmp_path / 'logs') == 0
  wait_for(lambda: not alive(int((tmp_path / 'pid').read_text())))


def test_it_can_run_in_another_thread_and_be_stopped_from_outside(tmp_path):
  command = program(tmp_path, "(folder / 'ready').touch(); time.sleep(60)")
  fleet = LocalFleet(command, 2, None, 'cpu', tmp_path / 'logs', {}, False)
  supervisor = Supervisor(fleet, 0, 10, terminal=False)
  codes = []
  thread = threading.Thread(target=lambda: codes.append(supervisor.run()))
  thread.start()
  wait_for((tmp_path / 'ready').exists)
  supervisor.stop()
  thread.join(20)
  assert codes == [restarts.SAVED]


def test_no_more_than_its_own_files_stay_open(tmp_path):
  command = program(tmp_path, 'sys.exit(attempt < 4)')
  before = len(os.listdir('/proc/self/fd'))
  supervise(command, 2, max_restarts=9, logs=tmp_path / 'logs')
  assert len(os.listdir('/proc/self/fd')) <= before + 1


def test_bad_arguments_are_refused_before_anything_starts(tmp_path):
  with pytest.raises(ValueError, match='processes is 0'):
    supervise(['true'], 0, logs=tmp_path)
  with pytest.raises(FileNotFoundError, match='no-such-program'):
    supervise(['no-such-program'], 1, logs=tmp_path)


def test_jax_finds_its_peers_by_the_variables(tmp_path):
  command = program(
    tmp_path,
    """
    import jax, numpy as np
    from jax.experimental import multihost_utils
    jax.distributed.initialize(
      os.environ['JAX_COORDINATOR_ADDRESS'], int(os.environ['JAX_NUM_PROCESSES']), index
    )
    all_of_them = multihost_utils.process_allgather(np.array([index + 1]))
    print(jax.device_count(), jax.local_device_count(), int(all_of_them.sum()))
    """,
  )
  logs = tmp_path / 'logs'
  assert supervise(command, 2, devices_per_process=3, max_restarts=0, logs=logs) == 0
  for index in range(2):
    # Gloo says something too, at any time.
    assert '6 3 3' in (logs / f'process-{index}.log').read_text().splitlines()
