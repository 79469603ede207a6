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
import pathlib
import platform
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from array_record.python import array_record_module

from composer_jax import conditions as conditions_lib
from composer_jax.buckets import in_bucket, make_folder, open_path, put_file
from composer_jax.files import write_json
from composer_jax.images import Picture, composite, resize_square
from composer_jax.seeds import generator
from data_pipelines import sources
from data_pipelines.extractors import Extractor, open_extractor
from data_pipelines.records import WRITER_OPTIONS, RecordType, shard_name

RECEIPTS = '.shards'
"""Folder, beside the shards, of what is known about each and of unfinished files."""

COPY = ' (copy {})'
"""What is added to the key of an image for its second and further records."""

BATCH = 8
"""Pictures that a learned extractor gets at a time. What it finds may depend on this in
the last bits, so it is the same for everyone."""


@dataclasses.dataclass(frozen=True)
class Learned:
  """A learned extractor and what it fills.

  Attributes:
    field: of a record: the name of a condition, or 'text'.
    spec: as `extractors.open_extractor` takes it.
    digest: `extractor_digest` when the shards were planned.
    versions: of the packages, and of the device, that it runs on; sorted pairs.
  """

  field: str
  spec: str
  digest: str
  versions: tuple[tuple[str, str], ...]


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
    learned: what is not extracted by default.
  """

  source: str
  keys: str
  directory: str
  size: int
  crop: Literal['centre', 'random']
  seed: int
  conditions: tuple[str, ...]
  learned: tuple[Learned, ...] = ()

  def record_type(self) -> RecordType:
    return RecordType.of(self.size, conditions_lib.by_name(self.conditions))


@dataclasses.dataclass(frozen=True)
class Shard:
  """One file of a split.

  Attributes:
    split: 'train' or 'test'.
    index: of this shard in the split.
    count: of shards in the split.
    images: what goes into it, in order: for each record, the image's place in the
      source, and the number of the copy.
  """

  split: str
  index: int
  count: int
  images: tuple[tuple[int, int], ...]

  @property
  def name(self) -> str:
    return shard_name(self.split, self.index, self.count)


def source_key(key: str) -> str:
  """The key that the source knows the image of a record by."""
  return re.sub(r' \(copy \d+\)$', '', key)


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
  if in_bucket(directory):  # An object is whole or not there at all.
    return
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
    directory: of the file, on disk or in a bucket; it need not exist.
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
  make_folder(receipts)
  # ArrayRecord writes to disks only.
  workplace = tempfile.gettempdir() if in_bucket(directory) else receipts
  part = pathlib.Path(workplace) / f'{name}.{secrets.token_hex(4)}.part'
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
    put_file(part, directory / name)
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
  """One image and its stored conditions, as a record of `settings.record_type()`.

  Conditions of `settings.learned` are left out.
  """
  picture = square(settings, key, picture, settings.size)
  record = {'key': key, 'text': caption, 'image': picture.pixels}
  learned = {each.field for each in settings.learned}
  for condition in conditions_lib.by_name(settings.conditions):
    if condition.name not in learned:
      rng = generator(settings.seed, key, condition.name)
      record[condition.name] = condition.extract(picture, rng)
  return record


def square(settings: Settings, key: str, picture: Picture, side: int) -> Picture:
  """What is kept of a picture, over its background: the same at any `side`."""
  seed = settings.seed
  picture = resize_square(
    picture, side, crop=settings.crop, rng=generator(seed, key, 'crop')
  )
  if picture.alpha is None:
    return picture
  return composite(picture, background(generator(seed, key, 'background')))


def write_shard(
  settings: Settings, shard: Shard, source: sources.Source | None = None
) -> dict[str, Any]:
  """Prepares the images of one shard, or does nothing if that is done.

  An image that cannot be used is left out and listed; one bad file must not end a
  run over millions.

  Args:
    settings: what it shares with other shards.
    shard: which images.
    source: of the images, as it was when the shards were planned. By default it is
      opened again, and refused if it has changed since.

  Returns:
    The receipt, as `write_file` returns it, with `texts` (how many records have
    a caption), `captioned` (how many of these an extractor has made) and
    `rejected` (a list of {key, reason, message}).

  Raises:
    OSError: the shard cannot be written, or the source's disk fails.
  """
  directory = open_path(settings.directory)
  if receipt := receipt_of(directory, shard.name):
    return receipt
  if source is None:
    source = _open_source(settings)
  about = {'texts': 0, 'captioned': 0, 'rejected': []}
  records = _records(settings, shard, source, about)
  return write_file(directory, shard.name, records, about)


def _records(
  settings: Settings, shard: Shard, source: sources.Source, about: dict[str, Any]
) -> Iterable[bytes]:
  keys = source.keys()
  extractors = {each.field: _open_extractor(each) for each in settings.learned}
  sides = {extractor.side for extractor in extractors.values()}
  drafts: list[_Draft] = []
  for index, copy in shard.images:
    key = keys[index] + (COPY.format(copy + 1) if copy else '')
    try:
      example = source.load(index, max({settings.size, *sides}))
      picture = example.picture
      record = prepare_one(settings, key, picture, example.caption or '')
      squares = {side: square(settings, key, picture, side).pixels for side in sides}
    except Exception as error:  # Decoders raise anything at all.
      _reject(about, key, error)
      continue
    drafts.append((record, squares))
    if len(drafts) == BATCH:
      yield from _encoded(settings, extractors, drafts, about)
      drafts = []
  yield from _encoded(settings, extractors, drafts, about)


_Draft = tuple[dict[str, Any], dict[int, np.ndarray]]
"""A record that lacks what is learned, and the square of its picture by side."""


def _encoded(
  settings: Settings,
  extractors: dict[str, Extractor],
  drafts: list[_Draft],
  about: dict[str, Any],
) -> Iterable[bytes]:
  """Fills what extractors find in a batch, and encodes the records that are whole."""
  found: list[dict[str, Any]] = [{} for _ in drafts]
  for field, extractor in extractors.items():
    # A text that came with the picture is kept.
    lacking = [i for i, (record, _) in enumerate(drafts) if not record.get(field)]
    if lacking:
      pictures = np.stack([drafts[i][1][extractor.side] for i in lacking])
      for i, value in zip(lacking, _extract(extractor, pictures), strict=True):
        found[i][field] = value
  record_type = settings.record_type()
  for (record, _), values in zip(drafts, found, strict=True):
    try:
      for field, value in values.items():
        record[field] = extractors[field].store(value, settings.size)
      data = record_type.encode(record)
    except Exception as error:
      _reject(about, record['key'], error)
      continue
    about['texts'] += bool(record['text'])
    about['captioned'] += bool('text' in values and record['text'])
    yield data


def _extract(extractor: Extractor, pictures: np.ndarray) -> Sequence[Any]:
  try:
    return extractor.extract(pictures)
  except (MemoryError, ValueError):
    raise
  except Exception as error:  # Some libraries' errors are of no common class.
    # The pictures are sound, so this would go on with the next ones.
    raise RuntimeError(
      f'{extractor.about["name"]} cannot be run on pictures of'
      f' {extractor.side} x {extractor.side} pixels: {type(error).__name__}: {error}'
    ) from error


def _reject(about: dict[str, Any], key: str, error: Exception) -> None:
  """Counts an image as one that cannot be used, if that is what the error says."""
  if _stops_the_run(error):
    raise error
  reason = getattr(error, 'reason', f'error:{type(error).__name__}')
  about['rejected'].append({'key': key, 'reason': reason, 'message': str(error)})


@functools.lru_cache(maxsize=8)
def _open_extractor(learned: Learned) -> Extractor:
  """An extractor; its model is opened once a process, not once a shard."""
  extractor = open_extractor(learned.field, learned.spec)
  if extractor_digest(extractor) != learned.digest:
    raise RuntimeError(
      f'{learned.spec} has changed since this run began. Let it be, and prepare into'
      ' another folder.'
    )
  require_versions(learned.versions, extractor.versions)
  return extractor


def require_versions(
  planned: Iterable[tuple[str, str]], here: Mapping[str, str]
) -> None:
  """Refuses to mix what different versions of packages make of the same images.

  Raises:
    RuntimeError: this process has others than the one that has planned the shards.
  """
  if other := [(name, v) for name, v in planned if here.get(name) != v]:
    listed = ', '.join(f'{name} {here.get(name)} instead of {v}' for name, v in other)
    raise RuntimeError(
      f'{platform.node()} has {listed}, with which the run was planned; install the'
      ' same everywhere. A device counts too: plan on a machine that has it.'
    )


def extractor_digest(extractor: Extractor) -> str:
  """One digest of all files of an extractor."""
  digests = extractor.about['digests']
  return digest_of(f'{name} {digest}' for name, digest in digests.items())


@functools.lru_cache(maxsize=1)
def _open_source(settings: Settings) -> sources.Source:
  """A source; opened once a process, not once a shard."""
  source = sources.open_source(settings.source)
  if digest_of(source.keys()) != settings.keys:
    raise RuntimeError(
      f'{settings.source} has changed since this run began, so its images can no longer'
      ' be told apart by number. Let it be, and prepare it into another folder.'
    )
  return source


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
