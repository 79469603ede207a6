"""`composer-jax report`: a page that shows what a model can do, and measures it."""

from __future__ import annotations

import argparse
import json
import pathlib
import shlex
from typing import Any


def main(argv: list[str]) -> int:
  """Runs the verb; returns its exit status."""
  parser = argparse.ArgumentParser(
    prog='composer-jax report',
    description='Recomposes held-out images, measures what became of each condition,'
    ' and writes index.html and report.json. Run again to resume.',
  )
  parser.add_argument(
    '--model', type=pathlib.Path, required=True, metavar='DIR', help='a trained model'
  )
  parser.add_argument(
    '--data', type=pathlib.Path, required=True, metavar='DIR', help='prepared images'
  )
  parser.add_argument('--out', type=pathlib.Path, required=True, metavar='DIR')
  parser.add_argument('--n', type=int, default=96, help='held-out images to measure')
  parser.add_argument('--show', type=int, default=8, help='of these, images to show')
  parser.add_argument('--seed', type=int, default=0)
  flags = parser.parse_args(argv)

  from composer_jax.composer import Composer
  from composer_jax.evaluation.report import summary, write_report
  from data_pipelines.loader import load_dataset

  dataset = load_dataset(flags.data, 'test')
  report = write_report(
    Composer.load(flags.model),
    dataset,
    flags.out,
    num_shown=flags.show,
    num_measured=flags.n,
    seed=flags.seed,
    model_dir=flags.model,
    rejected=_rejected(flags.data),
    commands=[_prepare_again(dataset.info, flags.data), _report_again(flags)],
  )
  print(summary(report))
  print(flags.out / 'index.html')
  return 0


def _rejected(data: pathlib.Path) -> list[dict[str, str]]:
  path = data / 'rejected.jsonl'
  if not path.is_file():
    return []
  return [json.loads(line) for line in path.read_text('utf-8').splitlines()]


def _prepare_again(info: dict[str, Any], data: pathlib.Path) -> str:
  flags = {name: info[name] for name in ('source', 'size', 'crop', 'seed')}
  return _command('prepare', flags | {'out': data})


def _report_again(flags: argparse.Namespace) -> str:
  return _command('report', vars(flags))


def _command(verb: str, flags: dict[str, Any]) -> str:
  words = [word for name, value in flags.items() for word in (f'--{name}', str(value))]
  return shlex.join(['composer-jax', verb, *words])
