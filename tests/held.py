"""Folders in which another process is at work."""

from __future__ import annotations

import contextlib
import pathlib
import subprocess
import sys
from collections.abc import Iterator

_HOLD = """
import pathlib, sys
from composer_jax.files import alone
with alone(pathlib.Path(sys.argv[1]), 'it'):
  print('held', flush=True)
  sys.stdin.read()
"""


@contextlib.contextmanager
def held(folder: pathlib.Path) -> Iterator[subprocess.Popen[str]]:
  """Has another process hold a folder with `files.alone`; yields that process."""
  words = [sys.executable, '-c', _HOLD, str(folder)]
  pipe = subprocess.PIPE
  with subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True) as holder:
    try:
      assert holder.stdout is not None
      assert holder.stdout.readline() == 'held\n'
      yield holder
    finally:
      holder.kill()
