"""A folder of images, at any depth, with or without captions; see also `bucket`.

Captions are taken from a `.txt` file beside the image that has its name, or else
from one table in the folder itself: `captions.jsonl` or `captions.csv`, or
`metadata.jsonl` or `metadata.csv` as Hugging Face's `imagefolder` has it.
"""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import posixpath
import stat
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

from composer_jax.images import BadImage, open_image
from data_pipelines.sources.source import (
  MAX_CAPTION,
  BadRecord,
  Example,
  check_caption,
  text_key,
)

TABLES = ('captions.jsonl', 'captions.csv', 'metadata.jsonl', 'metadata.csv')
"""Names of caption tables, one of which may lie in the folder."""

_FILE_FIELDS = ('file_name', 'file', 'image')
_CAPTION_FIELDS = ('caption', 'text')

# What one file can be to blame for; a failing disk is another matter.
_OF_THIS_FILE = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.ELOOP)


class FolderSource:
  """The files below a folder, each of which is expected to be an image.

  Only known companions of images are passed over: captions, and what file
  managers leave behind. Any other file has a key, and is refused when it is
  loaded, so that it is counted rather than lost.
  """

  licence = 'unknown: the owner of the folder decides'
  credit = 'unknown: the owner of the folder decides'

  def __init__(self, path: str) -> None:
    """Lists the folder.

    Raises:
      FileNotFoundError: if there is no such folder.
      ValueError: if it holds no images, or its caption table is malformed.
    """
    self.name = f'folder:{path}'
    self._root = self._open_root(path)
    found = self._files_below()
    files = {text_key(relative): relative for relative in found if is_image(relative)}
    if not files:
      raise ValueError(
        f'{self.name}: no images in {self._root}, expected at least one file, at'
        ' any depth, that is neither a caption nor hidden.'
      )
    self._keys = sorted(files)
    self._files = [files[key] for key in self._keys]
    self._captions = self._read_table()
    if self._captions and self._captions.keys().isdisjoint(self._files):
      raise ValueError(
        f'{self.name}: the caption table names {len(self._captions):,} files, such as'
        f' {next(iter(self._captions))!r}, and none is in the folder. Names are'
        ' relative to the folder, with forward slashes.'
      )

  def keys(self) -> Sequence[str]:
    """Paths relative to the folder; see `text_key` for unusual characters."""
    return self._keys

  def load(self, index: int, size: int) -> Example:
    """Reads one image and its caption; see `Source.load`."""
    key, relative = self._keys[index], self._files[index]
    try:
      # Twice the size leaves the final area average enough to work with.
      picture = open_image(self._image(relative, key), name=key, at_least=2 * size)
      caption = self._caption_beside(relative, key)
    except OSError as error:
      if error.errno not in _OF_THIS_FILE:
        raise
      raise BadRecord(
        'inaccessible',
        f'{key}: {error.strerror}, expected a file that can be read. Check that it'
        ' still exists, links included, and its permissions.',
      ) from error
    if caption is None:
      caption = self._captions.get(relative, '')
    return Example(key, picture, check_caption(caption, name=key))

  def _open_root(self, path: str) -> Any:
    root = os.path.abspath(os.path.expanduser(path))
    if not os.path.isdir(root):
      raise FileNotFoundError(f'{self.name}: {root} is not a folder.')
    return root

  def _files_below(self) -> Iterator[str]:
    """Paths, relative to the folder, of all files outside hidden folders."""
    seen = set()
    for folder, below, names in os.walk(self._root, onerror=_fail, followlinks=True):
      status = os.stat(folder)
      identity = status.st_dev, status.st_ino
      if identity in seen:  # A link back up, or a second one to the same folder.
        below.clear()
        continue
      seen.add(identity)
      # In a fixed order, or chance would decide which of two links is followed.
      below[:] = sorted(name for name in below if not name.startswith('.'))
      for name in names:
        relative = os.path.relpath(os.path.join(folder, name), self._root)
        yield relative.replace(os.sep, '/')

  def _image(self, relative: str, key: str) -> str | bytes:
    """What `open_image` takes."""
    path = os.path.join(self._root, relative)
    if not stat.S_ISREG(os.stat(path).st_mode):  # Opening a pipe would block.
      raise BadImage('not_an_image', f'{key}: a device or pipe, expected a file.')
    return path

  def _open(self, relative: str) -> BinaryIO | None:
    """Opens a file; None if there is no such file."""
    try:
      return open(os.path.join(self._root, relative), 'rb')
    except (FileNotFoundError, IsADirectoryError):
      return None

  def _caption_beside(self, relative: str, key: str) -> str | None:
    """The text of the `.txt` file beside an image, or None if there is none."""
    limit = 4 * MAX_CAPTION  # UTF-8 takes up to 4 bytes a character.
    file = self._open(posixpath.splitext(relative)[0] + '.txt')
    if file is None:
      return None
    with file:
      text = file.read(limit + 1)
    if len(text) > limit:
      raise BadRecord(
        'caption_too_long',
        f'{key}: a caption file of more than {limit:,} bytes, expected at most'
        f' {MAX_CAPTION:,} characters. Shorten it.',
      )
    return text.decode('utf-8-sig', 'surrogateescape')

  def _read_table(self) -> dict[str, str]:
    """Captions by relative path, from the one table in the folder; {} without one."""
    found = {name: self._open(name) for name in TABLES}
    tables = {name: file for name, file in found.items() if file is not None}
    if len(tables) > 1:
      raise ValueError(
        f'{self._root}: {" and ".join(tables)}, expected one table. Keep one.'
      )
    for table, data in tables.items():
      # The encoding is checked where a caption is used: one bad row costs one image.
      with io.TextIOWrapper(data, 'utf-8-sig', 'surrogateescape', newline='') as file:
        return _captions_in(file, f'{self._root}/{table}')
    return {}


def _captions_in(file: Iterator[str], path: str) -> dict[str, str]:
  """What one table says, by relative path."""
  captions: dict[str, str] = {}
  rows = _json_rows if path.endswith('.jsonl') else _csv_rows
  for line, row in rows(file, path):
    name, caption = _field(row, _FILE_FIELDS), _field(row, _CAPTION_FIELDS)
    if not isinstance(name, str) or not isinstance(caption, str | None):
      raise ValueError(
        f'{path}, line {line}: fields {", ".join(map(str, row))}; expected the'
        f' texts {" or ".join(_FILE_FIELDS)}, and {" or ".join(_CAPTION_FIELDS)}.'
      )
    # Of several captions the first one counts.
    captions.setdefault(posixpath.normpath(name), caption or '')
  return captions


def is_image(relative: str) -> bool:
  """Whether a file is no known companion of images."""
  name = posixpath.basename(relative)
  hidden = name.startswith('.') or name in ('Thumbs.db', 'desktop.ini')
  return not hidden and not name.endswith('.txt') and relative not in TABLES


def _fail(error: OSError) -> None:
  raise error  # Otherwise a folder that may not be read would look empty.


def _field(row: Mapping[Any, Any], names: tuple[str, ...]) -> Any:
  """The value of the first of `names` that a row has, or `...` if it has none."""
  return next((row[name] for name in names if name in row), ...)


def _json_rows(file: Iterator[str], path: str) -> Iterator[tuple[int, dict[str, Any]]]:
  for line, text in enumerate(file, start=1):
    if not text.strip():
      continue
    try:
      row = json.loads(text)
    except json.JSONDecodeError as error:
      raise ValueError(f'{path}, line {line}: not JSON ({error}).') from error
    if not isinstance(row, dict):
      raise ValueError(f'{path}, line {line}: not a JSON object.')
    yield line, row


def _csv_rows(file: Iterator[str], path: str) -> Iterator[tuple[int, dict[Any, Any]]]:
  reader = csv.DictReader(file, strict=True)
  try:
    for row in reader:
      yield reader.line_num, row
  except csv.Error as error:
    line = reader.reader.line_num
    raise ValueError(f'{path}, line {line}: not CSV ({error}).') from error
