"""On a real cluster: two nodes, with a raylet each, on this machine."""

from __future__ import annotations

import functools
import os
import pathlib
import signal
import sys
import threading
import time

import numpy as np
import pytest

from composer_jax import cli
from composer_jax.extras import MissingExtra
from data_pipelines.dataset import load_dataset
from data_pipelines.engines import local, ray_engine
from data_pipelines.prepare import prepare

# Workers import the work by the name of its module.
sys.path.append(os.path.dirname(__file__))
import chores

TASKS = [chores.Task(f'shard-{i}', i) for i in range(7)]
# As the session's `prepared` folder was made.
ARGUMENTS = {'size': 32, 'shards': 5, 'progress': False, 'test_fraction': 0.2}


@pytest.fixture(scope='module')
def cluster(store):
  """Two nodes with one processor each, which reach the store."""
  from ray.cluster_utils import Cluster

  paths = os.pathsep.join(path for path in sys.path if path)
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('PYTHONPATH', paths)
    patch.setenv('RAY_USAGE_STATS_ENABLED', '0')
    patch.setenv('RAY_DISABLE_DOCKER_CPU_WARNING', '1')
    # How soon a dead node is noticed.
    patch.setenv('RAY_health_check_initial_delay_ms', '500')
    patch.setenv('RAY_health_check_period_ms', '300')
    patch.setenv('RAY_health_check_timeout_ms', '1000')
    patch.setenv('RAY_health_check_failure_threshold', '3')
    node = {'num_cpus': 1, 'object_store_memory': 80 * 2**20}
    head = node | {'include_dashboard': False}
    nodes = Cluster(initialize_head=True, head_node_args=head)
    nodes.add_node(**node)
    yield nodes
    nodes.shutdown()


@pytest.fixture(scope='module')
def run(cluster):
  """The engine, in a process that is connected already: faster, for many runs."""
  import ray

  ray.init(cluster.address, logging_level='warning')
  yield ray_engine.run
  ray.shutdown()


def test_the_command_connects_for_the_time_of_its_run(cluster, folder, tmp_path):
  import ray

  flags = f'--engine ray --address {cluster.address} --size 8 --conditions none'
  paths = ['--source', f'folder:{folder}', '--out', str(tmp_path / 'data')]
  assert cli.main(['prepare', *paths, *flags.split()]) == 0
  assert len(load_dataset(tmp_path / 'data')) > 30
  assert not ray.is_initialized()


def test_no_cluster_at_the_address_is_an_error():
  with pytest.raises(ConnectionError, match='No Ray cluster can be reached at 127'):
    list(ray_engine.run(chores.square, TASKS, address='127.0.0.1:1'))


def test_all_tasks_are_done_on_both_nodes(run, tmp_path):
  results = list(run(chores.square, TASKS, workers=0))
  assert sorted(results, key=lambda pair: pair[0].number) == [
    (task, task.number**2) for task in TASKS
  ]
  work = chores.Noted(chores.where, tmp_path, processes=2)
  assert len({node for _, node in run(work, TASKS, workers=0)}) == 2


def test_nothing_to_do_asks_for_no_cluster():
  assert list(ray_engine.run(chores.square, [], address='127.0.0.1:1')) == []


def test_an_error_of_the_work_is_raised_as_it_was_and_not_tried_again(run, tmp_path):
  work = chores.Noted(chores.fails_at_four, tmp_path)
  with pytest.raises(LookupError, match='no such thing') as caught:
    list(run(work, TASKS, workers=1))
  assert 'shard-4' in caught.value.__notes__[0]
  assert 'fails_at_four' in caught.value.__notes__[0]
  assert [name for name, *_ in chores.begun(tmp_path)].count('shard-4') == 1
  with pytest.raises(RuntimeError, match='TwoArguments: onetwo'):
    list(run(chores.fails_oddly, TASKS[:1], workers=1))


def test_a_killed_worker_costs_a_retry(run, tmp_path):
  work = functools.partial(chores.dies_once, str(tmp_path))
  results = sorted(found for _, found in run(work, TASKS, workers=2))
  assert results == list(range(7))
  assert (tmp_path / 'shard-3').exists()


def test_a_task_that_kills_all_its_workers_is_one_clear_error(run):
  with pytest.raises(local.WorkerDied, match='died 2 times at shard-3.*run the same'):
    list(run(chores.dies_at_three, TASKS, workers=1, retries=1))


def test_resources_that_no_node_has_are_an_error(run):
  with pytest.raises(local.WorkerDied, match=r"\{'CPU': 1, 'GPU': 2\} could be placed"):
    list(run(chores.square, TASKS, gpus=2, patience=1))


def test_without_ray_it_says_what_to_install(monkeypatch):
  monkeypatch.setitem(sys.modules, 'ray', None)
  with pytest.raises(MissingExtra, match=r"pip install 'composer_jax\[ray\]'"):
    list(ray_engine.run(chores.square, TASKS))


@pytest.mark.parametrize('wrong', [{'workers': -1}, {'cpus': 0}, {'gpus': -1}])
def test_numbers_out_of_range_are_refused(wrong):
  with pytest.raises(ValueError, match='expected 0 or more, and some resource'):
    list(ray_engine.run(chores.square, TASKS, **wrong))


def test_with_a_model_a_bucket_gets_the_same_bytes_and_actors_open_it_once(
  run, folder, write_net, tmp_path, files_of, objects_of
):
  red = np.array([1.0, 0, 0]).reshape(1, 3, 1, 1)
  net = write_net(tmp_path / 'red.onnx', red, shape=('b', 3, 64, 64))
  notes = tmp_path / 'notes'
  notes.mkdir()

  def noted(work, tasks, *, workers):
    return run(chores.Noted(work, notes), tasks, workers=workers)

  learned = ARGUMENTS | {'size': 16, 'extractors': {'sketch': f'onnx:{net}'}}
  prepare(f'folder:{folder}', tmp_path / 'here', **learned)
  prepare(f'folder:{folder}', 's3://bucket/by-ray', engine=noted, **learned)
  assert objects_of('s3://bucket/by-ray') == files_of(tmp_path / 'here')
  begun = chores.begun(notes)
  assert len(begun) == 5 > len({process for _, process, _ in begun})
  assert {opened for *_, opened in begun} == {'1'}


def test_a_node_killed_midway_loses_and_doubles_nothing(
  cluster, run, folder, prepared, tmp_path, files_of
):
  """The last test, as it kills. Rejected records are among the files compared."""
  out, notes = tmp_path / 'data', tmp_path / 'notes'
  notes.mkdir()
  (second,) = cluster.worker_nodes
  killer = threading.Thread(target=_kill_at_work, args=(second, out))

  def slow(work, tasks, *, workers):
    killer.start()
    yield from run(chores.Noted(work, notes, 0.08, processes=2), tasks, workers=workers)

  prepare(f'folder:{folder}', out, workers=2, engine=slow, **ARGUMENTS)
  killer.join()
  assert files_of(out) == files_of(prepared)
  names = [name for name, *_ in chores.begun(notes)]
  assert len(names) > len(set(names)) == 5, 'No shard was lost with the node.'


def _kill_at_work(node, out):
  """Kills a node with all its processes once one of them is writing a shard."""
  raylet = node.all_processes['raylet'][0].process.pid
  deadline = time.monotonic() + 60
  while time.monotonic() < deadline:
    below = [pid for pid in _pids() if _parent(pid) == raylet]
    if any(_writes(pid, out) for pid in below):
      for pid in (raylet, *below):
        os.kill(pid, signal.SIGKILL)
      return
    time.sleep(0.01)


def _pids():
  return [int(name) for name in os.listdir('/proc') if name.isdigit()]


def _parent(pid):
  try:
    stat = pathlib.Path(f'/proc/{pid}/stat').read_text()
  except OSError:
    return None
  return int(stat.rpartition(')')[2].split()[1])


def _writes(pid, out):
  try:
    files = [os.readlink(file) for file in pathlib.Path(f'/proc/{pid}/fd').iterdir()]
  except OSError:
    return False
  return any(file.startswith(str(out)) for file in files)
