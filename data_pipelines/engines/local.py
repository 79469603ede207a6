"""Runs shards in processes of this machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Sequence
from multiprocessing import connection
from typing import Any

from data_pipelines.engines.answer import Result, Task, WorkerDied, answer, result

__all__ = ['WorkerDied', 'run']


def run(
  work: Callable[[Task], Result], tasks: Sequence[Task], *, workers: int
) -> Generator[tuple[Task, Result]]:
  """Does all tasks, in any order.

  Args:
    work: does one task; with workers it must be picklable, as must the tasks.
    tasks: each with a `name` for messages.
    workers: number of processes, or 0 to work in this one.

  Yields:
    Each task and its result, as it is done.

  Raises:
    WorkerDied: a worker was killed. What other workers have written stays.
    Exception: what `work` raised, with the worker's traceback as a note.
  """
  if workers < 0:
    raise ValueError(f'workers: {workers}, expected 0 or more.')
  if not workers:
    for task in tasks:
      yield task, work(task)
    return
  # Spawned rather than forked: a fork of a process with JAX's threads can hang.
  context = multiprocessing.get_context('spawn')
  waiting = list(reversed(tasks))
  pool: list[_Worker] = []
  busy: dict[Any, _Worker] = {}
  try:
    for _ in range(min(workers, len(tasks))):
      worker = _Worker(context, work)
      pool.append(worker)
      worker.start(waiting.pop())
      busy[worker.pipe] = worker
    while busy:
      for pipe in connection.wait(list(busy)):
        worker = busy.pop(pipe)
        task, found = worker.task, worker.result()
        if waiting:
          worker.start(waiting.pop())
          busy[pipe] = worker
        yield task, found
  finally:
    for worker in pool:
      worker.stop()


class _Worker:
  """One process and this end of the pipe to it."""

  def __init__(self, context: Any, work: Callable[[Task], Result]):
    self.pipe, theirs = context.Pipe()
    self.task: Task = None
    # A daemon: it may not outlive this process even if `stop` is never reached.
    self._process = context.Process(target=_serve, args=(work, theirs), daemon=True)
    self._process.start()
    # Only the worker may hold its end, or its death would not close the pipe.
    theirs.close()

  def start(self, task: Task) -> None:
    self.task = task
    try:
      self.pipe.send(task)
    except BrokenPipeError:
      raise self._died() from None

  def result(self) -> Result:
    try:
      answered = self.pipe.recv()
    except (EOFError, ConnectionResetError):
      raise self._died() from None
    return result(self.task, answered)

  def stop(self) -> None:
    self.pipe.close()
    self._process.terminate()
    self._process.join(timeout=5)
    if self._process.is_alive():
      self._process.kill()
      self._process.join()
    self._process.close()

  def _died(self) -> WorkerDied:
    self._process.join(timeout=5)
    code = self._process.exitcode
    how = f'exit code {code}'
    if code is not None and code < 0:
      how = f'signal {signal.Signals(-code).name}'
    return WorkerDied(
      f'A worker died ({how}) at {self.task.name}; out of memory is a common'
      ' cause. Finished shards are kept: run the same command again to go on'
      ' from there, perhaps with fewer workers.'
    )


def _serve(work: Callable[[Task], Result], pipe: Any) -> None:
  """A worker's life: tasks in, (result, error, traceback) out."""
  # Ctrl-C reaches the whole group; the parent decides and stops the workers.
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  threading.Thread(target=_leave_with_parent, daemon=True).start()
  while True:
    try:
      task = pipe.recv()
    except EOFError:
      return
    pipe.send(answer(work, task))


def _leave_with_parent() -> None:
  """Ends this process when its parent is gone, killed or not."""
  parent = multiprocessing.parent_process()
  assert parent is not None  # Only workers run this.
  connection.wait([parent.sentinel])
  os._exit(1)
