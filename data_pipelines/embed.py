"""Adds conditions that a trained encoder makes to a folder that is prepared already.

Each goes to files of its own, DIR/added/NAME/, one for each shard of images and
aligned with it record by record; the images' own files are never touched. Another
encoder can so replace what one has made.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tqdm
from array_record.python.array_record_data_source import ArrayRecordDataSource

from composer_jax import conditions as conditions_lib
from composer_jax.buckets import make_folder, open_path, remove_folder
from composer_jax.conditions import Condition, Encoder
from composer_jax.conditions.statistics import embedding_statistics
from composer_jax.files import read_json, write_json
from data_pipelines.cache import on_disk
from data_pipelines.dataset import ADDED, PreparedDataset
from data_pipelines.records import RecordType, shard_name
from data_pipelines.shard import (
  RECEIPTS,
  receipt_of,
  remove_unfinished,
  write_file,
)

Pictures = Callable[[Sequence[str]], np.ndarray]
"""Keys to uint8 sRGB (B, S, S, 3), such as `extractors.semantics.Originals`."""


def prepare_onto(
  directory: str | os.PathLike[str],
  conditions: Iterable[str],
  encoder: Encoder,
  *,
  provenance: Mapping[str, Any],
  originals: Pictures | None = None,
  batch_size: int = 64,
  overwrite: bool = False,
  progress: bool = True,
) -> dict[str, dict[str, Any]]:
  """Adds embedded conditions, or goes on where a broken run left off.

  Args:
    directory: as `prepare.prepare` wrote it, on disk or in a bucket.
    conditions: names of conditions that an encoder makes.
    encoder: the trained dual encoder.
    provenance: what tells this encoder from others, such as the digest of its
      weights; plain JSON.
    originals: the pictures to embed, by key; by default those that are stored.
    batch_size: images to embed at a time.
    overwrite: whether to replace what another encoder has added.
    progress: whether to show a progress bar.

  Returns:
    For each condition, the contents of `added/NAME/added.json`.

  Raises:
    ValueError: a condition is not made by an encoder, or another encoder has
      added it already.
    FileNotFoundError: the folder is not completely prepared.
    OSError: the folder cannot be written. What is done stays.
  """
  directory = open_path(directory)
  chosen = conditions_lib.by_name(conditions)
  for condition in chosen:
    if not condition.embedded:
      raise ValueError(
        f'{condition.name} is measured in images, not made by an encoder.'
      )
  info = PreparedDataset(directory, conditions=()).info
  total = info['kept'] * len(chosen)
  with tqdm.tqdm(total=total, unit='image', desc='add', disable=not progress) as bar:
    return {
      condition.name: _add(
        directory,
        info,
        condition,
        encoder,
        provenance,
        originals,
        batch_size,
        overwrite,
        bar,
      )
      for condition in chosen
    }


def _add(
  directory: pathlib.Path,
  info: Mapping[str, Any],
  condition: Condition,
  encoder: Encoder,
  provenance: Mapping[str, Any],
  originals: Pictures | None,
  batch_size: int,
  overwrite: bool,
  bar: tqdm.tqdm,
) -> dict[str, Any]:
  home = directory / ADDED / condition.name
  plan = {
    'condition': condition.name,
    'base': info['digest'],
    'encoder': json.loads(json.dumps(provenance)),  # Tuples to lists, as stored.
  }
  _agree_on_plan(home, plan, overwrite)
  receipts = []
  for split, about in info['splits'].items():
    dataset = PreparedDataset(directory, split, conditions=())
    first, count = 0, len(about['shard_lengths'])
    for index, length in enumerate(about['shard_lengths']):
      name = shard_name(split, index, count)
      receipt = receipt_of(home, name)
      if receipt is None:
        type_of_records: dict[str, Any] = {}
        records = _records(
            dataset, range(first, first + length), condition, encoder, originals,
            batch_size, type_of_records,
        )  # fmt: skip
        receipt = write_file(home, name, records, type_of_records)
      receipts.append(receipt)
      first += length
      bar.update(length)
  # An empty shard has seen no array, so the type is that of any other.
  seen = next(receipt for receipt in receipts if receipt['kept'])
  digests = ''.join(f'{receipt["digest"]}\n' for receipt in receipts)
  added = plan | {
    'shape': seen['shape'],
    'dtype': seen['dtype'],
    'digest': hashlib.sha256(digests.encode()).hexdigest(),
  }
  remove_unfinished(home)
  lengths = info['splits']['train']['shard_lengths']
  if len(seen['shape']) == 1 and sum(lengths):
    # What a prior normalises its embeddings with.
    names = [shard_name('train', i, len(lengths)) for i in range(len(lengths))]
    folder = on_disk(home, names, added['digest'])
    added['statistics'] = _statistics(folder, names, lengths, condition, seen)
  write_json(home / 'added.json', added)
  return added


def _statistics(
  folder: pathlib.Path,
  names: Sequence[str],
  lengths: Sequence[int],
  condition: Condition,
  seen: Any,
) -> dict[str, list[float]]:
  """Mean and deviation of an embedding over the training images that have it."""
  source = ArrayRecordDataSource(
    [f'{folder / name}[0:{n}]' for name, n in zip(names, lengths, strict=True)]
  )
  shape = (tuple(seen['shape']), seen['dtype'])
  record_type = RecordType({condition.name: shape}, texts=('key',))

  def batches(size: int = 4096) -> Iterator[np.ndarray]:
    for begin in range(0, len(source), size):
      rows = range(begin, min(begin + size, len(source)))
      found = [record_type.decode(data) for data in source.__getitems__(list(rows))]
      values = np.stack([record[condition.name] for record in found])
      yield values[np.asarray(condition.present(values))]

  found = embedding_statistics(batches())
  return {key: value.tolist() for key, value in found._asdict().items()}


def _agree_on_plan(home: pathlib.Path, plan: dict[str, Any], overwrite: bool) -> None:
  """Records which encoder is adding here; refuses to mix two."""
  path = home / RECEIPTS / 'plan.json'
  if path.exists():
    needs = ('encoder', 'base')
    there = read_json(path, needs, f'Remove {home} and run again.')
    if there == plan:
      return
    if not overwrite:
      raise ValueError(
        f'{home} was made by {there["encoder"]} for data {there["base"][:8]}, not'
        f' by {plan["encoder"]} for data {plan["base"][:8]}. Use --overwrite to'
        ' replace it.'
      )
  if home.exists():
    remove_folder(home)
  make_folder(path.parent)
  write_json(path, plan)


def _records(
  dataset: PreparedDataset,
  indices: range,
  condition: Condition,
  encoder: Encoder,
  originals: Pictures | None,
  batch_size: int,
  type_of_records: dict[str, Any],
) -> Iterator[bytes]:
  """The encoded sidecar records of one shard, in the order of its images."""
  for start in range(indices.start, indices.stop, batch_size):
    records = [dataset[i] for i in range(start, min(start + batch_size, indices.stop))]
    # A full batch each time, so that a compiled encoder is compiled once.
    padded = records + records[-1:] * (batch_size - len(records))
    if originals is None or condition.from_text:
      images = np.stack([record['image'] for record in padded])
    else:
      images = originals([record['key'] for record in records])
      # As above, but without reading a picture again for it.
      last = np.repeat(images[-1:], batch_size - len(images), axis=0)
      images = np.concatenate([images, last])
    texts = [record['text'] for record in padded]
    values = np.asarray(condition.embed(encoder, images, texts)).astype(np.float16)
    values = values[: len(records)]
    if not np.isfinite(values).all():
      raise ValueError(
        f'{condition.name}: the encoder gave values that are not finite.'
      )
    shape, dtype = values.shape[1:], values.dtype.name
    type_of_records.update(shape=list(shape), dtype=dtype)
    record_type = RecordType({condition.name: (shape, dtype)}, texts=('key',))
    for record, value in zip(records, values, strict=True):
      yield record_type.encode({'key': record['key'], condition.name: value})
