"""Processes that are watched, stopped and killed together."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence

_KEEPER = [
  sys.executable,
  '-I',
  '-S',
  str(pathlib.Path(__file__).with_name('keeper.py')),
]


@dataclasses.dataclass(frozen=True)
class Command:
  """What one process runs.

  Attributes:
    words: program and arguments.
    environment: all of its variables.
    log: file that its output is added to; its folder exists.
  """

  words: Sequence[str]
  environment: Mapping[str, str]
  log: pathlib.Path


class Processes:
  """Starts commands; a context manager that leaves none of them behind.

  Each has a session of its own, so that Ctrl-C at a terminal reaches only who started
  them, and is killed with all that it has started. If this process dies, by whatever
  signal, they are killed too; see `keeper`.

  Raises:
    FileNotFoundError: there is no such program.
  """

  def __init__(self, commands: Sequence[Command]):
    for command in commands:
      path = command.environment.get('PATH')
      if shutil.which(command.words[0], path=path) is None:
        raise FileNotFoundError(
          f'{command.words[0]}: there is no such program; give its path or set PATH.'
        )
    reading, self._pipe = os.pipe()
    self._keeper = subprocess.Popen(
      [*_KEEPER, 'keep'], stdin=reading, start_new_session=True
    )
    os.close(reading)
    self._running: list[subprocess.Popen] = []
    self._groups: set[int] = set()
    try:
      for command in commands:
        self._start(command)
    except BaseException:
      self.close()
      raise

  def _start(self, command: Command) -> None:
    with command.log.open('ab') as log:
      started = subprocess.Popen(
        [*_KEEPER, 'run', str(self._pipe), *command.words],
        env=dict(command.environment),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        pass_fds=[self._pipe],
        start_new_session=True,
      )
    self._running.append(started)
    self._groups.add(started.pid)

  def poll(self) -> list[int | None]:
    """Exit codes in order: None for what runs, minus the signal for what was killed."""
    codes = [process.poll() for process in self._running]
    for process, code in zip(self._running, codes, strict=True):
      if code is not None:
        self._end(process.pid)
    return codes

  def signal(self, number: int) -> None:
    """Sends a signal to those that run, and not to what they have started."""
    for process in self._running:
      if process.poll() is None:
        process.send_signal(number)

  def kill(self) -> None:
    """Kills all that is left, and waits for it."""
    for process in self._running:
      self._end(process.pid)
    for process in self._running:
      process.wait()

  def _end(self, group: int) -> None:
    """Kills a process and what it has started; its number may then be used again."""
    if group in self._groups:
      self._groups.remove(group)
      with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)
      with contextlib.suppress(BrokenPipeError):
        os.write(self._pipe, b'-%d\n' % group)

  def close(self) -> None:
    """Kills all that is left; exit codes can still be asked for."""
    self.kill()
    if self._keeper.poll() is None:
      os.close(self._pipe)
      self._keeper.wait()

  def __enter__(self) -> Processes:
    return self

  def __exit__(self, *_: object) -> None:
    self.close()
