"""Runs the units of a sweep on this machine, some at a time, and keeps their state."""

from __future__ import annotations

import pathlib
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from composer_jax.files import read_json, write_json
from launch.supervisor import Supervisor, stopped_by_signals
from launch.sweep import Unit

STATE_FILE = 'unit.json'
FINISHED_FILE = 'finished'
"""What `composer-jax train` leaves in its workdir when it has taken all steps."""

Start = Callable[[Unit, pathlib.Path], Supervisor]
"""What runs a unit in a folder."""


def state(folder: pathlib.Path) -> str:
  """`missing`, `running`, `stopped`, `failed` or `finished`.

  A unit that is `running` and is not run by anyone was killed; it counts as unfinished.
  """
  if (folder / FINISHED_FILE).exists():
    return 'finished'
  path = folder / STATE_FILE
  if not path.exists():
    return 'missing'
  return read_json(path, ['state'], 'Delete it to run the unit again.')['state']


class Runs:
  """Runs those units that have not finished; one that fails does not stop the rest.

  Args:
    units: all of the sweep.
    out: folder of their folders.
    start: makes what runs one.
    parallel: how many at a time.
  """

  def __init__(
    self, units: Sequence[Unit], out: pathlib.Path, start: Start, parallel: int = 1
  ):
    if parallel < 1:
      raise ValueError(f'--parallel is {parallel}; expected at least 1.')
    self._units, self._out = units, out
    self._start, self._parallel = start, parallel
    self._stopping = False
    self._running: set[Supervisor] = set()
    self._lock = threading.RLock()  # A signal can come while it is held.

  def stop(self, number: int = signal.SIGTERM) -> None:
    """Asks what runs to save and end, and starts no more."""
    with self._lock:
      self._stopping = True
      for supervisor in self._running:
        supervisor.stop(number)

  def run(self) -> bool:
    """Returns whether it came to the end, rather than being stopped."""
    left = [u for u in self._units if state(self._out / u.name) != 'finished']
    if len(left) < len(self._units):
      print(f'{len(self._units) - len(left)} of {len(self._units)} have finished.')
    with stopped_by_signals(self), ThreadPoolExecutor(self._parallel) as pool:
      list(pool.map(self._run, left))
    return not self._stopping

  def _run(self, unit: Unit) -> None:
    folder = self._out / unit.name
    with self._lock:
      if self._stopping:
        return
      folder.mkdir(parents=True, exist_ok=True)
      began = time.time()
      try:
        supervisor = self._start(unit, folder)
      except (ValueError, OSError) as error:
        self._keep(unit, 'failed', began, error)
        return
      self._running.add(supervisor)
    self._keep(unit, 'running', began)
    try:
      code = supervisor.run()
      self._keep(unit, 'stopped' if code else 'finished', began)
    except (RuntimeError, OSError) as error:
      self._keep(unit, 'stopped' if self._stopping else 'failed', began, error)
    finally:
      with self._lock:
        self._running.discard(supervisor)

  def _keep(
    self, unit: Unit, now: str, began: float, error: Exception | None = None
  ) -> None:
    """Writes the state of a unit down, and says it."""
    kept: dict[str, Any] = {
      'state': now,
      'values': dict(unit.values),
      'overrides': list(unit.overrides),
      'seconds': round(time.time() - began, 1),
    }
    said = f'{unit.name}: {now}'
    if error:
      kept['error'] = str(error)
      # The end of a log comes last, and in it the cause.
      lines = [line.strip() for line in str(error).splitlines() if line.strip()]
      said += f': {lines[-1] if lines else type(error).__name__}'
    write_json(self._out / unit.name / STATE_FILE, kept)
    print(said, flush=True)
