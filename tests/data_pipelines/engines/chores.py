"""Work for the tests of the engines; a module of its own so that workers find it."""

from __future__ import annotations

import dataclasses
import os
import signal
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
