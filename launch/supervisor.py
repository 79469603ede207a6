"""When processes of one job start again, and when that is given up.

A job of several processes lives and dies as a whole: once one is gone, the others wait
for it in vain. So all are stopped and all are started again, from the last checkpoint.
"""

from __future__ import annotations

import itertools
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from launch import restarts

POLL_SECONDS = 0.1
FAILED_GRACE_SECONDS = 2.0
"""What is left to the others once one has died. They can save nothing without it."""


class Fleet(Protocol):
  """The processes of a job, on this machine or on others."""

  def start(self, attempt: int) -> None:
    """Starts all, for the `attempt`-th time, counted from 1."""

  def poll(self) -> Sequence[int | None]:
    """Exit codes: None for what runs, minus the signal for what was killed."""

  def signal(self, number: int) -> None:
    """Sends a signal to all that run."""

  def kill(self) -> None:
    """Kills all that run, and waits for it; called after each attempt too."""

  def show(self) -> None:
    """Shows what was written since the last call."""

  def tail(self, index: int) -> str:
    """The end of what a process has written, as the end of an error."""


class Supervisor:
  """Runs a fleet until it has finished.

  Args:
    fleet: the processes.
    max_restarts: failures after which all are started again. A process that ends with
      `restarts.SAVED` has not failed.
    grace_seconds: time to save between SIGTERM and SIGKILL.
    terminal: whether to say what happens.
  """

  def __init__(
    self, fleet: Fleet, max_restarts: int, grace_seconds: float, terminal: bool = True
  ):
    self._fleet, self._terminal = fleet, terminal
    self._max_restarts, self._grace = max_restarts, grace_seconds
    self._asked: list[int] = []

  def stop(self, number: int = signal.SIGTERM) -> None:
    """Asks all to save and end; asked twice, kills. For handlers and other threads."""
    self._asked.append(number)  # No lock: a handler can interrupt whoever holds it.

  def run(self) -> int:
    """Returns 0 when all have finished, `restarts.SAVED` when stopped and saved.

    Raises:
      RuntimeError: it was given up after too many failures, or could not be stopped in
        time; names the process, its exit code or signal, and the end of its log.
    """
    failures = 0
    for attempt in itertools.count(1):
      if self._asked:  # While none was running.
        break
      seen, codes = self._attempt(attempt)
      if all(code == 0 for code in codes):
        return 0
      index = restarts.culprit(seen, codes)
      what = f'process {index} of {len(codes)} {restarts.describe(codes[index])}'
      if self._asked:
        # Whoever had not learned yet how to stop had nothing to save.
        if set(codes) <= {0, restarts.SAVED, *(-number for number in self._asked)}:
          break
        raise RuntimeError(
          f'{what} when asked to stop, with {self._grace:g} s to save; the run goes on'
          f' from its last checkpoint. {self._fleet.tail(index)}'
        )
      if restarts.saved(codes):
        self._say('saved; starting again')
        continue
      if failures == self._max_restarts:
        raise RuntimeError(
          f'{what}; gave up after {failures} restarts. {self._fleet.tail(index)}'
        )
      failures += 1
      self._say(f'{what}; restart {failures} of {self._max_restarts}')
    return restarts.SAVED

  def _attempt(self, number: int) -> tuple[Sequence[int | None], list[int]]:
    """One life of all processes.

    Returns:
      Exit codes when the first failure was seen, and at the end.
    """
    fleet, seen = self._fleet, None
    sent, deadline = 0, float('inf')
    try:
      fleet.start(number)
      while None in (codes := fleet.poll()):
        fleet.show()
        if len(self._asked) > sent:
          fleet.signal(self._asked[sent])
          deadline = 0.0 if sent else time.monotonic() + self._grace
          sent += 1
        if seen is None and any(code not in (None, 0) for code in codes):
          seen = codes
          if not sent:
            fleet.signal(signal.SIGTERM)
            deadline = time.monotonic() + self._left(codes)
        if time.monotonic() > deadline:
          fleet.kill()
        else:
          time.sleep(POLL_SECONDS)
    finally:
      fleet.kill()
      fleet.show()
    ended = [code for code in codes if code is not None]
    return seen or ended, ended

  def _left(self, codes: Sequence[int | None]) -> float:
    """Seconds for the others, after the first of them have ended."""
    crashed = any(code not in (None, 0, restarts.SAVED) for code in codes)
    return min(FAILED_GRACE_SECONDS, self._grace) if crashed else self._grace

  def _say(self, what: str) -> None:
    if self._terminal:
      print(f'launch: {what}', file=sys.stderr, flush=True)


class Stoppable(Protocol):
  """What can be asked to save and end."""

  def stop(self, number: int) -> None:
    """Asks once more, by the number of a signal."""


@contextmanager
def stopped_by_signals(*running: Stoppable) -> Iterator[None]:
  """Passes SIGTERM and SIGINT on; does nothing in other threads than the main one."""
  if threading.current_thread() is not threading.main_thread():
    yield
    return

  def forward(number: int, _: object) -> None:
    for one in running:
      one.stop(number)

  numbers = (signal.SIGTERM, signal.SIGINT)
  before = [signal.signal(number, forward) for number in numbers]
  try:
    yield
  finally:
    for number, handler in zip(numbers, before, strict=True):
      signal.signal(number, handler)
