"""Runs shards on a Ray cluster; see https://docs.ray.io.

Each worker is an actor with resources of its own, so that what a process opens once,
such as the model of a learned extractor, is opened once an actor and not once a shard.
A worker has one shard at a time, so nothing piles up in the cluster. When a worker or
its node is lost, its shard goes to another one.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import socket
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any

from composer_jax.extras import MissingExtra
from data_pipelines.engines.answer import (
  Answer,
  Result,
  Task,
  WorkerDied,
  answer,
  result,
)

RETRIES = 3
"""Times that a shard is tried again after its worker was lost."""

START = 'its start'
"""Where a worker dies that has no shard yet."""

PATIENCE = 600.0
"""Seconds to wait, while nothing runs, for the cluster to place a worker; a cluster
that grows on demand takes minutes."""


def require_ray() -> None:
  """Says what to install if Ray is not there.

  Raises:
    MissingExtra: it is not.
  """
  if importlib.util.find_spec('ray') is None:
    raise MissingExtra("--engine ray needs Ray: pip install 'composer_jax[ray]'.")


def run(
  work: Callable[[Task], Result],
  tasks: Sequence[Task],
  *,
  workers: int = 0,
  address: str | None = None,
  cpus: float = 1,
  gpus: float = 0,
  tpus: float = 0,
  retries: int = RETRIES,
  patience: float = PATIENCE,
) -> Generator[tuple[Task, Result]]:
  """Does all tasks, in any order.

  Args:
    work: does one task; picklable, as are the tasks. What it does when a task is done
      twice must not differ: a worker that was given up may still be at it.
    tasks: each with a `name` for messages.
    workers: number of actors, or 0 for as many as fit into the cluster now.
    address: of the cluster, as `ray.init` takes it. By default, that of RAY_ADDRESS,
      else a cluster that runs on this machine, else a new one for this call.
    cpus: processors for each worker.
    gpus: GPUs for each worker; fractions share one.
    tpus: TPU chips for each worker.
    retries: times that a task is tried again after its worker was lost.
    patience: seconds to wait, while nothing runs, for the cluster to place a worker.

  Yields:
    Each task and its result, as it is done.

  Raises:
    MissingExtra: Ray is not installed.
    ConnectionError: there is no cluster at the address.
    WorkerDied: a task has lost its worker again and again, or none can be placed.
      What others have written stays.
    Exception: what `work` raised, with the worker's traceback as a note.
  """
  require_ray()
  resources = {'CPU': cpus, 'GPU': gpus, 'TPU': tpus}
  if workers < 0 or min(resources.values()) < 0 or not any(resources.values()):
    raise ValueError(
      f'workers: {workers}, {resources}; expected 0 or more, and some resource.'
    )
  if not tasks:
    return
  with _connected(address):
    pool = _Pool(work, resources)
    waiting, losses = deque(tasks), Counter[str]()
    count = min(workers or _room(resources), len(tasks))
    left = len(tasks)
    try:
      for _ in range(count):
        pool.add()
      while left:
        actor, task, answered, error = pool.next(patience)
        if error is not None:
          _count_loss(losses, task, error, retries if task else retries * count)
          if task is not None:
            waiting.append(task)
          if waiting:
            pool.add()
        elif waiting:
          pool.give(actor, waiting.popleft())
        else:  # The place may be needed by one that takes over what another has lost.
          pool.remove(actor)
        if answered is not None:
          left -= 1
          losses.pop(START, None)
          yield task, result(task, answered)
    finally:
      pool.stop()


class _Worker:
  """What runs in an actor."""

  def __init__(self, work: Callable[[Task], Result], folder: str):
    if os.path.isdir(folder):  # So that relative paths mean what they mean there.
      os.chdir(folder)
    self._work = work

  def ready(self) -> None:
    """Answers once the actor has been placed and made."""

  def do(self, task: Task) -> Answer:
    return answer(self._work, task)


class _Pool:
  """Actors, each with at most one call that is not answered yet."""

  def __init__(self, work: Callable[[Task], Result], resources: Mapping[str, float]):
    import ray

    self._work = ray.put(work)  # Once, however many actors there are.
    self._make = ray.remote(_Worker).options(
      num_cpus=resources['CPU'],
      num_gpus=resources['GPU'],
      resources={'TPU': resources['TPU']} if resources['TPU'] else {},
      scheduling_strategy='SPREAD',
    )
    self._resources = {name: n for name, n in resources.items() if n}
    self._actors: list[Any] = []
    self._calls: dict[Any, tuple[Any, Task | None]] = {}

  def add(self) -> None:
    """Asks for one more actor; tasks wait until it is there."""
    actor: Any = self._make.remote(self._work, os.getcwd())
    self._actors.append(actor)
    self._calls[actor.ready.remote()] = actor, None

  def give(self, actor: Any, task: Task) -> None:
    self._calls[actor.do.remote(task)] = actor, task

  def next(
    self, patience: float
  ) -> tuple[Any, Task | None, Answer | None, Exception | None]:
    """Waits for any actor.

    Returns:
      The actor, its task (None if it has just started), the answer to that, and why
      the actor is lost, if it is.
    """
    import ray
    from ray.exceptions import RayError, RayTaskError

    ready: list[Any] = []
    while not ready:
      ready, _ = ray.wait(list(self._calls), num_returns=1, timeout=patience)
      if not ready and all(task is None for _, task in self._calls.values()):
        raise WorkerDied(
          f'In {patience:g} s, no worker with {self._resources} could be placed in a'
          f' cluster that has {ray.cluster_resources()}. Ask for less, or add nodes.'
        )
    actor, task = self._calls.pop(ready[0])
    try:
      return actor, task, ray.get(ready[0]), None
    except RayTaskError:
      raise
    except RayError as error:  # The actor or its node, or what it has answered.
      self.remove(actor)
      return actor, task, None, error

  def remove(self, actor: Any) -> None:
    """Ends an actor."""
    import ray

    self._actors.remove(actor)
    ray.kill(actor)

  def stop(self) -> None:
    for actor in [*self._actors]:
      self.remove(actor)


def _count_loss(
  losses: Counter[str], task: Task | None, error: Exception, limit: int
) -> None:
  """Counts the loss of a worker; a task that kills each of its workers ends the run."""
  name = task.name if task else START
  losses[name] += 1
  if losses[name] > limit:
    raise WorkerDied(
      f'Workers died {losses[name]} times at {name}; out of memory is a common cause.'
      ' Finished shards are kept: run the same command again to go on from there. The'
      f' last one: {error}'
    ) from error


def _room(resources: Mapping[str, float]) -> int:
  """Number of workers that fit into the nodes of the cluster, and 1 at least."""
  import ray

  asked = {name: n for name, n in resources.items() if n}
  total = 0
  for node in ray.nodes():
    if node['Alive']:
      total += min(int(node['Resources'].get(name, 0) / n) for name, n in asked.items())
  return max(1, total)


@contextlib.contextmanager
def _connected(address: str | None) -> Iterator[None]:
  """Connects to a cluster, unless this process is connected already."""
  import ray

  if ray.is_initialized():
    yield
    return
  os.environ.setdefault('RAY_USAGE_STATS_ENABLED', '0')  # Reports nothing to anyone.
  where = address or os.environ.get('RAY_ADDRESS', '')
  try:
    host, colon, port = where.rpartition('://')[2].partition(':')
    if colon:  # Ray itself would go on trying for minutes.
      socket.create_connection((host, int(port)), timeout=10).close()
    ray.init(address, logging_level=logging.WARNING)
  except (OSError, ValueError, RuntimeError) as error:
    raise ConnectionError(
      f'No Ray cluster can be reached at {where or "this machine"}: {error}. Start one'
      ' with `ray start --head` and give the address that it prints.'
    ) from error
  try:
    yield
  finally:
    ray.shutdown()
