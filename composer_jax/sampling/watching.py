"""Watching a run while it samples, and stopping it.

A compiled program can call only what it was compiled with. So each stage has one
`Relay`, which is compiled in and forwards to whoever watches at the moment: another
watcher compiles nothing.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

import numpy as np

# (index of the step from 0, x_0 (B, ...) as predicted in it) -> whether to go on.
StepWatch = Callable[[int, np.ndarray], bool]
# (stage from 0, steps done, steps in all, uint8 images (B, S, S, 3)) -> the same.
Watch = Callable[[int, int, int, np.ndarray], bool]


class Cancelled(Exception):
  """A watched run was stopped by its watcher."""


class Relay:
  """A callable that stays the same while watchers come and go."""

  def __init__(self):
    self._lock = threading.Lock()
    self._watch: StepWatch | None = None
    self._error: BaseException | None = None
    self._stopped = False

  def __call__(self, index: int, x_0: np.ndarray) -> bool:
    """Asks the present watcher; what it raises ends the run, and comes out of `to`."""
    try:
      going = self._watch is None or bool(self._watch(int(index), np.asarray(x_0)))
    except BaseException as error:
      self._error, going = error, False
    self._stopped = self._stopped or not going
    return going

  @contextlib.contextmanager
  def to(self, watch: StepWatch) -> Iterator[None]:
    """Forwards to a watcher. Runs of several threads wait for one another.

    The run must have ended, results and all, when the block does.

    Raises:
      Cancelled: the watcher said so.
    """
    with self._lock:
      self._watch, self._error, self._stopped = watch, None, False
      try:
        yield
        error, stopped = self._error, self._stopped
      finally:
        self._watch = self._error = None
    if error is not None:
      raise error
    if stopped:
      raise Cancelled('The run was stopped by who watched it.')
