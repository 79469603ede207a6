"""Work for the tests of the engines; a module of its own so that workers find it."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import signal
import sys
import time


@dataclasses.dataclass(frozen=True)
class Task:
  name: str
  number: int


class TwoArguments(Exception):
  """Cannot be pickled and made again."""

  def __init__(self, a, b):
    super().__init__(a + b)


def square(task):
  return task.number**2


def where(task):
  """The node of a cluster that it runs on."""
  import ray

  return ray.get_runtime_context().get_node_id()


def who(task):
  time.sleep(0.02)
  return os.getpid()


def fails_at_four(task):
  if task.number == 4:
    raise LookupError('no such thing')
  return task.number


def fails_oddly(task):
  raise TwoArguments('one', 'two')


def dies_at_three(task):
  if task.number == 3:
    os.kill(os.getpid(), signal.SIGKILL)
  return task.number


def dies_once(folder, task):
  """Kills its process the first time that it gets task 3."""
  seen = pathlib.Path(folder, task.name)
  if task.number == 3 and not seen.exists():
    seen.touch()
    os.kill(os.getpid(), signal.SIGKILL)
  return task.number


class Noted:
  """Work that notes which process has begun what, and can be slowed down.

  It waits until so many processes have begun something.
  """

  def __init__(self, work, folder, seconds_an_image=0.0, processes=1):
    self.work, self.folder, self.seconds = work, folder, seconds_an_image
    self.processes = processes

  def __call__(self, task):
    note = pathlib.Path(self.folder, f'{task.name} {os.getpid()} {time.time_ns()}')
    note.touch()
    while len({process for _, process, _ in begun(self.folder)}) < self.processes:
      time.sleep(0.02)
    shard = sys.modules.get('data_pipelines.shard')
    if shard is None:  # The work is none of its own.
      return self.work(task)
    genuine = shard.prepare_one

    def slowly(*arguments):
      time.sleep(self.seconds)
      return genuine(*arguments)

    shard.prepare_one = slowly
    try:
      return self.work(task)
    finally:
      shard.prepare_one = genuine
      opened = shard._open_extractor.cache_info().misses
      note.write_text(str(opened))


def begun(folder):
  """What `Noted` has noted: (name of the task, process, models opened by then)."""
  notes = sorted(pathlib.Path(folder).iterdir(), key=lambda note: note.name.split()[2])
  return [(*note.name.split()[:2], note.read_text()) for note in notes]
