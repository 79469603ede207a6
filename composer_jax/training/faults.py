"""Notices that a process of the job hangs, and ends the others."""

from __future__ import annotations

import enum
import json
import os
import sys
import threading
import time
from typing import Any

import jax

HANGS = 76
"""Exit status when a process hangs: start all of them again."""

BEAT = 1.0
"""Seconds between two signs of life."""


class Phase(enum.IntEnum):
  """What a process does after a step, in this order."""

  STARTING = 0
  READING = 1
  COMPUTING = 2
  SAVING = 3
  SAMPLING = 4

  def __str__(self) -> str:
    return self.name.lower()


class Watch:
  """A thread that ends this process when training stands still, and says who hangs.

  Each process tells the others where it is. When one gets no further for too long, that
  is because of those that are furthest behind, or give no sign of life at all.

  Args:
    seconds: without a next step, after which training counts as hanging; 0 for never.
  """

  def __init__(self, seconds: float):
    self._seconds = seconds
    self._place = (0, Phase.STARTING)
    self._since: float | None = None
    self._stopped = threading.Event()
    self._thread = threading.Thread(target=self._run, daemon=True)
    if seconds:
      self._thread.start()

  def at(self, step: int, phase: Phase) -> None:
    """Says where this process is; from the first call on it is watched."""
    self._place, self._since = (step, phase), time.monotonic()

  def close(self) -> None:
    """Stops watching."""
    self._stopped.set()
    if self._thread.is_alive():
      self._thread.join()

  def _run(self) -> None:
    number = 0
    while not self._stopped.wait(BEAT):
      number += 1
      self._tell(number)
      if self._since is None or time.monotonic() - self._since < self._seconds:
        continue
      print(
        f'composer-jax train: no step for {self._seconds:g} s: {self._culprits()}.'
        ' Start all processes again; they go on from the last checkpoint.',
        file=sys.stderr,
        flush=True,
      )
      # Nothing waits for anything here: that may be what hangs.
      os._exit(HANGS)

  def _tell(self, number: int) -> None:
    client = _client()
    if client is not None:
      sign = json.dumps({'beat': number, 'place': self._place})
      client.key_value_set(f'alive/{jax.process_index()}', sign, True)

  def _culprits(self) -> str:
    """Who is furthest behind, or silent."""
    client = _client()
    if client is None:
      step, phase = self._place
      return f'the process is {phase} after step {step}'
    before = _signs(client)
    time.sleep(3 * BEAT)
    now = _signs(client)
    if now is None or before is None:
      return 'process 0 does not answer'
    silent = [p for p in range(jax.process_count()) if now.get(p) == before.get(p)]
    silent = [p for p in silent if p != jax.process_index()]
    if silent:
      return '; '.join(f'process {p} gives no sign of life' for p in silent)
    places = {process: tuple(sign['place']) for process, sign in now.items()}
    last = min(places.values())
    return '; '.join(
      f'process {process} is {Phase(last[1])} after step {last[0]}'
      for process in sorted(places)
      if places[process] == last
    )


def _client() -> Any:
  """Of the service that the processes of a job share; None for a single process."""
  # JAX has no public name for it.
  from jax._src import distributed

  return distributed.global_state.client


def _signs(client: Any) -> dict[int, dict[str, Any]] | None:
  """What each process last told; None if the service, process 0, does not answer."""
  found: list[Any] = []

  def ask() -> None:
    found.append(client.key_value_dir_get('alive/'))

  asking = threading.Thread(target=ask, daemon=True)
  asking.start()
  asking.join(5 * BEAT)
  if not found:
    return None
  return {int(key.rpartition('/')[2]): json.loads(text) for key, text in found[0]}
