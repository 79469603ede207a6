"""WebDataset shards: tar files in which files of one name make one sample.

The layout is that of https://github.com/webdataset/webdataset: a sample is all
members whose paths are equal up to the first dot of the file name. See also `bucket`.
"""

from __future__ import annotations

import dataclasses
import glob
import json
import os
import tarfile
from collections.abc import Iterable, Sequence
from typing import Any, BinaryIO

from composer_jax.images import open_image
from data_pipelines.sources.source import (
  MAX_CAPTION,
  BadRecord,
  Example,
  check_caption,
  text_key,
)

_IMAGES = ('jpg', 'jpeg', 'png', 'webp')
_CAPTIONS = ('txt', 'json')


@dataclasses.dataclass(frozen=True)
class _Member:
  """Where a file lies in a shard, so that it can be read without the others."""

  extension: str
  offset: int
  length: int


@dataclasses.dataclass
class _Sample:
  shard: str
  image: _Member | None = None
  caption: _Member | None = None


class WebDatasetSource:
  """The samples of a set of shards, in any order, without unpacking them.

  A sample without an image has a key all the same, and is refused when it is
  loaded, so that it is counted rather than lost.
  """

  licence = 'unknown: the owner of the shards decides'
  credit = 'unknown: the owner of the shards decides'

  def __init__(self, pattern: str) -> None:
    """Reads the table of contents of each shard.

    Args:
      pattern: a path with wildcards, where `**` stands for folders at any depth.

    Raises:
      FileNotFoundError: if no shard matches the pattern.
      ValueError: if a shard is not an uncompressed tar file, a file occurs twice,
        or no sample has an image.
    """
    self.name = f'webdataset:{pattern}'
    self._root, shards = self._find(pattern)
    if not shards:
      raise FileNotFoundError(f'{self.name}: no file matches.')
    samples: dict[str, _Sample] = {}
    for shard, found in zip(shards, self._contents(shards), strict=True):
      for name, sample in found.items():
        # Unique, since no other path can go through that of a file.
        samples[text_key(f'{shard}/{name}')] = sample
    if not any(sample.image for sample in samples.values()):
      raise ValueError(
        f'{self.name}: no images in {len(shards)} shards, expected members that end'
        f' in .{", .".join(_IMAGES)}.'
      )
    self._keys = sorted(samples)
    self._samples = [samples[key] for key in self._keys]

  def keys(self) -> Sequence[str]:
    """The shard and the sample in it, such as `train-0003.tar/000042`."""
    return self._keys

  def load(self, index: int, size: int) -> Example:
    """Reads one image and its caption; see `Source.load`."""
    key, sample = self._keys[index], self._samples[index]
    if sample.image is None:
      raise BadRecord(
        'no_image',
        f'{key}: no image in the sample, expected one of .{", .".join(_IMAGES)}.',
      )
    image = self._read(sample.shard, sample.image)
    caption = self._read(sample.shard, sample.caption) if sample.caption else b''
    # Twice the size leaves the final area average enough to work with.
    picture = open_image(image, name=key, at_least=2 * size)
    if sample.caption and sample.caption.extension == 'json':
      text = _caption_in_json(caption, key)
    else:
      # A long text need not be decoded in full to be refused as too long.
      text = caption[: 4 * MAX_CAPTION + 4].decode('utf-8-sig', 'surrogateescape')
    return Example(key, picture, check_caption(text, name=key))

  def _find(self, pattern: str) -> tuple[Any, list[str]]:
    """The folder in which wildcards begin; the shards relative to it, sorted."""
    pattern = os.path.abspath(os.path.expanduser(pattern))
    root = fixed_part(pattern)
    shards = sorted(glob.glob(pattern, recursive=True))
    return root, [os.path.relpath(s, root).replace(os.sep, '/') for s in shards]

  def _contents(self, shards: Sequence[str]) -> Iterable[dict[str, _Sample]]:
    return map(self._contents_of, shards)

  def _contents_of(self, shard: str) -> dict[str, _Sample]:
    """The samples of one shard by name."""
    samples: dict[str, _Sample] = {}
    seen = set()
    path = f'{self._root}/{shard}'
    try:
      # The colon: uncompressed only.
      with self._open(shard) as file, tarfile.open(fileobj=file, mode='r:') as members:
        for member in members:
          folder, name = os.path.split(member.name)
          stem, dot, extension = name.partition('.')
          if not member.isreg() or not stem or not dot:
            continue  # Folders, links and hidden files are not part of samples.
          if member.name in seen:
            raise ValueError(f'{path}: {member.name!r} occurs twice, expected once.')
          seen.add(member.name)
          sample = samples.setdefault(os.path.join(folder, stem), _Sample(shard))
          extension = extension.lower()
          entry = _Member(extension, member.offset_data, member.size)
          sample.image = _preferred(sample.image, entry, _IMAGES)
          sample.caption = _preferred(sample.caption, entry, _CAPTIONS)
    except tarfile.TarError as error:
      raise ValueError(
        f'{path}: {error}, expected a complete, uncompressed tar file. Unpack .tar.gz'
        ' to .tar first, and copy a damaged shard again.'
      ) from error
    return samples

  def _open(self, shard: str) -> BinaryIO:
    return open(os.path.join(self._root, shard), 'rb')

  def _read(self, shard: str, member: _Member) -> bytes:
    with self._open(shard) as file:
      file.seek(member.offset)
      return file.read(member.length)


def fixed_part(pattern: str) -> str:
  """The folder in which the wildcards of a pattern begin."""
  folder = os.path.dirname(pattern)
  while glob.has_magic(folder):
    folder = os.path.dirname(folder)
  return folder


def _preferred(
  old: _Member | None, new: _Member, extensions: tuple[str, ...]
) -> _Member | None:
  """The one of two members whose extension comes first in a list."""
  if new.extension not in extensions:
    return old
  if old is None:
    return new
  return min(old, new, key=lambda member: extensions.index(member.extension))


def _caption_in_json(data: bytes, key: str) -> str:
  """The field 'caption' of a JSON object; '' if it is absent or null."""
  try:
    caption = json.loads(data.decode('utf-8-sig', 'surrogateescape')).get('caption')
  except (json.JSONDecodeError, AttributeError) as error:
    raise BadRecord(
      'caption_not_json', f'{key}: {error}, expected a JSON object in the .json file.'
    ) from error
  if not isinstance(caption, str | None):
    raise BadRecord(
      'caption_not_json', f'{key}: caption {caption!r:.60}, expected a text.'
    )
  return caption or ''
