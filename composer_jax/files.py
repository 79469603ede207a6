"""Small files that are there whole or not at all, and errors that name them."""

from __future__ import annotations

import json
import os
import pathlib
import secrets
from collections.abc import Iterable
from typing import Any


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes a UTF-8 file that a kill, at any instant, leaves as it was or complete."""
  part = path.with_name(f'{path.name}.{secrets.token_hex(4)}.part')
  part.write_text(text, encoding='utf-8')
  os.replace(part, path)


def write_json(path: pathlib.Path, value: Any) -> None:
  """Writes a value as indented JSON; see `write_text`."""
  write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + '\n')


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
