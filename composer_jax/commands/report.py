"""`composer-jax report`: a page that shows what a model can do, and measures it."""

from __future__ import annotations

import argparse
import json
import pathlib
import shlex
from collections.abc import Mapping
from typing import Any

from composer_jax.buckets import open_path
from composer_jax.files import read_json
from composer_jax.shipped import model_folder


def main(argv: list[str]) -> int:
  """Runs the verb; returns its exit status."""
  parser = argparse.ArgumentParser(
    prog='composer-jax report',
    description='Recomposes held-out images, measures what became of each condition,'
    ' and writes index.html and report.json. Run again to resume.',
  )
  parser.add_argument(
    '--model', required=True, metavar='DIR', help='a trained model, or demo'
  )
  parser.add_argument('--data', required=True, metavar='DIR', help='prepared images')
  parser.add_argument('--out', type=pathlib.Path, required=True, metavar='DIR')
  parser.add_argument('--n', type=int, default=96, help='held-out images to measure')
  parser.add_argument('--show', type=int, default=8, help='of these, images to show')
  parser.add_argument('--seed', type=int, default=0)
  flags = parser.parse_args(argv)

  from composer_jax.composer import Composer
  from composer_jax.evaluation.report import summary, write_report
  from data_pipelines.loader import load_dataset

  model = model_folder(flags.model)
  dataset = load_dataset(flags.data, 'test')
  report = write_report(
    Composer.load(model),
    dataset,
    flags.out,
    num_shown=flags.show,
    num_measured=flags.n,
    seed=flags.seed,
    model_dir=model,
    rejected=_rejected(flags.data),
    commands=_commands(dataset.info, flags),
  )
  print(summary(report))
  print(flags.out / 'index.html')
  return 0


def _rejected(data: str) -> list[dict[str, str]]:
  path = open_path(data) / 'rejected.jsonl'
  if not path.is_file():
    return []
  return [json.loads(line) for line in path.read_text('utf-8').splitlines()]


def _commands(info: Mapping[str, Any], flags: argparse.Namespace) -> list[str]:
  """What makes the data, the model and the page again, in this order."""
  from composer_jax.trained import INPUTS, upsampler_folders

  commands = [_prepare(info, flags.data)]
  model = model_folder(flags.model)
  upsamplers = [path.name for path in upsampler_folders(model)]
  for stage in ('encoder', 'prior', 'base', *upsamplers):
    folder = model / stage
    if not (folder / INPUTS).is_file():
      continue
    told = read_json(folder / INPUTS, ('command',), 'Train that stage again.')
    other = _other_data(folder, told, info)
    commands += [*other, told['command']]
    if stage == 'encoder':
      onto = {'onto': flags.data, 'encoder': folder}
      commands.append(_command('prepare', onto))
  return [*commands, _command('report', vars(flags))]


def _prepare(info: Mapping[str, Any], out: str) -> str:
  words = {name: info[name] for name in ('source', 'size', 'crop', 'seed')}
  words |= {
    'shards': sum(info['shards'].values()),
    'conditions': ','.join(info['conditions']) or 'none',
    'out': out,
  }
  if info.get('copies', 1) > 1:
    words['copies'] = info['copies']
  return _command('prepare', words)


def _other_data(
  folder: pathlib.Path, told: Mapping[str, Any], info: Mapping[str, Any]
) -> list[str]:
  """What prepares the data of a stage, if they are not those that are reported on."""
  from data_pipelines.dataset import INFO

  if told.get('digest') == info['digest']:
    return []
  advice = 'Train that stage again.'
  data = read_json(folder / 'config.json', ('data',), advice)['data']
  path = open_path(data['path'])
  if not (path / INFO).is_file():
    return []  # Somewhere else by now.
  return [_prepare(read_json(path / INFO, (), advice), data['path'])]


def _command(verb: str, flags: dict[str, Any]) -> str:
  words = [word for name, value in flags.items() for word in (f'--{name}', str(value))]
  return shlex.join(['composer-jax', verb, *words])
