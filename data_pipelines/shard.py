"""One unit of preparing: some source images in, one ArrayRecord file out.

A unit can be killed at any instant and run again anywhere: what it writes depends on
its arguments alone, and a file has its final name only when it is complete.
"""

from __future__ import annotations

import colorsys
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import secrets
import shutil
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
from array_record.python import array_record_module

from composer_jax import conditions as conditions_lib
from composer_jax.files import write_json
from composer_jax.images import Picture, composite, resize_square
from composer_jax.seeds import generator
from data_pipelines import sources
from data_pipelines.records import WRITER_OPTIONS, RecordType, shard_name

RECEIPTS = '.shards'
"""Folder, beside the shards, of what is known about each and of unfinished files."""


@dataclasses.dataclass(frozen=True)
class Settings:
  """What all shards of a data set share.

  Attributes:
    source: as `sources.open_source` takes it.
    keys: `digest_of` the source's keys when the shards were planned.
    directory: where the data set goes.
    size: side of the prepared images, in pixels.
    crop: 'centre' or 'random', as `images.resize_square` takes it.
    seed: of everything that is drawn at random.
    conditions: names of the conditions to store.
  """

  source: str
  keys: str
  directory: str
  size: int
  crop: Literal['centre', 'random']
  seed: int
  conditions: tuple[str, ...]

  def record_type(self) -> RecordType:
    return RecordType.of(self.size, conditions_lib.by_name(self.conditions))


@dataclasses.dataclass(frozen=True)
class Shard:
  """One file of a split.

  Attributes:
    split: 'train' or 'test'.
    index: of this shard in the split.
    count: of shards in the split.
    indices: of the source's images that go into it, in order.
  """

  split: str
  index: int
  count: int
  indices: tuple[int, ...]

  @property
  def name(self) -> str:
    return shard_name(self.split, self.index, self.count)


def number_for(seed: int, *words: str) -> int:
  """A number of 128 bits that depends on the arguments alone.

  Python's own `hash` of a string differs from process to process.
  """
  message = json.dumps([seed, *words]).encode()
  return int.from_bytes(hashlib.blake2b(message, digest_size=16).digest())


def digest_of(texts: Iterable[str]) -> str:
  """SHA-256 of texts, in order, each ended by a line feed."""
  return hashlib.sha256(''.join(f'{text}\n' for text in texts).encode()).hexdigest()


def remove_unfinished(directory: pathlib.Path) -> None:
  """Removes what processes that were killed have left behind."""
  for part in [*directory.glob('*.part'), *(directory / RECEIPTS).glob('*.part')]:
    if part.is_dir():
      shutil.rmtree(part, ignore_errors=True)
    else:
      part.unlink(missing_ok=True)


def receipt_of(directory: pathlib.Path, name: str) -> dict[str, Any] | None:
  """What `write_file` returned for a file, or None if the file is not complete."""
  try:
    receipt = json.loads((directory / RECEIPTS / f'{name}.json').read_text('utf-8'))
    complete = (directory / name).stat().st_size == receipt['bytes']
  except (FileNotFoundError, ValueError, KeyError):  # Damaged is as good as missing.
    return None
  return receipt if complete else None


def write_file(
  directory: pathlib.Path, name: str, records: Iterable[bytes], about: dict[str, Any]
) -> dict[str, Any]:
  """Writes records to an ArrayRecord file, then its receipt, then names the file.

  Args:
    directory: of the file; it need not exist.
    name: of the file.
    records: the encoded records.
    about: more to keep in the receipt. Read when the records are used up, so
      that what produces them can still add to it.

  Returns:
    The receipt: `about`, and `kept` (records), `bytes` (of the file),
    `record_bytes` and `digest` (SHA-256 over the bytes of all records).

  Raises:
    OSError: the file cannot be written, as when the disk is full.
  """
  receipts = directory / RECEIPTS
  receipts.mkdir(parents=True, exist_ok=True)
  part = receipts / f'{name}.{secrets.token_hex(4)}.part'
  digest, kept, record_bytes = hashlib.sha256(), 0, 0
  try:
    writer = array_record_module.ArrayRecordWriter(str(part), WRITER_OPTIONS)
    try:
      for record in records:
        writer.write(record)
        digest.update(record)
        kept += 1
        record_bytes += len(record)
    finally:
      _close(writer, part)
    receipt = about | {
      'kept': kept,
      'bytes': part.stat().st_size,
      'record_bytes': record_bytes,
      'digest': digest.hexdigest(),
    }
    # Receipt first: a file under its final name then always has its receipt.
    write_json(receipts / f'{name}.json', receipt)
    os.replace(part, directory / name)
  finally:
    part.unlink(missing_ok=True)
  return receipt


def _close(writer: Any, path: pathlib.Path) -> None:
  try:
    writer.close()
  except RuntimeError as error:  # How, and when, ArrayRecord reports a full disk.
    raise OSError(f'Cannot write {path}: {error}') from error


def background(rng: np.random.Generator) -> np.ndarray:
  """A flat colour to lay a transparent image over: uint8 sRGB (3,).

  One in six is a gray or white. The others keep clear of black, mud and glare.
  """
  if rng.random() < 1 / 6:
    return np.full(3, rng.integers(96, 256), np.uint8)
  hue, saturation, value = rng.uniform((0, 0.15, 0.35), (1, 0.9, 1))
  colour = np.array(colorsys.hsv_to_rgb(hue, saturation, value))
  return np.rint(255 * colour).astype(np.uint8)


def prepare_one(
  settings: Settings, key: str, picture: Picture, caption: str
) -> dict[str, Any]:
  """One image and its stored conditions, as a record of `settings.record_type()`."""
  seed = settings.seed
  picture = resize_square(
    picture, settings.size, crop=settings.crop, rng=generator(seed, key, 'crop')
  )
  if picture.alpha is not None:
    picture = composite(picture, background(generator(seed, key, 'background')))
  record = {'key': key, 'text': caption, 'image': picture.pixels}
  for condition in conditions_lib.by_name(settings.conditions):
    rng = generator(seed, key, condition.name)
    record[condition.name] = condition.extract(picture, rng)
  return record


def write_shard(settings: Settings, shard: Shard) -> dict[str, Any]:
  """Prepares the images of one shard, or does nothing if that is done.

  An image that cannot be used is left out and listed; one bad file must not end a
  run over millions.

  Returns:
    The receipt, as `write_file` returns it, with `texts` (how many records have
    a caption) and `rejected` (a list of {key, reason, message}).

  Raises:
    OSError: the shard cannot be written, or the source's disk fails.
  """
  directory = pathlib.Path(settings.directory)
  if receipt := receipt_of(directory, shard.name):
    return receipt
  about = {'texts': 0, 'rejected': []}
  records = _records(settings, shard, about)
  return write_file(directory, shard.name, records, about)


def _records(
  settings: Settings, shard: Shard, about: dict[str, Any]
) -> Iterable[bytes]:
  source, keys, digest = _open_source(settings.source)
  if digest != settings.keys:
    raise RuntimeError(
      f'{settings.source} has changed since this run began, so its images can no longer'
      ' be told apart by number. Let it be, and prepare it into another folder.'
    )
  record_type = settings.record_type()
  for index in shard.indices:
    key = keys[index]
    try:
      example = source.load(index, settings.size)
      caption = example.caption or ''
      data = record_type.encode(prepare_one(settings, key, example.picture, caption))
    except Exception as error:  # Decoders raise anything at all.
      if _stops_the_run(error):
        raise
      reason = getattr(error, 'reason', f'error:{type(error).__name__}')
      about['rejected'].append({'key': key, 'reason': reason, 'message': str(error)})
      continue
    about['texts'] += bool(caption)
    yield data


@functools.lru_cache(maxsize=1)
def _open_source(spec: str) -> tuple[sources.Source, Sequence[str], str]:
  """A source, its keys and their digest; opened once a process, not once a shard."""
  source = sources.open_source(spec)
  keys = source.keys()
  return source, keys, digest_of(keys)


def _stops_the_run(error: Exception) -> bool:
  """Whether an error lies with the machine rather than with one image."""
  if isinstance(error, MemoryError):
    return True
  of_one_file = (FileNotFoundError, PermissionError, IsADirectoryError)
  # Decoders raise OSError without a number; a failing disk gives one.
  return (
    isinstance(error, OSError)
    and error.errno is not None
    and not isinstance(error, of_one_file)
  )
