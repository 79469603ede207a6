"""WebDataset shards: tar files in which files of one name make one sample.

The layout is that of https://github.com/webdataset/webdataset: a sample is all
members whose paths are equal up to the first dot of the file name.
"""

from __future__ import annotations

import dataclasses
import glob
import json
import os
import tarfile
from collections.abc import Sequence
from typing import BinaryIO

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
    pattern = os.path.abspath(os.path.expanduser(pattern))
    shards = sorted(glob.glob(pattern, recursive=True))
    if not shards:
      raise FileNotFoundError(f'{self.name}: no file matches {pattern}.')
    root = _fixed_part(pattern)
    samples: dict[str, _Sample] = {}
    for shard in shards:
      # Unique, since no other path can go through that of a file.
      prefix = os.path.relpath(shard, root).replace(os.sep, '/')
      for name, sample in _samples(shard).items():
        samples[text_key(f'{prefix}/{name}')] = sample
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
    with open(sample.shard, 'rb') as shard:
      image = _read(shard, sample.image)
      caption = _read(shard, sample.caption) if sample.caption else b''
    # Twice the size leaves the final area average enough to work with.
    picture = open_image(image, name=key, at_least=2 * size)
    if sample.caption and sample.caption.extension == 'json':
      text = _caption_in_json(caption, key)
    else:
      # A long text need not be decoded in full to be refused as too long.
      text = caption[: 4 * MAX_CAPTION + 4].decode('utf-8-sig', 'surrogateescape')
    return Example(key, picture, check_caption(text, name=key))


def _fixed_part(pattern: str) -> str:
  """The folder in which the wildcards of a pattern begin."""
  folder = os.path.dirname(pattern)
  while glob.has_magic(folder):
    folder = os.path.dirname(folder)
  return folder


def _samples(path: str) -> dict[str, _Sample]:
  """The samples of one shard by name."""
  samples: dict[str, _Sample] = {}
  seen = set()
  try:
    with tarfile.open(path, 'r:') as shard:  # The colon: uncompressed only.
      for member in shard:
        folder, file = os.path.split(member.name)
        stem, dot, extension = file.partition('.')
        if not member.isreg() or not stem or not dot:
          continue  # Folders, links and hidden files are not part of samples.
        if member.name in seen:
          raise ValueError(f'{path}: {member.name!r} occurs twice, expected once.')
        seen.add(member.name)
        sample = samples.setdefault(os.path.join(folder, stem), _Sample(path))
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


def _preferred(
  old: _Member | None, new: _Member, extensions: tuple[str, ...]
) -> _Member | None:
  """The one of two members whose extension comes first in a list."""
  if new.extension not in extensions:
    return old
  if old is None:
    return new
  return min(old, new, key=lambda member: extensions.index(member.extension))


def _read(shard: BinaryIO, member: _Member) -> bytes:
  shard.seek(member.offset)
  return shard.read(member.length)


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
