"""Prepares a data set: images in, records with conditions out.

The folder that results:

  composer-train.array_record-00000-of-00004   the records
  dataset_info.json, features.json             for TensorFlow Datasets
  rejected.jsonl                               what was left out, and why
  dataset.json                                 what the whole is; written last
  .shards/                                     plan and receipts, for resuming

Everything in it depends on the arguments alone, whatever the number of workers and
however often the run was broken off. Its `digest` is a SHA-256 over those of the
shards, train before test, each of which is one over the bytes of its records in
order; so nothing has to be read again to compute it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import os
import pathlib
import platform
import tempfile
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent import futures
from importlib import metadata
from typing import Any, Literal

import tqdm

from composer_jax import conditions as conditions_lib
from composer_jax.buckets import in_bucket, make_folder, open_path, put_file
from composer_jax.files import read_json, write_json, write_text
from data_pipelines import sources
from data_pipelines.dataset import INFO
from data_pipelines.engines import local
from data_pipelines.extractors import Extractor, open_extractor
from data_pipelines.records import write_tfds_metadata
from data_pipelines.shard import (
  RECEIPTS,
  Learned,
  Settings,
  Shard,
  digest_of,
  extractor_digest,
  number_for,
  receipt_of,
  remove_unfinished,
  require_versions,
  write_shard,
)

REJECTED = 'rejected.jsonl'
PLAN = 'plan.json'
IMAGES_PER_SHARD = 512
"""Seconds of work, so that little is lost with a worker and progress is seen."""

Engine = Callable[..., Generator[tuple[Shard, dict[str, Any]]]]
"""Like `engines.local.run`."""

# The packages whose versions can change what is written.
_PACKAGES = ('array_record', 'numpy', 'pillow', 'resvg_py', 'scikit-image', 'scipy')


def prepare(
  source_spec: str,
  out: str | os.PathLike[str],
  *,
  size: int = 64,
  shards: int | None = None,
  conditions: Iterable[str] | None = None,
  extractors: Mapping[str, str] | None = None,
  workers: int = 0,
  crop: Literal['centre', 'random'] = 'centre',
  seed: int = 0,
  copies: int = 1,
  test_fraction: float = 1 / 16,
  engine: Engine = local.run,
  progress: bool = True,
) -> dict[str, Any]:
  """Prepares a source, or goes on where a broken run left off.

  Args:
    source_spec: as `sources.open_source` takes it.
    out: the folder to write, on disk or in a bucket.
    size: side of the prepared images, in pixels.
    shards: number of files of all splits together; by default one for about 500
      images.
    conditions: names of the conditions to store; by default all that are measured
      in the image once and for all.
    extractors: learned ones to use instead of the default: the name of a condition, or
      'text' for captions where the source has none, to KIND:PATH as
      `extractors.open_extractor` takes it.
    workers: processes to use; with 0, the local engine works in this one, and Ray's
      uses what the cluster has.
    crop: 'centre' or 'random'.
    seed: of the split, the backgrounds, the crops and the conditions.
    copies: records of each image in the train split. They differ in what is drawn:
      the background of a transparent image, a random crop.
    test_fraction: share of the images to hold out, chosen by their keys; 0 for
      none. Otherwise, two images or more give at least one to each split, and four
      or more at least two to the test split.
    engine: what runs the shards.
    progress: whether to show a progress bar.

  Returns:
    The contents of `dataset.json`.

  Raises:
    ValueError: an argument is out of range, `out` holds a data set that was
      prepared with other arguments, or no image could be used.
    OSError: the folder cannot be written, or workers cannot see it. What is done
      stays.
    engines.local.WorkerDied: a worker was killed. What is done stays.
    extras.MissingExtra: a package that an extractor, a bucket or the engine needs is
      not installed.
  """
  out = open_path(out)
  names = _names_to_store(conditions)
  specs = dict(extractors or {})
  if unused := sorted(specs.keys() - {*names, 'text'}):
    raise ValueError(
      f'An extractor is given for {unused[0]}, which is not stored; expected one of'
      f' {", ".join(names)}, or text.'
    )
  if size < 2 or not 0 <= test_fraction < 1 or crop not in ('centre', 'random'):
    raise ValueError(
      f'size {size}, test_fraction {test_fraction}, crop {crop!r}; expected at'
      " least 2 pixels, a fraction from 0 to under 1, and 'centre' or 'random'."
    )
  if copies < 1:
    raise ValueError(f'copies: {copies}, expected at least 1.')
  _refuse_inside(source_spec, out)
  source = sources.open_source(source_spec)
  keys = list(source.keys())
  splits = split_keys(keys, seed, test_fraction)
  keys_digest = digest_of(keys)
  opened = {field: open_extractor(field, spec) for field, spec in specs.items()}
  learned = tuple(
    Learned(
      field,
      specs[field],
      extractor_digest(extractor),
      tuple(sorted(extractor.versions.items())),
    )
    for field, extractor in opened.items()
  )
  settings = Settings(
    source_spec, keys_digest, str(out), size, crop, seed, names, learned
  )
  tasks = _plan_shards(splits, shards, copies)
  plan: dict[str, Any] = {
    'source': source_spec,
    'licence': source.licence,
    'credit': source.credit,
    'keys': {'count': len(keys), 'digest': keys_digest},
    'size': size,
    'crop': crop,
    'seed': seed,
    'copies': copies,
    'test_fraction': test_fraction,
    'shards': dict(Counter(task.split for task in tasks)),
    'conditions': _specs(names, size, opened),
    'versions': _versions(),
  }
  if opened:
    plan['extractors'] = {field: each.about for field, each in opened.items()}
    for extractor in opened.values():
      plan['versions'] |= extractor.versions
  if not (out / RECEIPTS / PLAN).exists():
    for field, spec in specs.items():
      # Of what can't be run, no plan is left to be in the way of the next try.
      open_extractor(field, spec).check()
  _agree_on_plan(out, plan)
  receipts = _receipts(out, tasks)
  if len(receipts) == len(tasks) and (out / INFO).exists():
    return read_json(out / INFO, (), 'Remove it and run the same command again.')
  work = functools.partial(_do, settings, source, _versions())
  run = functools.partial(engine, work, workers=workers)
  receipts |= _run_missing(run, tasks, receipts, progress)
  return _finish(out, settings, plan, tasks, receipts)


def _refuse_inside(source_spec: str, out: pathlib.Path) -> None:
  """What is written must not be taken for images by the next run."""
  kind, _, path = source_spec.partition(':')
  if kind != 'folder' or in_bucket(path) != in_bucket(out):
    return
  root = open_path(os.path.expanduser(path)).resolve()
  if root in (out.resolve(), *out.resolve().parents):
    raise ValueError(f'{out} is inside {path}, the source; use a folder outside it.')


def split_keys(
  keys: list[str], seed: int, test_fraction: float
) -> dict[str, list[int]]:
  """Which images are held out: a matter of seed and key, not of place.

  An image stays in its split when others are added to the source.

  Args:
    keys: of the images.
    seed: gives another choice.
    test_fraction: expected share of the test split.

  Returns:
    Split name to indices into `keys`, in order; no test split if it is empty.
  """
  if not keys:
    raise ValueError('The source has no images.')
  numbers = [number_for(seed, key, 'split') for key in keys]
  by_number = sorted(range(len(keys)), key=numbers.__getitem__)
  held_out = sum(number < test_fraction * 2**128 for number in numbers)
  if test_fraction and len(keys) > 1:
    # Two, where there are enough: evaluation compares one with another.
    held_out = min(max(held_out, min(2, len(keys) // 2)), len(keys) - 1)
  elif len(keys) == 1:
    held_out = 0
  splits = {
    'train': sorted(by_number[held_out:]),
    'test': sorted(by_number[:held_out]),
  }
  return {split: indices for split, indices in splits.items() if indices}


def _names_to_store(conditions: Iterable[str] | None) -> tuple[str, ...]:
  if conditions is None:
    return tuple(c.name for c in conditions_lib.ALL if c.stored and not c.embedded)
  chosen = conditions_lib.by_name(conditions)
  for condition in chosen:
    if condition.embedded or not condition.stored:
      when = 'made by a trained encoder' if condition.embedded else 'drawn when read'
      raise ValueError(
        f'{condition.name} is {when}, so it cannot be stored by preparing images.'
      )
  return tuple(c.name for c in chosen)


def _specs(
  names: Iterable[str], size: int, opened: Mapping[str, Extractor]
) -> dict[str, Any]:
  """The spec of each condition as JSON, which names the model that has measured it."""
  specs = {}
  for condition in conditions_lib.by_name(names):
    spec = condition.spec(size)
    if condition.name in opened:
      about = opened[condition.name].about
      learned = f'learned: {about["kind"]} model {about["name"]}'
      spec = dataclasses.replace(spec, source=learned)
    specs[condition.name] = _plain(spec.to_json())
  return specs


def _plan_shards(
  splits: dict[str, list[int]], shards: int | None, copies: int
) -> list[Shard]:
  records = {
    split: [(i, copy) for i in indices for copy in range(copies)]
    if split == 'train'
    else [(i, 0) for i in indices]
    for split, indices in splits.items()
  }
  total = sum(map(len, records.values()))
  shards = math.ceil(total / IMAGES_PER_SHARD) if shards is None else shards
  if shards < 1:
    raise ValueError(f'shards: {shards}, expected at least 1.')
  counts, left = {}, max(shards, len(splits))
  # The smallest split first, as it must not be rounded away; the largest has the rest.
  by_size = sorted(records, key=lambda split: len(records[split]))
  for split in by_size:
    size = len(records[split])
    share = left if split == by_size[-1] else round(shards * size / total)
    counts[split] = min(max(share, 1), size)
    left -= counts[split]
  tasks = []
  for split, images in records.items():
    count = counts[split]
    edges = [i * len(images) // count for i in range(count + 1)]
    tasks += [
      Shard(split, i, count, tuple(images[edges[i] : edges[i + 1]]))
      for i in range(count)
    ]
  return tasks


def _agree_on_plan(out: pathlib.Path, plan: dict[str, Any]) -> None:
  """Records what is being prepared here; refuses to mix two data sets."""
  path = out / RECEIPTS / PLAN
  if not path.exists():
    make_folder(path.parent)
    write_json(path, plan)
    return
  # Plans of before there were copies say nothing of them.
  there = {'copies': 1} | read_json(path, (), f'Remove {out} and prepare it again.')
  if (out / INFO).exists():  # Finished, so newer packages no longer matter.
    there = there | {'versions': plan['versions']}
  if lines := differences(there, plan):
    raise ValueError(
      f'{out} was prepared with other arguments:\n  '
      + '\n  '.join(lines)
      + '\nUse those, or another folder.'
    )


def differences(there: Any, asked: Any, path: str = '') -> list[str]:
  """One readable line for each leaf in which two JSON values differ."""
  if isinstance(there, Mapping) and isinstance(asked, Mapping):
    lines = []
    for key in [*there, *(key for key in asked if key not in there)]:
      inner = f'{path}.{key}' if path else key
      lines += differences(there.get(key), asked.get(key), inner)
    return lines
  return [] if there == asked else [f'{path}: {there!r} there, {asked!r} asked for']


def _receipts(out: pathlib.Path, tasks: list[Shard]) -> dict[str, dict[str, Any]]:
  """Receipts of the shards that are done, by file name."""
  names = [task.name for task in tasks]
  with futures.ThreadPoolExecutor(32) as pool:  # A bucket takes its time to answer.
    found = pool.map(functools.partial(receipt_of, out), names)
    pairs = zip(names, found, strict=True)
    return {name: receipt for name, receipt in pairs if receipt is not None}


def _run_missing(
  run: Engine, tasks: list[Shard], done: Mapping[str, Any], progress: bool
) -> dict[str, dict[str, Any]]:
  """Runs the shards that have no receipt yet; their receipts, by file name."""
  missing = [task for task in tasks if task.name not in done]
  total, left = (sum(len(task.images) for task in some) for some in (tasks, missing))
  bar = tqdm.tqdm(
    total=total, initial=total - left, unit='image', desc='prepare',
    disable=not progress,
  )  # fmt: skip
  receipts = {}
  # Closing the engine stops its workers, also when this loop is broken off.
  with bar, contextlib.closing(run(missing)) as results:
    for task, receipt in results:
      receipts[task.name] = receipt
      bar.update(len(task.images))
  return receipts


def _do(
  settings: Settings, source: sources.Source, versions: dict[str, str], shard: Shard
) -> dict[str, Any]:
  """One shard, on whatever machine an engine has chosen."""
  require_versions(versions.items(), _versions())
  if not (open_path(settings.directory) / RECEIPTS / PLAN).exists():
    raise FileNotFoundError(
      f'{platform.node()} does not see {settings.directory}, where this run began; give'
      ' an --out that all machines share: a bucket, or a network file system.'
    )
  return write_shard(settings, shard, source)


def _finish(
  out: pathlib.Path,
  settings: Settings,
  plan: dict[str, Any],
  tasks: list[Shard],
  receipts: dict[str, dict[str, Any]],
) -> dict[str, Any]:
  """Writes everything about the whole, `dataset.json` last."""
  ordered = [receipts[task.name] for task in tasks]
  rejected = [item for receipt in ordered for item in receipt['rejected']]
  rejected.sort(key=lambda item: (item['key'], item['reason']))
  by_reason = dict(sorted(Counter(item['reason'] for item in rejected).items()))
  lines = (json.dumps(item, ensure_ascii=False) + '\n' for item in rejected)
  write_text(out / REJECTED, ''.join(lines))
  kept = sum(receipt['kept'] for receipt in ordered)
  if not kept:
    raise ValueError(
      f'None of the {len(rejected)} images could be used'
      f' ({", ".join(f"{n} x {reason}" for reason, n in by_reason.items())});'
      f' see {out / REJECTED}. First: {rejected[0]["message"]} Mend the source,'
      f' remove {out} and prepare it again.'
    )
  splits = {}
  for split in plan['shards']:
    own = [receipts[task.name] for task in tasks if task.split == split]
    splits[split] = {
      'kept': sum(receipt['kept'] for receipt in own),
      'record_bytes': sum(receipt['record_bytes'] for receipt in own),
      'shard_lengths': [receipt['kept'] for receipt in own],
    }
  info = plan | {
    'kept': kept,
    'rejected': len(rejected),
    'counts': {'kept': kept, 'rejected': len(rejected), 'by_reason': by_reason},
    'texts': sum(receipt['texts'] for receipt in ordered),
    'splits': splits,
    'digest': digest_of(receipt['digest'] for receipt in ordered),
  }
  if 'text' in plan.get('extractors', {}):
    info['captioned'] = sum(receipt['captioned'] for receipt in ordered)
  existing = out / INFO
  if existing.exists():  # Keep the versions that it was made with.
    info['versions'] = json.loads(existing.read_text('utf-8'))['versions']
  workplace = None if in_bucket(out) else out / RECEIPTS
  with tempfile.TemporaryDirectory(suffix='.part', dir=workplace) as folder:
    write_tfds_metadata(
      pathlib.Path(folder),
      settings.record_type(),
      {s: (v['shard_lengths'], v['record_bytes']) for s, v in splits.items()},
      description=f'Images and conditions prepared from {plan["source"]}.',
      licence=plan['licence'],
      citation=plan['credit'],
    )
    for path in pathlib.Path(folder).iterdir():
      put_file(path, out / path.name)
  remove_unfinished(out)
  write_json(existing, info)
  return info


def _versions() -> dict[str, str]:
  installed = {}
  for name in _PACKAGES:
    # One that only another source needs may be absent.
    with contextlib.suppress(metadata.PackageNotFoundError):
      installed[name] = metadata.version(name)
  return installed


def _plain(value: Any) -> Any:
  """A value as JSON gives it back: lists for tuples."""
  return json.loads(json.dumps(value))
