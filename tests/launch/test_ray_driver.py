"""On a real cluster of two nodes, both on this machine."""

from __future__ import annotations

import os
import signal
import sys
import textwrap
import threading
import time

import pytest

ray = pytest.importorskip('ray')
from ray.cluster_utils import Cluster  # noqa: E402

from launch import ray_driver, restarts, topology  # noqa: E402
from launch.supervisor import Supervisor  # noqa: E402


@pytest.fixture(scope='module')
def cluster():
  made = Cluster(initialize_head=True, head_node_args={'num_cpus': 1})
  made.add_node(num_cpus=1)
  ray.init(address=made.address, log_to_driver=False)
  yield made
  ray.shutdown()
  made.shutdown()


def supervisor(tmp_path, body, max_restarts=0, environment=None):
  """Runs Python on each host, which finds its `index`, `attempt` and `folder`."""
  path = tmp_path / 'program.py'
  path.write_text(
    textwrap.dedent(
      """
      import os, pathlib, signal, sys, time
      folder = pathlib.Path(__file__).parent
      index = int(os.environ.get('JAX_PROCESS_ID', 0))
      seen = folder / f'attempts-{index}'
      attempt = len(seen.read_text()) + 1 if seen.exists() else 1
      seen.write_text('.' * attempt)
      """
    )
    + textwrap.dedent(body)
  )

  fleet = ray_driver.RayFleet(
    [sys.executable, str(path)], topology.parse('cpu:2'), environment or {}
  )
  return Supervisor(fleet, max_restarts, grace_seconds=20)


def attempts(tmp_path):
  return [len((tmp_path / f'attempts-{i}').read_text()) for i in range(2)]


def test_each_host_has_one_process_and_all_start_again(cluster, tmp_path, capfd):
  body = """
    print('hello from', index, os.environ['JAX_COORDINATOR_ADDRESS'], flush=True)
    assert os.environ['JAX_NUM_PROCESSES'] == '2' and os.environ['MINE'] == 'yes'
    if attempt == 1:
      if index == 1:
        while not (folder / 'attempts-0').exists():
          time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGKILL)
      time.sleep(60)
  """
  run = supervisor(tmp_path, body, max_restarts=1, environment={'MINE': 'yes'}).run
  assert run() == 0
  assert attempts(tmp_path) == [2, 2]
  out, err = capfd.readouterr()
  assert out.count('hello from 0') == 2
  assert 'process 1 of 2 was killed by signal 9 (SIGKILL); restart 1 of 1' in err


def test_it_gives_up_with_the_end_of_the_log(cluster, tmp_path):
  run = supervisor(tmp_path, "sys.exit('no data')", max_restarts=0).run
  with pytest.raises(RuntimeError, match='gave up after 0 restarts(.|\n)*no data'):
    run()


def test_it_can_be_stopped_and_saves(cluster, tmp_path):
  body = """
    def save(*_):
      (folder / f'saved-{index}').touch()
      sys.exit(75)
    signal.signal(signal.SIGTERM, save)
    (folder / f'ready-{index}').touch()
    time.sleep(60)
  """
  running = supervisor(tmp_path, body)
  codes = []
  thread = threading.Thread(target=lambda: codes.append(running.run()))
  thread.start()
  deadline = time.monotonic() + 30
  while len(list(tmp_path.glob('ready-*'))) < 2 and time.monotonic() < deadline:
    time.sleep(0.05)
  running.stop(signal.SIGTERM)
  thread.join(30)
  assert codes == [restarts.SAVED]
  assert len(list(tmp_path.glob('saved-*'))) == 2


def test_a_lost_actor_is_a_dead_process(cluster, tmp_path):
  body = """
    (folder / f'pid-{attempt}-{index}').write_text(str(os.getppid()))
    if attempt == 1:
      time.sleep(60)
  """
  running = supervisor(tmp_path, body, max_restarts=1)
  thread = threading.Thread(target=running.run)
  thread.start()
  path = tmp_path / 'pid-1-1'
  deadline = time.monotonic() + 30
  while time.monotonic() < deadline and len(list(tmp_path.glob('pid-1-*'))) < 2:
    time.sleep(0.05)
  time.sleep(0.5)
  os.kill(int(path.read_text()), signal.SIGKILL)  # The actor, which started it.
  thread.join(60)
  assert not thread.is_alive()
  assert attempts(tmp_path) == [2, 2]
