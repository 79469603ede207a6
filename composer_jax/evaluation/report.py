"""One page that shows what a model does with its conditions, and measures it.

`index.html` needs no other file and no network; `report.json` has every figure of it.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import tqdm

import composer_jax
from composer_jax import conditions as conditions_lib
from composer_jax.conditions import Condition, Encoder
from composer_jax.evaluation.bootstrap import CONFIDENCE, RESAMPLES, Estimate
from composer_jax.evaluation.cache import CachedComposer
from composer_jax.evaluation.curves import read_curves
from composer_jax.evaluation.fidelity import (
  Compose,
  HeldOut,
  Metric,
  Outcome,
  draw_records,
  hold_out,
  measure,
)
from composer_jax.evaluation.gallery import Mixture, Strip, grant, mixtures, strips
from composer_jax.evaluation.page import figure, render
from composer_jax.files import write_json, write_text


class Composer(Protocol):
  """What a report asks of a model; `composer.Composer` is one."""

  @property
  def names(self) -> Sequence[str]: ...

  @property
  def image_size(self) -> int: ...

  @property
  def sizes(self) -> Sequence[int]: ...

  @property
  def condition_size(self) -> int: ...

  @property
  def encoder(self) -> Encoder | None: ...

  @property
  def fingerprint(self) -> Any: ...

  @property
  def compose(self) -> Any: ...


class Dataset(Protocol):
  """What a report asks of held-out data; see `data_pipelines.dataset`."""

  @property
  def info(self) -> Mapping[str, Any]: ...

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Mapping[str, Any]: ...


def write_report(
  composer: Composer,
  dataset: Dataset,
  out_dir: str | os.PathLike[str],
  *,
  num_shown: int = 8,
  num_measured: int = 96,
  seed: int = 0,
  progress: bool = True,
  model_dir: str | os.PathLike[str] | None = None,
  rejected: Sequence[Mapping[str, str]] = (),
  commands: Sequence[str] = (),
) -> dict[str, Any]:
  """Composes from held-out images, judges the result and writes the page.

  What was generated is kept in `out_dir/cache`, so a run that was broken off goes on
  where it stopped.

  Args:
    composer: the model.
    dataset: images it was not trained on.
    out_dir: where `index.html` and `report.json` go; it need not exist.
    num_shown: images to show, at least 2.
    num_measured: images to measure, as many as there are at most.
    seed: of the choice of images and of everything that is drawn at random.
    progress: whether to show a progress bar.
    model_dir: the folder of the model, for its training curves; None for none.
    rejected: what preparing the data left out: {key, reason, message} each.
    commands: shell commands that make the data, the model and this page again.

  Returns:
    The contents of `report.json`.

  Raises:
    ValueError: there are too few images, or they have another size than the maps
      of the model.
  """
  out = pathlib.Path(out_dir)
  if num_shown < 2 or num_measured < 2 or len(dataset) < 2:
    raise ValueError(
      f'{num_shown} images to show and {num_measured} to measure of {len(dataset)}'
      ' held out; expected at least 2 of each.'
    )
  count = max(num_measured, num_shown)
  chosen, records = draw_records(composer, dataset, count, seed)
  names = conditions_lib.obtainable(composer.names, composer.encoder)
  held_out = hold_out(records, names, encoder=composer.encoder, seed=seed)

  wishes = [(name,) for name in names] + ([tuple(names)] if len(names) > 1 else [])
  shown = min(num_shown, len(records))
  showcase: list[Strip | Mixture] = [
    *strips(held_out, shown),
    *mixtures(held_out, shown),
  ]
  # Judged at the size of the maps: larger images would be brought down to it anyway.
  size = composer.condition_size
  judged_at = size if size in composer.sizes else None
  total = len(wishes) * len(records) + sum(len(one.wishes) for one in showcase)
  with tqdm.tqdm(total=total, unit='image', desc='report', disable=not progress) as bar:
    cached = CachedComposer(composer, out / 'cache', bar)
    judging = functools.partial(cached.compose, size=judged_at)
    outcomes = [measure(held_out, judging, wish) for wish in wishes]
    made = _grant_all(held_out, cached.compose, showcase)

  report = {
    'format': 1,
    'version': composer_jax.__version__,
    'model': composer.fingerprint,
    'settings': {
      'measured': len(records),
      'shown': shown,
      'seed': seed,
      'image_size': composer.image_size,
      'condition_size': composer.condition_size,
      'confidence': CONFIDENCE,
      'resamples': RESAMPLES,
    },
    'images': [
      {'index': index, 'key': record.get('key', ''), 'text': record.get('text', '')}
      for index, record in zip(chosen, records, strict=True)
    ],
    'data': _about_data(dataset.info, rejected),
    'conditions': [
      _about(condition, composer.condition_size, condition.name in names)
      for condition in conditions_lib.by_name(composer.names)
    ],
    'alone': _figures(outcomes[: len(names)]),
    'together': _figures(outcomes[len(names) :]),
    'commands': list(commands),
  }
  report = json.loads(json.dumps(report))
  curves = read_curves(model_dir) if model_dir is not None else []
  page = render(report, held_out, outcomes, made, curves)
  out.mkdir(parents=True, exist_ok=True)
  write_json(out / 'report.json', report)
  write_text(out / 'index.html', page)
  return report


def summary(report: Mapping[str, Any]) -> str:
  """The headline figures as a table for a terminal.

  Args:
    report: as `write_report` returns it.
  """
  head = ('condition', 'metric', 'asked', '95%', 'shuffled', '95%', 'ceiling', '')
  lines = []
  for title, key in (('each alone', 'alone'), ('all together', 'together')):
    if not report[key]:
      continue
    rows = [head] + [_row(one) for one in report[key]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = [
      '  '.join(f'{cell:{width}}' for cell, width in zip(row, widths, strict=True))
      for row in rows
    ]
    lines += [f'{title}:', *(f'  {line}'.rstrip() for line in table), '']
  measured = report['settings']['measured']
  lines.append(f'{measured} held-out images. (v): lower is better.')
  return '\n'.join(lines)


def _row(one: Mapping[str, Any]) -> tuple[str, ...]:
  metric = one['metrics'][0]
  asked, shuffled = metric['asked'], metric['shuffled']
  return (
    one['condition'],
    metric['name'] + ('' if metric['higher_is_better'] else ' (v)'),
    figure(asked['mean']),
    f'{figure(asked["low"])} to {figure(asked["high"])}',
    figure(shuffled['mean']),
    f'{figure(shuffled["low"])} to {figure(shuffled["high"])}',
    figure(metric['ceiling']['mean']),
    'apart' if metric['apart'] else 'not apart',
  )


def _grant_all(
  held_out: HeldOut, compose: Compose, showcase: Sequence[Strip | Mixture]
) -> list[tuple[Strip | Mixture, np.ndarray]]:
  """Composes all wishes at once, which fills the batches."""
  images = grant(held_out, compose, [wish for one in showcase for wish in one.wishes])
  ends = np.cumsum([len(one.wishes) for one in showcase])
  return list(zip(showcase, np.split(images, ends[:-1]), strict=True))


def _about(condition: Condition, size: int, judged: bool) -> dict[str, Any]:
  spec = condition.spec(size)
  return {
    'name': condition.name,
    'what': (type(condition).__doc__ or '').strip().split('\n')[0],
    'local': condition.local,
    'unit': spec.unit,
    'source': spec.source,
    'judged': judged,
  }


def _about_data(
  info: Mapping[str, Any], rejected: Sequence[Mapping[str, str]]
) -> dict[str, Any]:
  """What of `dataset.json` belongs on the page, and an example of each rejection."""
  counts = info.get('counts', {}).get('by_reason', {})
  examples: dict[str, Mapping[str, str]] = {}
  for item in rejected:
    examples.setdefault(item['reason'], item)
  return {
    **{
      k: info.get(k) for k in ('source', 'licence', 'credit', 'size', 'texts', 'digest')
    },
    'kept': info.get('kept'),
    'rejected': info.get('rejected'),
    'splits': {name: split['kept'] for name, split in info.get('splits', {}).items()},
    'reasons': [
      {
        'reason': reason,
        'count': count,
        'key': examples.get(reason, {}).get('key', ''),
        'message': examples.get(reason, {}).get('message', ''),
      }
      for reason, count in counts.items()
    ],
  }


def _figures(outcomes: Iterable[Outcome]) -> list[dict[str, Any]]:
  return [
    {
      'condition': fidelity.condition,
      'images': len(fidelity.indices),
      'left_out': fidelity.left_out,
      'indices': fidelity.indices.tolist(),
      'metrics': [_metric(metric) for metric in fidelity.metrics],
    }
    for outcome in outcomes
    for fidelity in outcome.fidelities.values()
  ]


def _metric(metric: Metric) -> dict[str, Any]:
  estimates = {
    field.name: _estimate(getattr(metric, field.name))
    for field in dataclasses.fields(metric)
    if isinstance(getattr(metric, field.name), Estimate)
  }
  return {
    'name': metric.name,
    'higher_is_better': metric.higher_is_better,
    'apart': metric.apart,
    **estimates,
  }


def _estimate(estimate: Estimate) -> dict[str, Any]:
  return dataclasses.asdict(estimate) | {'values': estimate.values.tolist()}
