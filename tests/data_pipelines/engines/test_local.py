from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time

import pytest

from data_pipelines.engines import local

# Spawned workers import the work by the name of its module.
sys.path.append(os.path.dirname(__file__))
import chores

TASKS = [chores.Task(f'shard-{i}', i) for i in range(7)]


@pytest.fixture(autouse=True)
def no_process_is_left():
  yield
  assert multiprocessing.active_children() == []


@pytest.mark.parametrize('workers', [0, 1, 3])
def test_all_tasks_are_done_whatever_the_workers(workers):
  results = list(local.run(chores.square, TASKS, workers=workers))
  assert sorted(results, key=lambda pair: pair[0].number) == [
    (task, task.number**2) for task in TASKS
  ]


def test_work_is_done_in_other_processes():
  pids = {pid for _, pid in local.run(chores.who, TASKS, workers=2)}
  assert os.getpid() not in pids
  assert len(pids) == 2


def test_nothing_to_do_starts_nothing():
  assert list(local.run(chores.square, [], workers=2)) == []


def test_negative_workers_are_refused():
  with pytest.raises(ValueError, match='workers: -1'):
    list(local.run(chores.square, TASKS, workers=-1))


@pytest.mark.parametrize('workers', [0, 2])
def test_an_error_of_the_work_is_raised_as_it_was(workers):
  with pytest.raises(LookupError, match='no such thing') as caught:
    list(local.run(chores.fails_at_four, TASKS, workers=workers))
  if workers:
    assert 'shard-4' in caught.value.__notes__[0]
    assert 'fails_at_four' in caught.value.__notes__[0]


def test_an_error_that_cannot_be_sent_keeps_its_text():
  with pytest.raises(RuntimeError, match='TwoArguments: onetwo'):
    list(local.run(chores.fails_oddly, TASKS[:1], workers=1))


def test_a_killed_worker_is_one_clear_error():
  done = []
  results = local.run(chores.dies_at_three, TASKS, workers=1)
  with pytest.raises(local.WorkerDied, match=r'SIGKILL.* at shard-3;.*run the same'):
    done.extend(task.number for task, _ in results)
  assert done == [0, 1, 2]


def test_leaving_early_stops_the_workers():
  results = local.run(chores.who, TASKS, workers=2)
  next(results)
  results.close()


ORPHANS = """
import dataclasses, os, sys, time
from data_pipelines.engines import local

@dataclasses.dataclass
class Task:
  name: str

def slow(task):
  print(os.getpid(), flush=True)
  time.sleep(60)

if __name__ == '__main__':
  list(local.run(slow, [Task('a'), Task('b')], workers=2))
"""


def test_workers_end_when_their_parent_is_killed(tmp_path):
  script = tmp_path / 'orphans.py'
  script.write_text(ORPHANS)
  parent = subprocess.Popen(
      [sys.executable, str(script)], stdout=subprocess.PIPE, text=True,
      env=os.environ | {'PYTHONPATH': os.pathsep.join(sys.path)},
  )  # fmt: skip
  with parent:
    pids = [int(parent.stdout.readline()) for _ in range(2)]
    parent.kill()
  deadline = time.monotonic() + 10
  while any(_runs(pid) for pid in pids):
    assert time.monotonic() < deadline, 'A worker outlived its parent.'
    time.sleep(0.05)


def _runs(pid: int) -> bool:
  try:
    with open(f'/proc/{pid}/stat') as file:
      return file.read().rpartition(')')[2].split()[0] != 'Z'
  except FileNotFoundError:
    return False
