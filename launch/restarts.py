"""What a process means by its exit code, and whether the job starts again after it."""

from __future__ import annotations

import signal
from collections.abc import Sequence

SAVED = 75
"""Exit code of a process that was asked to stop and has saved: start me again."""

HANGS = 76
"""Exit code of a process whose peers no longer answer: restart all."""

PREEMPTED_FLAG = '--preempted-exit-code'
"""Flag by which `composer-jax train` is told to exit with `SAVED`."""


def saved(codes: Sequence[int]) -> bool:
  """Whether a job stopped in good order, at a checkpoint.

  Args:
    codes: exit codes of all its processes; negative where a signal killed one.
  """
  # A process that was told to stop before it had learned how has nothing to save.
  return SAVED in codes and set(codes) <= {0, SAVED, -signal.SIGTERM}


def culprit(seen: Sequence[int | None], ended: Sequence[int]) -> int:
  """Index of the process that most likely caused a failure.

  Args:
    seen: exit codes when a failure was first seen, with None for those that still ran.
    ended: exit codes in the end, when the others had been told to stop.
  """

  def guilt(code: int | None) -> int:
    if code in (None, 0, SAVED):
      return 0
    # Who says that a peer hangs is not that peer, and SIGTERM comes from outside.
    return 1 if code in (HANGS, -signal.SIGTERM) else 2

  codes = seen if any(map(guilt, seen)) else ended
  return max(range(len(codes)), key=lambda i: guilt(codes[i]))


def describe(code: int) -> str:
  """An exit code in words, such as `was killed by signal 9 (SIGKILL)`."""
  if code < 0:
    try:
      return f'was killed by signal {-code} ({signal.Signals(-code).name})'
    except ValueError:  # Real-time signals have numbers only.
      return f'was killed by signal {-code}'
  known = {SAVED: ' (saved)', HANGS: ' (another process hangs)'}
  return f'ended with exit code {code}{known.get(code, "")}'
