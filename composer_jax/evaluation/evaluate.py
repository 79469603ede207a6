"""Evaluates a model, or two side by side, on held-out images.

`index.html` needs no other file and no network; `evaluation.json` has every figure.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import tqdm
from jax.experimental import multihost_utils

import composer_jax
from composer_jax import conditions as conditions_lib
from composer_jax.composer import Composer
from composer_jax.evaluation import evaluators as evaluators_lib
from composer_jax.evaluation import published
from composer_jax.evaluation.bootstrap import CONFIDENCE
from composer_jax.evaluation.cache import BLOCK, CachedComposer, digest_of, remembered
from composer_jax.evaluation.curves import read_curves
from composer_jax.evaluation.evaluation_page import Gallery, render
from composer_jax.evaluation.evaluators import ALL, Samples, Tools, judged
from composer_jax.evaluation.fidelity import (
  HeldOut,
  captioned,
  draw_records,
  hold_out,
)
from composer_jax.evaluation.figures import Figure, difference, key
from composer_jax.evaluation.task_figures import TASKS, Cases, Result
from composer_jax.files import write_json, write_text

TEXT = 'text'
"""Name of the wish that is a caption, completed by the prior."""


@dataclasses.dataclass(frozen=True)
class Wish:
  """What is asked of a model, for each held-out image.

  Attributes:
    name: of the condition, or `ALL`, or `TEXT`.
    given: names of the conditions that it has to keep.
    stored: conditions by name, (N, *shape).
    kept: by name, bool (N,).
  """

  name: str
  given: tuple[str, ...]
  stored: dict[str, np.ndarray]
  kept: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Contestant:
  """A model and what came of it.

  Attributes:
    name: of the model.
    composer: which remembers what it composed.
    held_out: images, with their conditions as its own encoder has them.
    wishes: by name.
    samples: by wish.
    figures: by wish.
    tasks: by task.
  """

  name: str
  composer: Any
  held_out: HeldOut
  wishes: dict[str, Wish] = dataclasses.field(default_factory=dict)
  samples: dict[str, Samples] = dataclasses.field(default_factory=dict)
  figures: dict[str, list[Figure]] = dataclasses.field(default_factory=dict)
  tasks: dict[str, Result] = dataclasses.field(default_factory=dict)


def evaluate(
  models: Mapping[str, Composer],
  dataset: Any,
  out_dir: str | os.PathLike[str],
  *,
  evaluators: Iterable[str] = ('fidelity', 'distances', 'retrieval'),
  tools: Tools | None = None,
  count: int = 64,
  shown: int = 8,
  tasks: Iterable[str] = (),
  others: np.ndarray | None = None,
  seed: int = 0,
  sampling: Mapping[str, Any] | None = None,
  with_published: bool = False,
  model_dir: str | os.PathLike[str] | None = None,
  commands: Sequence[str] = (),
  progress: bool = True,
) -> dict[str, Any]:
  """Composes from held-out images, judges the result and writes the page.

  Of each wish (each condition alone, all together, and the caption through the prior)
  one image is composed for each held-out one. What was composed is kept in
  `out_dir/cache`, so a run that was broken off goes on. In a job of several processes
  each composes a part, and the first judges; they share `out_dir`.

  Args:
    models: one, or two to be compared on equal images and seeds, by name. The first
      one's encoder, where an encoder is needed, judges both.
    dataset: images that they were not trained on.
    out_dir: where `index.html` and `evaluation.json` go; it need not exist.
    evaluators: names, as `evaluators.build` takes them.
    tools: what these judge with, its `count` aside; the first model's encoder alone if
      None.
    count: images to measure, as many as there are at most.
    shown: images of each wish to show.
    tasks: names of `task_figures.TASKS` to measure as well.
    others: other real images, uint8 (M, S, S, 3), at least as many as are measured.
    seed: of the choice of images and of everything that is drawn at random.
    sampling: as `Composer.compose` takes it; the models' own if None.
    with_published: whether to show published figures beside.
    model_dir: the folder of the first model, for its training curves; None for none.
    commands: shell commands that make this page again.
    progress: whether to show a progress bar.

  Returns:
    The contents of `evaluation.json`.

  Raises:
    ValueError: there are too few images, they have another size than the maps of a
      model, a name is unknown, or published figures were taken in another way.
  """
  if not 1 <= len(models) <= 2:
    raise ValueError(f'{len(models)} models; expected one, or two to compare.')
  if unknown := [name for name in tasks if name not in TASKS]:
    raise ValueError(f'Unknown task {unknown[0]!r}; expected {", ".join(TASKS)}.')
  out, sampling = pathlib.Path(out_dir), dict(sampling or {})
  first = next(iter(models.values()))
  tools = dataclasses.replace(
    Tools(first.encoder) if tools is None else tools, count=min(count, len(dataset))
  )
  judges = evaluators_lib.build(evaluators, tools)
  protocol = _protocol(first, dataset, count, tools)
  if with_published and (reasons := published.differences(protocol)):
    raise ValueError(
      'Published figures do not compare with these: ' + '; '.join(reasons) + '.'
    )
  for composer in models.values():
    chosen, records = draw_records(composer, dataset, count, seed)
  contestants = _contestants(models, records, out / 'cache', seed)
  total = sum(len(own.wishes) for own in contestants) * len(records)
  leading = jax.process_index() == 0
  with tqdm.tqdm(
    total=total, unit='image', desc='evaluate', disable=not (progress and leading)
  ) as bar:
    _compose_parts(contestants, sampling, bar)
    if not leading:
      return {}
    for own in contestants:
      for wish in own.wishes.values():
        images = own.composer.compose(
          wish.stored, wish.kept, seeds=own.held_out.seeds, sampling=sampling
        )
        samples = Samples(wish.name, wish.given, own.held_out, images, others)
        own.samples[wish.name] = samples
        own.figures[wish.name] = judged(judges, samples)
  for own in contestants if tasks else ():
    cases = Cases(own.composer, own.held_out, sampling)
    names = tqdm.tqdm(list(tasks), desc='tasks', unit='task', disable=not progress)
    own.tasks.update({task: TASKS[task](cases) for task in names})

  tables = {
    'wishes': _figures([own.figures for own in contestants]),
    'tasks': _figures(
      [{name: one.figures for name, one in own.tasks.items()} for own in contestants]
    ),
  }
  evaluation: dict[str, Any] = {
    'format': 1,
    'version': composer_jax.__version__,
    'models': [
      {'name': own.name, 'fingerprint': own.composer.fingerprint} for own in contestants
    ],
    'protocol': dataclasses.asdict(protocol),
    'settings': {
      'seed': seed,
      'sampling': sampling,
      'confidence': CONFIDENCE,
      'resizing': 'area, antialiased bicubic for Inception',
      'evaluators': list(judges),
    },
    'data': {
      name: dataset.info.get(name)
      for name in ('source', 'licence', 'credit', 'size', 'digest')
    },
    'images': [
      {'index': index, 'key': record.get('key', ''), 'text': record.get('text', '')}
      for index, record in zip(chosen, records, strict=True)
    ],
    **tables,
    # What a sweep ranks by: one number a name.
    'figures': {
      key(group, row['name']): row['models'][0]['mean']
      for table in tables.values()
      for group, rows in table.items()
      for row in rows
    },
    'published': dict(published.FIGURES) if with_published else {},
    'commands': list(commands),
  }
  evaluation = json.loads(json.dumps(evaluation))
  curves = read_curves(model_dir) if model_dir is not None else []
  page = render(evaluation, _galleries(contestants, shown), curves)
  out.mkdir(parents=True, exist_ok=True)
  write_json(out / 'evaluation.json', evaluation)
  write_text(out / 'index.html', page)
  return evaluation


def _contestants(
  models: Mapping[str, Composer],
  records: Sequence[Mapping[str, Any]],
  folder: pathlib.Path,
  seed: int,
) -> list[Contestant]:
  """The models with their wishes; of two models, the wishes that both can grant."""
  contestants = []
  for name, composer in models.items():
    names = conditions_lib.obtainable(composer.names, composer.encoder)
    held_out = hold_out(records, names, encoder=composer.encoder, seed=seed)
    own = Contestant(name, CachedComposer(composer, folder), held_out)
    own.wishes.update({wish.name: wish for wish in _wishes(composer, held_out, folder)})
    contestants.append(own)
  shared = set.intersection(*(set(own.wishes) for own in contestants))
  for own in contestants:
    for name in own.wishes.keys() - shared:
      del own.wishes[name]
  return contestants


def _wishes(composer: Any, held_out: HeldOut, folder: pathlib.Path) -> list[Wish]:
  def asking(name: str, given: Iterable[str]) -> Wish:
    names = tuple(given)
    return Wish(
      name,
      names,
      {n: held_out.asked[n] for n in names},
      {n: held_out.present[n] for n in names},
    )

  names = list(held_out.asked)
  wishes = [asking(name, [name]) for name in names]
  if len(names) > 1:
    wishes.append(asking(ALL, names))
  if composer.prior is None or not {'caption', 'semantics'} <= set(names):
    return wishes
  text = asking(TEXT, ['caption'])
  captions, seeds = text.stored['caption'], held_out.seeds
  parts = []
  for begin in range(0, len(captions), BLOCK):
    rows = slice(begin, begin + BLOCK)
    what = ('prior', composer.fingerprint, captions[rows], seeds[rows])
    path = folder / f'{digest_of(what)}.npy'
    imagine = functools.partial(composer.imagine_all, captions[rows], seeds[rows])
    parts.append(remembered(path, imagine))
  text.stored['semantics'] = np.concatenate(parts)
  text.kept['semantics'] = text.kept['caption']
  return [*wishes, text]


def _compose_parts(
  contestants: Sequence[Contestant], sampling: Mapping[str, Any], bar: Any
) -> None:
  """Composes this process's part of all images, and waits for the others."""
  index, processes = jax.process_index(), jax.process_count()
  parts = [
    (own, wish, slice(begin, begin + BLOCK))
    for own in contestants
    for wish in own.wishes.values()
    for begin in range(0, len(own.held_out), BLOCK)
  ]
  for own, wish, rows in parts[index::processes]:
    images = own.composer.compose(
      {name: array[rows] for name, array in wish.stored.items()},
      {name: array[rows] for name, array in wish.kept.items()},
      seeds=own.held_out.seeds[rows],
      sampling=sampling,
    )
    bar.update(len(images) * processes)
  if processes > 1:
    multihost_utils.sync_global_devices('composed')


def _protocol(
  composer: Composer, dataset: Any, count: int, tools: Tools
) -> published.Protocol:
  source = str(dataset.info.get('source'))
  return published.Protocol(
    data=published.COCO.data if 'coco' in source.lower() else source,
    images=min(count, len(dataset)),
    size=composer.image_size,
    features=published.COCO.features if tools.inception else "the model's encoder",
    prompts=TEXT if composer.prior else 'conditions',
  )


def _galleries(contestants: Sequence[Contestant], shown: int) -> list[Gallery]:
  """What each model made of the first images, under the originals."""
  galleries = []
  first = contestants[0]
  alone = len(contestants) == 1
  for name, samples in first.samples.items():
    rows = [('original', samples.held_out.images[:shown])]
    rows += [(own.name, own.samples[name].generated[:shown]) for own in contestants]
    galleries.append(Gallery(name, rows))
  originals = first.held_out.images[captioned(first.held_out)]
  for name in first.tasks:
    rows = [('original', originals[:shown])]
    for own in contestants:
      rows += [
        (label if alone else f'{label} ({own.name})', images[:shown])
        for label, images in own.tasks[name].pictures.items()
      ]
    galleries.append(Gallery(name, rows))
  return galleries


def _figures(
  figures: Sequence[Mapping[str, Sequence[Figure]]],
) -> dict[str, list[dict[str, Any]]]:
  """By wish or task, each figure of the first model beside the second's."""
  rows: dict[str, list[dict[str, Any]]] = {}
  for group, own in figures[0].items():
    there = [{one.name: one for one in other[group]} for other in figures[1:]]
    rows[group] = []
    for one in own:
      both = [one, *(other[one.name] for other in there if one.name in other)]
      row: dict[str, Any] = {
        'name': one.name,
        'higher_is_better': one.higher_is_better,
        'models': [each.to_json() for each in both],
      }
      apart = difference(*both) if len(both) == 2 else None
      if apart is not None:
        row['difference'] = {
          'mean': apart.mean,
          'low': apart.low,
          'high': apart.high,
          'better': _better(one, apart),
        }
      rows[group].append(row)
  return rows


def _better(figure: Figure, apart: Any) -> str | None:
  """Which of two models is better, where the interval leaves out zero."""
  if apart.low <= 0 <= apart.high:
    return None
  return 'first' if (apart.mean > 0) == figure.higher_is_better else 'second'


def summary(evaluation: Mapping[str, Any]) -> str:
  """The figures as a table for a terminal."""
  lines = []
  for kind in ('wishes', 'tasks'):
    for group, rows in evaluation[kind].items():
      lines.append(f'{group}:')
      for row in rows:
        cells = [f'{_short(one)}' for one in row['models']]
        one = row['models'][0]
        if 'difference' in row:
          better = row['difference']['better']
          cells.append(f'difference {_short(row["difference"])} {better or "unclear"}')
        elif 'beside' in one:
          cells.append(f'{one["beside"]["what"]} {_short(one["beside"])}')
        lines.append(f'  {row["name"]:44} ' + '  '.join(f'{c:26}' for c in cells))
  names = ' and '.join(model['name'] for model in evaluation['models'])
  lines.append(f'{names} on {evaluation["protocol"]["images"]} held-out images.')
  return '\n'.join(line.rstrip() for line in lines)


def _short(value: Mapping[str, float]) -> str:
  return f'{value["mean"]:.3g} [{value["low"]:.3g}, {value["high"]:.3g}]'
