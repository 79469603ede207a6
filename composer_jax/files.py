"""Small files that are there whole or not at all, and errors that name them."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pathlib
import secrets
import shutil
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from composer_jax.buckets import in_bucket, put_bytes


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes a UTF-8 file that a kill, at any instant, leaves as it was or complete."""
  if in_bucket(path):
    put_bytes(text.encode(), path)
    return
  part = path.with_name(f'{path.name}.{secrets.token_hex(4)}.part')
  part.write_text(text, encoding='utf-8')
  os.replace(part, path)


def write_json(path: pathlib.Path, value: Any) -> None:
  """Writes a value as indented JSON; see `write_text`."""
  write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + '\n')


LOCK_FILE = 'lock'


@contextlib.contextmanager
def alone(out: pathlib.Path, what: str) -> Iterator[None]:
  """Makes a folder, and keeps other processes out of it that ask in the same way.

  The lock ends with this process, however that ends, and is not passed on to processes
  that it forks.

  Args:
    out: the folder.
    what: is done in it by one process at a time, as in 'a training'.

  Raises:
    RuntimeError: another process is at it.
  """
  out.mkdir(parents=True, exist_ok=True)
  with (out / LOCK_FILE).open('w') as lock:
    try:
      fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
      raise RuntimeError(
        f'{what} runs in {out} already; wait for it, or use another folder.'
        ' If its machine is gone and the file system does not know, delete'
        f' {out / LOCK_FILE}.'
      ) from None
    except OSError as error:
      print(
        f'{out} has no locks ({error.strerror}); see that {what} runs there alone.',
        file=sys.stderr,
      )
    yield


@contextlib.contextmanager
def whole_folder(out: pathlib.Path) -> Iterator[pathlib.Path]:
  """Makes a folder that is there whole or not at all.

  It is filled beside its place, as `OUT.part`, and then renamed, so that a kill leaves
  nothing that opens. What such a kill left is removed by the next try.

  Args:
    out: the folder; if it is there it must be empty.

  Yields:
    The folder to fill.

  Raises:
    FileExistsError: something is in `out`.
  """
  if out.exists() and (not out.is_dir() or any(out.iterdir())):
    raise FileExistsError(f'{out} holds something already; give another --out.')
  part = out.absolute().with_name(f'{out.absolute().name}.part')
  shutil.rmtree(part, ignore_errors=True)
  part.mkdir(parents=True)
  try:
    yield part
    os.replace(part, out)
  except BaseException:
    shutil.rmtree(part, ignore_errors=True)
    raise


def read_json(path: pathlib.Path, needs: Iterable[str], advice: str) -> dict[str, Any]:
  """Reads an object from a JSON file.

  Args:
    path: of the file.
    needs: fields without which it is of no use.
    advice: what to do if it is not there or damaged; a sentence.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is not JSON, not an object, or lacks a field.
  """
  try:
    value = json.loads(path.read_text('utf-8'))
  except FileNotFoundError:
    raise FileNotFoundError(f'{path} is missing. {advice}') from None
  except ValueError as error:  # JSON and UTF-8 errors both are.
    raise ValueError(f'{path} is damaged: {error}. {advice}') from error
  if not isinstance(value, dict):
    raise ValueError(f'{path} is damaged: not an object of fields. {advice}')
  if missing := [name for name in needs if name not in value]:
    raise ValueError(f'{path} is damaged: it has no {missing[0]!r}. {advice}')
  return value
