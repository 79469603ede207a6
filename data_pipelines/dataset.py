"""A prepared folder, read by index."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterable
from typing import Any

from array_record.python.array_record_data_source import ArrayRecordDataSource

from composer_jax.buckets import open_path
from composer_jax.files import read_json
from data_pipelines.cache import on_disk
from data_pipelines.records import RecordType, shard_name

INFO = 'dataset.json'
ADDED = 'added'
"""Folder, inside a prepared one, of the conditions that were added later."""

_NEEDS = ('splits', 'conditions', 'size', 'digest', 'source', 'licence', 'credit')
_ADVICE = (
  'The folder is not completely prepared: run the `composer-jax prepare` that made it'
  ' again.'
)

Record = dict[str, Any]


class PreparedDataset:
  """One split of a prepared folder, by index.

  Attributes:
    directory: the folder, on disk or in a bucket.
    split: the name of the split.
    info: the contents of `dataset.json`.
    conditions: names of the conditions in each record, those stored with the
      images and those added later.
    added: by name, what is known of those added later; `encoder` tells which one
      made them.
  """

  def __init__(
    self,
    directory: str | os.PathLike[str],
    split: str = 'train',
    conditions: Iterable[str] | None = None,
  ):
    """See `load_dataset`."""
    self.directory, self.split = open_path(directory), split
    self.info: Record = read_json(self.directory / INFO, _NEEDS, _ADVICE)
    if split not in self.info['splits']:
      raise ValueError(
        f'{directory} has no split {split!r}, only {", ".join(self.info["splits"])}.'
      )
    self._lengths = self.info['splits'][split]['shard_lengths']
    added = self.added = _added(self.directory)
    present = {**self.info['conditions'], **added}
    wanted = set(present if conditions is None else conditions)
    if missing := sorted(wanted - present.keys()):
      raise ValueError(
        f'{directory} has no {missing[0]!r}, only {", ".join(present)}. A condition'
        ' that an encoder makes must be added to the folder first.'
      )
    self.conditions = tuple(name for name in present if name in wanted)
    arrays = {
      name: (tuple(spec['shape']), spec['dtype'])
      for name, spec in self.info['conditions'].items()
    }
    size = self.info['size']
    self._type = RecordType({'image': ((size, size, 3), 'uint8')} | arrays)
    self._unwanted = tuple(name for name in arrays if name not in wanted)
    self._source = self._open(self.directory, self.info['digest'])
    self._sidecars = {
      name: self._open_added(name, about)
      for name, about in added.items()
      if name in wanted
    }

  def _open(self, directory: pathlib.Path, digest: str) -> ArrayRecordDataSource:
    count = len(self._lengths)
    names = [shard_name(self.split, i, count) for i in range(count)]
    folder = on_disk(directory, names, digest)
    for name in names:
      if not (folder / name).is_file():
        raise FileNotFoundError(
          f'{directory / name} is missing; run the command that made it again.'
        )
    # Lengths are known, so spare the opening of every file to count.
    return ArrayRecordDataSource(
      [
        f'{folder / name}[0:{length}]'
        for name, length in zip(names, self._lengths, strict=True)
      ]
    )

  def _open_added(
    self, name: str, about: Record
  ) -> tuple[RecordType, ArrayRecordDataSource]:
    home = self.directory / ADDED / name
    if about['base'] != self.info['digest']:
      raise ValueError(
        f'{home} was made for other records than {self.directory} holds now; add'
        f' {name} again.'
      )
    shape, dtype = tuple(about['shape']), about['dtype']
    record_type = RecordType({name: (shape, dtype)}, texts=('key',))
    return record_type, self._open(home, about['digest'])

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> Record:
    """One record.

    Returns:
      `key` and `text` (str, '' where there is no caption), `image` as uint8 sRGB
      (S, S, 3), and each of `conditions` as its spec says. Arrays are read-only.

    Raises:
      IndexError: beyond the end.
      ValueError: a file is damaged or does not belong to the others.
    """
    if not -len(self) <= index < len(self):
      raise IndexError(f'Record {index} of {len(self)}.')
    index %= len(self)
    record = self._type.decode(self._source[index])
    for name in self._unwanted:
      del record[name]
    for name, (record_type, source) in self._sidecars.items():
      sidecar = record_type.decode(source[index])
      if sidecar['key'] != record['key']:
        raise ValueError(
          f'{self.directory / ADDED / name}: record {index} is of'
          f' {sidecar["key"]!r}, expected {record["key"]!r}; add {name} again.'
        )
      record[name] = sidecar[name]
    return record


def load_dataset(
  directory: str | os.PathLike[str],
  split: str = 'train',
  conditions: Iterable[str] | None = None,
) -> PreparedDataset:
  """Opens a prepared folder.

  Args:
    directory: as `prepare.prepare` wrote it, on disk or in a bucket. From a bucket, the
      split's shards are copied to this machine first; see `cache.on_disk`.
    split: 'train' or 'test'.
    conditions: names of those to read; by default all that are there.

  Raises:
    FileNotFoundError: the folder is not, or not completely, prepared.
    OSError: a bucket cannot be reached.
    ValueError: it lacks the split or a condition, or an added condition was made
      for other records.
  """
  return PreparedDataset(directory, split, conditions)


def _added(directory: pathlib.Path) -> dict[str, Record]:
  """The complete sidecars of a folder: condition name to {shape, dtype, ...}."""
  paths = sorted((directory / ADDED).glob('*/added.json'))
  needs = ('condition', 'base', 'shape', 'dtype', 'encoder', 'digest')
  found = [
    read_json(path, needs, f'Remove {path.parent}, add again.') for path in paths
  ]
  return {about['condition']: about for about in found}
