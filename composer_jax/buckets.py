"""Folders in object stores, such as s3://bucket/data, beside those on disk.

A path in a bucket is one of universal_pathlib, which behaves like pathlib's and reaches
whatever fsspec does. Two things differ: there are no folders to make, and nothing can
be renamed. In place of that, an object is there whole or not at all.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any, BinaryIO

from composer_jax.extras import MissingExtra

_EXTRAS = {'s3': 's3', 's3a': 's3', 'gs': 'gcs', 'gcs': 'gcs'}


def open_path(path: str | os.PathLike[str]) -> pathlib.Path:
  """A path on disk, or in a bucket if it is of the form SCHEME://.

  What is in a bucket is no instance of `pathlib.Path` but behaves like one, except
  that `os.fspath` refuses it; use `str`.

  Raises:
    MissingExtra: what reaches that kind of bucket is not installed.
    ValueError: there is no such scheme.
    OSError: the bucket cannot be reached, as when credentials are missing.
  """
  if '://' in str(path):
    return _in_bucket(str(path))
  return pathlib.Path(path)


def in_bucket(path: str | os.PathLike[str]) -> bool:
  """Whether a path is of the form SCHEME://."""
  return '://' in str(path)


def make_folder(path: pathlib.Path) -> None:
  """Makes a folder and those above it, where there are folders."""
  if not in_bucket(path):
    path.mkdir(parents=True, exist_ok=True)


def remove_folder(path: pathlib.Path) -> None:
  """Removes a folder and all that is in it."""
  if in_bucket(path):
    with _named(path):
      _fs(path).rm(_name(path), recursive=True)
  else:
    shutil.rmtree(path)


def put_file(part: pathlib.Path, path: pathlib.Path) -> None:
  """Gives a complete file on disk its final name; a kill leaves it whole or absent.

  Args:
    part: the file. It is gone afterwards if `path` is on the same disk.
    path: its final place.
  """
  if in_bucket(path):
    with _named(path):
      _fs(path).put_file(str(part), _name(path))
  else:
    os.replace(part, path)


def put_bytes(data: bytes, path: pathlib.Path) -> None:
  """Writes an object of a bucket in one request."""
  with _named(path):
    _fs(path).pipe_file(_name(path), data)


def get_file(path: pathlib.Path, part: pathlib.Path) -> None:
  """Copies an object of a bucket to a file on disk."""
  with _named(path):
    _fs(path).get_file(_name(path), str(part))


def get_bytes(
  path: pathlib.Path, start: int | None = None, end: int | None = None
) -> bytes:
  """Reads an object of a bucket, or a part of it.

  Raises:
    FileNotFoundError: there is none.
    OSError: the store cannot be reached, or refuses.
  """
  with _named(path):
    return _fs(path).cat_file(_name(path), start=start, end=end)


def files_below(path: pathlib.Path) -> list[str]:
  """Names of all objects below a path of a bucket, relative to it; sorted."""
  with _named(path):
    names = _fs(path).find(_name(path))
  return sorted(os.path.relpath(name, _name(path)) for name in names)


def files_matching(path: pathlib.Path, pattern: str) -> list[str]:
  """Objects that match a pattern such as s3://bucket/data/*.tar; as `files_below`."""
  with _named(path):
    names = _fs(path).glob(pattern)
  return sorted(os.path.relpath(name, _name(path)) for name in names)


def open_object(path: pathlib.Path) -> BinaryIO:
  """Opens an object of a bucket, to be read from its beginning."""
  with _named(path):
    return _fs(path).open(_name(path), 'rb')


@functools.cache
def _in_bucket(text: str) -> pathlib.Path:
  scheme = text.partition('://')[0]
  try:
    import upath

    # A listing that is kept would hide what other processes have written since.
    path: Any = upath.UPath(text, use_listings_cache=False)
    _ = path.fs
  except ImportError as error:
    extra = _EXTRAS.get(scheme)
    install = f"pip install 'composer_jax[{extra}]'" if extra else 'install that'
    raise MissingExtra(f'{text} needs a package: {error}. {install}.') from error
  except ValueError as error:
    raise ValueError(f'{text}: {error}; expected s3:// or gs://.') from error
  with _named(path):
    path.exists()
  return path


@contextlib.contextmanager
def _named(path: pathlib.Path) -> Iterator[None]:
  """Errors of the many libraries below fsspec, as errors of the system."""
  try:
    yield
  except FileNotFoundError as error:
    raise FileNotFoundError(
      errno.ENOENT, 'No such object, or no such bucket', str(path)
    ) from error
  except Exception as error:
    # Credentials that have expired are among these. They have a number, since they are
    # the fault of the machine, and of no single image.
    raise OSError(
      errno.EIO,
      f'{type(error).__name__}: {error} Check the network, the credentials and the'
      ' address of the store',
      str(path),
    ) from error


def _fs(path: Any) -> Any:
  return path.fs


def _name(path: Any) -> str:
  return path.path
