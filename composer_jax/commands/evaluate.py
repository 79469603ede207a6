"""`composer-jax evaluate`: figures of a model, or of two side by side, and a page."""

from __future__ import annotations

import argparse
import pathlib
import shlex
from typing import Any

import numpy as np

from composer_jax.shipped import model_folder


def main(argv: list[str]) -> int:
  """Runs the verb; returns its exit status."""
  parser = _parser()
  flags = parser.parse_args(argv)
  if flags.published and not (flags.inception and flags.clip):
    parser.error('--published needs --inception FILE and --clip DIR')
  names = ('steps', 'guidance')
  sampling = {n: getattr(flags, n) for n in names if getattr(flags, n) is not None}

  from composer_jax.composer import Composer
  from composer_jax.config import SampleConfig, settings_from
  from composer_jax.evaluation.evaluate import evaluate, summary
  from composer_jax.evaluation.evaluators import Tools
  from composer_jax.evaluation.task_figures import TASKS
  from composer_jax.training.processes import join
  from data_pipelines.loader import load_dataset

  settings_from(SampleConfig(), sampling)  # Before anything is loaded.
  join()
  model = model_folder(flags.model)
  models = {flags.model: Composer.load(model)}
  if flags.against:
    models[_other_name(flags)] = Composer.load(flags.against)
  evaluation = evaluate(
    models,
    load_dataset(flags.data, 'test'),
    flags.out,
    evaluators=_evaluators(flags, models[flags.model]),
    tools=Tools(models[flags.model].encoder, flags.inception, flags.clip),
    count=flags.n,
    shown=flags.show,
    tasks=TASKS if flags.tasks == ['all'] else flags.tasks,
    others=_others(load_dataset(flags.data, 'train'), flags.n, flags.seed),
    seed=flags.seed,
    sampling=sampling,
    with_published=flags.published,
    model_dir=model,
    commands=[shlex.join(['composer-jax', 'evaluate', *argv])],
  )
  if evaluation:  # In a job, the first process has it.
    print(summary(evaluation))
    print(flags.out / 'index.html')
  return 0


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog='composer-jax evaluate',
    description='Composes from held-out images with all devices, judges what came of'
    ' it, and writes index.html and evaluation.json. Run again to resume.',
  )
  parser.add_argument(
    '--model', required=True, metavar='DIR', help='a trained model, or demo'
  )
  parser.add_argument('--data', required=True, metavar='DIR', help='prepared images')
  parser.add_argument('--out', type=pathlib.Path, required=True, metavar='DIR')
  parser.add_argument(
    '--against', metavar='DIR', help='another model, on equal images and seeds'
  )
  parser.add_argument('--n', type=int, default=64, help='held-out images to measure')
  parser.add_argument('--show', type=int, default=8, help='of these, images to show')
  parser.add_argument(
    '--tasks',
    type=_names,
    default=[],
    metavar='NAME,...',
    help='tasks to measure too, or all',
  )
  parser.add_argument(
    '--evaluators',
    type=_names,
    metavar='NAME,...',
    help='of fidelity, distances, clip, retrieval, or your own as module:function;'
    ' by default those for which all is there',
  )
  parser.add_argument(
    '--inception', metavar='FILE', help="FID's Inception v3, as safetensors"
  )
  parser.add_argument(
    '--clip', metavar='DIR', help='a CLIP model, as `composer-jax import` leaves it'
  )
  parser.add_argument(
    '--published',
    action='store_true',
    help='show published figures beside; refused where they were taken otherwise',
  )
  parser.add_argument('--steps', type=int, help='of the base model')
  parser.add_argument('--guidance', type=float, help='1 is none')
  parser.add_argument('--seed', type=int, default=0)
  return parser


def _names(text: str) -> list[str]:
  return [name.strip() for name in text.split(',') if name.strip()]


def _other_name(flags: argparse.Namespace) -> str:
  """Of the other model; not that of the first, even if they are the same."""
  same = flags.against == flags.model
  return f'{flags.against} (again)' if same else flags.against


def _evaluators(flags: argparse.Namespace, composer: Any) -> list[str]:
  if flags.evaluators:
    return flags.evaluators
  names = ['fidelity']
  if composer.encoder is not None or flags.inception:
    names.append('distances')
  if composer.encoder is not None:
    names.append('retrieval')
  return names + (['clip'] if flags.clip else [])


def _others(dataset: Any, count: int, seed: int) -> np.ndarray | None:
  """Real images that are not among those measured, if there are enough."""
  if len(dataset) < count:
    return None
  order = np.random.default_rng(seed).permutation(len(dataset))[:count]
  return np.stack([dataset[int(index)]['image'] for index in order])
