"""Composed images are kept on disk, so that a run that was broken off goes on."""

from __future__ import annotations

import functools
import hashlib
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

import composer_jax

BLOCK = 32
"""Images that are lost when a run is broken off."""


@functools.cache
def digest_of_code() -> str:
  """Images that older code made must not be taken for those of this one."""
  digest = hashlib.sha256()
  for path in sorted(pathlib.Path(composer_jax.__file__).parent.rglob('*.py')):
    digest.update(path.read_bytes())
  return digest.hexdigest()


def digest_of(*parts: Any) -> str:
  """Tells values from others: arrays in any nesting, and what JSON can hold."""
  digest = hashlib.sha256()

  def add(value: Any) -> None:
    if isinstance(value, Mapping):
      for name, each in sorted(value.items()):
        digest.update(f'{{{name}'.encode())
        add(each)
    elif isinstance(value, list | tuple):
      digest.update(f'[{len(value)}'.encode())
      for each in value:
        add(each)
    elif isinstance(value, np.ndarray):
      digest.update(f'{value.dtype} {value.shape}'.encode())
      digest.update(np.ascontiguousarray(value).tobytes())
    else:
      plain = value.item() if isinstance(value, np.generic) else value
      digest.update(json.dumps(plain).encode())

  add(parts)
  return digest.hexdigest()[:32]


def remembered(path: pathlib.Path, make: Callable[[], np.ndarray]) -> np.ndarray:
  """What a file holds; made and written, whole or not at all, where there is none."""
  if path.is_file():
    return np.load(path)
  made = make()
  path.parent.mkdir(parents=True, exist_ok=True)
  part = path.with_suffix('.part')
  with part.open('wb') as file:
    np.save(file, made)
  part.replace(path)
  return made


class CachedComposer:
  """A model that remembers on disk what it composed; in all else, that model.

  Args:
    composer: the model.
    folder: where to remember.
    bar: counts the images, if it is not None.
  """

  def __init__(self, composer: Any, folder: pathlib.Path, bar: Any = None):
    self._composer, self._folder, self._bar = composer, folder, bar

  def __getattr__(self, name: str) -> Any:
    return getattr(self._composer, name)

  def compose(
    self,
    stored: Mapping[str, np.ndarray],
    kept: Mapping[str, np.ndarray] | None = None,
    *,
    seeds: np.ndarray,
    **more: Any,
  ) -> np.ndarray:
    """As `Composer.compose`, block by block."""
    images = []
    for begin in range(0, len(seeds), BLOCK):
      rows = slice(begin, begin + BLOCK)
      # What is an array, or named arrays, has a row for each image.
      own = {name: _rows(value, rows, len(seeds)) for name, value in more.items()}
      part = {name: array[rows] for name, array in stored.items()}
      keep = None if kept is None else {n: array[rows] for n, array in kept.items()}
      images.append(self._remembered('compose', part, keep, seeds=seeds[rows], **own))
      if self._bar is not None:
        self._bar.update(len(images[-1]))
    return np.concatenate(images)

  def invert(self, *arguments: Any, **more: Any) -> np.ndarray:
    """As `Composer.invert`."""
    return self._remembered('invert', *arguments, **more)

  def compose_terms(self, terms: Any, **more: Any) -> np.ndarray:
    """As `Composer.compose_terms`."""
    return self._remembered('compose_terms', terms, **more)

  def _remembered(self, method: str, *arguments: Any, **more: Any) -> np.ndarray:
    model = [digest_of_code(), self._composer.fingerprint, method]
    path = self._folder / f'{digest_of(model, arguments, more)}.npy'
    call = getattr(self._composer, method)
    return remembered(path, lambda: call(*arguments, **more))


def _rows(value: Any, rows: slice, count: int) -> Any:
  if isinstance(value, np.ndarray) and len(value) == count:
    return value[rows]
  if isinstance(value, Mapping):
    return {name: _rows(each, rows, count) for name, each in value.items()}
  return value
