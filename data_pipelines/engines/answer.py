"""What a worker sends back: a result, or an error to be raised again."""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Callable
from typing import Any

Task = Any
Result = Any

Answer = tuple[Result, Exception | None, str]
"""A result, or an error and its traceback."""


class WorkerDied(RuntimeError):
  """A worker process ended without an answer, as when it is killed."""


def answer(work: Callable[[Task], Result], task: Task) -> Answer:
  """Does a task; what it raises is part of the answer."""
  try:
    return work(task), None, ''
  except Exception as error:  # Raised again by `result`.
    return None, _sendable(error), traceback.format_exc()


def result(task: Task, answered: Answer) -> Result:
  """The result of a task.

  Raises:
    Exception: what the work raised, with the worker's traceback as a note.
  """
  value, error, trace = answered
  if error is not None:
    error.add_note(f'In a worker, at {task.name}:\n{trace}')
    raise error
  return value


def _sendable(error: Exception) -> Exception:
  """The error, or its text if its class cannot be pickled and made again."""
  try:
    return pickle.loads(pickle.dumps(error))
  except Exception:  # Whatever a class of someone else's does when it is remade.
    return RuntimeError(f'{type(error).__name__}: {error}')
