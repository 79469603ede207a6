"""Lets no process outlive its supervisor, however that dies.

This file is run by its path, without site packages, in two roles:

- `keeper.py keep` reads lines `+N` and `-N` from a pipe whose other end the supervisor
  holds. When the pipe closes, as it does even if the supervisor is killed outright, all
  process groups N that were added and not removed are killed.
- `keeper.py run FD COMMAND...` adds its own process group by that pipe and then becomes
  the command. So there is no instant at which a process runs and is not kept.

A group takes what a process has started, such as its readers of data, with it, which
the kernel's own signal on the death of a parent would not.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys


def keep() -> None:
  """Kills what is left when standard input ends."""
  for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
  groups: set[int] = set()
  for line in sys.stdin:
    group = int(line[1:])
    (groups.add if line[0] == '+' else groups.discard)(group)
  for group in groups:
    with contextlib.suppress(ProcessLookupError, PermissionError):
      os.killpg(group, signal.SIGKILL)


def run(pipe: int, command: list[str]) -> None:
  """Becomes a command, as a kept process group of its own."""
  # Short writes to a pipe do not mix.
  os.write(pipe, b'+%d\n' % os.getpid())
  os.close(pipe)
  try:
    os.execvp(command[0], command)
  except OSError as error:
    sys.exit(f'{command[0]}: {error.strerror}')


if __name__ == '__main__':
  if sys.argv[1] == 'keep':
    keep()
  else:
    run(int(sys.argv[2]), sys.argv[3:])
