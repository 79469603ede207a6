"""`composer-jax train`: trains one stage on a prepared data set."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
import shlex
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from composer_jax import config_files
from composer_jax.conditions import by_name
from composer_jax.conditions.statistics import EmbeddingStatistics
from composer_jax.config import Config
from composer_jax.files import alone, read_json, write_json, write_text
from composer_jax.grids import GridSampler
from composer_jax.models.tokenizer import FILE_NAME as TOKENIZER_FILE
from composer_jax.models.tokenizer import Tokenizer
from composer_jax.sharding.mesh import local_rows, make_mesh
from composer_jax.trained import INPUTS, load_weights
from composer_jax.training import loop
from composer_jax.training.processes import ending_at_once, join
from composer_jax.training.stages import Diffusion, DualEncoder, PriorDiffusion
from composer_jax.training.step import Stage
from composer_jax.training.warm_start import Start, start_from
from data_pipelines.loader import Batches, PreparedDataset, batches, load_dataset

FINISHED = 'finished'
"""File that is there once a run has taken all its steps."""

Encode = Callable[[dict[str, Any]], dict[str, np.ndarray]]


class Encoded:
  """Batches with something done to each; its position is that of the batches."""

  def __init__(self, source: Batches, encode: Encode):
    self._source, self._encode = source, encode
    self.get_state, self.set_state = source.get_state, source.set_state
    self.close = source.close

  def __next__(self) -> dict[str, np.ndarray]:
    return self._encode(next(self._source))


def fit_tokenizer(
  config: Config, dataset: PreparedDataset, workdir: pathlib.Path
) -> tuple[Config, Tokenizer]:
  """Loads the run's tokenizer, or trains one; the model takes its vocabulary."""
  folder = workdir / 'tokenizer'
  if (folder / TOKENIZER_FILE).is_file():
    tokenizer = Tokenizer.load(folder)
  else:
    texts = [dataset[i]['text'] for i in range(len(dataset))]
    if not any(texts):
      raise ValueError(
        f'{config.data.path} has no captions, so there is nothing to train a dual'
        ' encoder with. The base model can be trained without it.'
      )
    model = config.clip
    tokenizer = Tokenizer.train(texts, model.vocab_size, model.context_length)
    if jax.process_index() == 0:  # All train the same one.
      tokenizer.save(folder)
  model = dataclasses.replace(
    config.clip,
    vocab_size=tokenizer.vocab_size,
    end_token=tokenizer.end_token,
  )
  return dataclasses.replace(config, model=model), tokenizer


def keep_config(config: Config, workdir: pathlib.Path) -> None:
  """Keeps the resolved config, in the first process; refuses to mix two in one folder.

  Raises:
    ValueError: the folder holds a run with another model or diffusion.
  """
  path = workdir / 'config.json'
  if path.exists():
    before = read_json(path, ('model', 'diffusion'), 'Use another --workdir.')
    now = json.loads(config.to_json())
    differ = [
      f'{part}.{name}: {before[part].get(name)!r} there, {value!r} asked'
      for part in ('model', 'diffusion')
      for name, value in now[part].items()
      if before[part].get(name) != value
    ]
    if differ:
      raise ValueError(
        f'{workdir} holds another run: {"; ".join(differ)}. Use another --workdir.'
      )
  if jax.process_index() == 0:
    write_text(path, config.to_json())


class Setup(NamedTuple):
  """What a run is made of, once its data are known.

  Attributes:
    config: completed by what the data decide.
    stage: model and loss.
    source: batches.
    shapes: stored shape of each condition that the model takes.
    sampler: draws grids of samples, or None.
    evaluator: measures what the model composes, or None.
  """

  config: Config
  stage: Stage
  source: Batches | Encoded
  shapes: dict[str, tuple[int, ...]]
  sampler: loop.Sampler | None = None
  evaluator: loop.Evaluator | None = None


def _dual_encoder(
  config: Config, dataset: PreparedDataset, workdir: pathlib.Path
) -> Setup:
  config, tokenizer = fit_tokenizer(config, dataset, workdir)

  def encode(batch: dict[str, Any]) -> dict[str, np.ndarray]:
    texts = batch['text']
    with warnings.catch_warnings():  # Once a run is enough; see fit_tokenizer.
      warnings.simplefilter('ignore')
      tokens = tokenizer.encode(texts)
    said = np.array([bool(text) for text in texts])
    return {'image': batch['image'], 'tokens': tokens, 'has_text': said}

  source = _batches(config, dataset, conditions=(), with_text=True)
  return Setup(config, DualEncoder(config), Encoded(source, encode), {})


def _diffusion(config: Config, dataset: PreparedDataset) -> Setup:
  config = _without_missing(config, dataset)
  names = config.unet.conditions
  source = _batches(config, dataset, conditions=names)
  begin = source.get_state()
  first = next(source)
  source.set_state(begin)
  shapes = {name: first[name].shape[1:] for name in names}
  stage = Diffusion(config, shapes)
  sampler = evaluator = None
  if config.train.sample_every or config.evaluate.every:
    held_out = load_dataset(config.data.path, 'test')
  if config.train.sample_every:
    rows = range(min(8, len(held_out)))
    sampler = GridSampler(stage, [held_out[row] for row in rows])
  if config.evaluate.every:
    from composer_jax.evaluation.in_training import StageEvaluator

    rows = range(min(config.evaluate.images, len(held_out)))
    evaluator = StageEvaluator(stage, [held_out[row] for row in rows])
  return Setup(config, stage, source, shapes, sampler, evaluator)


def _prior(config: Config, dataset: PreparedDataset) -> Setup:
  names = [c.name for c in by_name(['caption', 'semantics'])]
  if missing := [name for name in names if name not in dataset.conditions]:
    raise ValueError(
      f'{dataset.directory} has no {" and no ".join(missing)}; add them first with'
      ' `composer-jax prepare --onto DIR --encoder DIR`.'
    )
  shapes = {name: tuple(dataset.added[name]['shape']) for name in names}
  width = shapes['semantics'][0]
  model = dataclasses.replace(
    config.prior, embed_width=width, num_tokens=shapes['caption'][0] - 1
  )
  config = dataclasses.replace(config, model=model)
  about = dataset.added['semantics']
  if 'statistics' not in about:
    raise ValueError(
      f'{dataset.directory} holds no statistics of its semantics; add them again with'
      ' `composer-jax prepare --onto DIR --encoder DIR --overwrite`.'
    )
  statistics = EmbeddingStatistics(
    *(np.array(about['statistics'][key], np.float32) for key in ('mean', 'std'))
  )
  source = _batches(config, dataset, conditions=names)
  wanted = Encoded(source, lambda batch: {name: batch[name] for name in names})
  return Setup(config, PriorDiffusion(config, statistics), wanted, shapes)


def _without_missing(config: Config, dataset: PreparedDataset) -> Config:
  """Leaves out the conditions that the data lack, and says so."""
  known = by_name(config.unet.conditions)
  names = tuple(c.name for c in known if not c.stored or c.name in dataset.conditions)
  missing = [c.name for c in known if c.name not in names]
  if missing:
    print(
      f'{dataset.directory} has no {", ".join(missing)}; this model is trained without.'
    )
  model = dataclasses.replace(config.unet, conditions=names)
  return dataclasses.replace(config, model=model)


def _batches(config: Config, dataset: PreparedDataset, **wanted: Any) -> Batches:
  return batches(
    dataset,
    batch_size=config.data.batch_size,
    seed=config.train.seed,
    rows=local_rows(make_mesh(config.mesh), config.mesh.rules, config.data.batch_size),
    flip=config.data.flip,
    workers=config.data.workers,
    **wanted,
  )


def main(argv: list[str]) -> int:
  """Runs the verb; returns its exit status."""
  parser = argparse.ArgumentParser(
    prog='composer-jax train',
    description='Trains one stage, or goes on where it was interrupted.',
    epilog='Fields of the config are set with --config.field=value, such as'
    ' --config.data.path=DIR --config.train.minutes=5.',
    allow_abbrev=False,
  )
  parser.add_argument('--workdir', type=pathlib.Path, required=True, metavar='DIR')
  parser.add_argument('--config', metavar='FILE', help='such as configs/demo/base.py')
  parser.add_argument(
    '--profile',
    type=int,
    nargs='?',
    const=5,
    default=0,
    metavar='STEPS',
    help='trace some steps (5), for TensorBoard or Perfetto, to WORKDIR/profile',
  )
  parser.add_argument(
    '--preempted-exit-code',
    type=int,
    default=0,
    metavar='N',
    help='exit status when a signal has stopped the run, which is saved; schedulers'
    ' start what ends with another than 0 again',
  )
  flags, rest = parser.parse_known_args(argv)
  given = [f'--config={flags.config}'] if flags.config else []
  config = config_files.parse([*given, *rest])
  config.data.require_path()
  _keep_programs()
  join()
  command = shlex.join(['composer-jax', 'train', *argv])
  if jax.process_index():  # The first process stands for its job.
    return _train(config, flags, command)
  with alone(flags.workdir, 'a training'):
    return _train(config, flags, command)


def _train(config: Config, flags: argparse.Namespace, command: str) -> int:
  """Sets a run up and trains it, from where it was; returns the exit status."""
  workdir = flags.workdir
  workdir.mkdir(parents=True, exist_ok=True)
  dataset = load_dataset(config.data.path, 'train')
  if config.stage == 'dual_encoder':
    setup = _dual_encoder(config, dataset, workdir)
  elif config.stage == 'prior':
    setup = _prior(config, dataset)
  else:
    setup = _diffusion(config, dataset)
  first = jax.process_index() == 0
  finished = workdir / FINISHED
  keep_config(setup.config, workdir)
  if first:
    finished.unlink(missing_ok=True)
  inputs = {
    'condition_shapes': setup.shapes,
    'data': {key: dataset.info[key] for key in ('source', 'licence', 'credit')},
    'digest': dataset.info['digest'],
    'encoders': {
      name: about['encoder']
      for name, about in dataset.added.items()
      if name in setup.shapes
    },
    'command': command,
  }
  if origin := config.train.start_from:
    inputs['started_from'] = pathlib.Path(origin).absolute().name
  if first:
    write_json(workdir / INPUTS, inputs)

  def start() -> Start:
    old, weights, _ = load_weights(origin)
    return start_from(old, weights, setup.config)

  with ending_at_once(), contextlib.closing(setup.source):
    run = loop.train(
      setup.config,
      setup.stage,
      setup.source,
      workdir,
      setup.sampler,
      start if origin else None,
      evaluator=setup.evaluator,
      profile=flags.profile,
    )
  if not run.finished:
    if first:
      print(f'Interrupted at step {run.step} and saved; run again to go on.')
    return flags.preempted_exit_code
  if first:
    finished.touch()
    print(f'Trained {run.step} steps; the model is in {workdir}.')
  return 0


def _keep_programs() -> None:
  """Keeps compiled programs for the next start, where nothing else is said."""
  if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
    base = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
    folder = pathlib.Path(base) / 'composer_jax' / 'programs'
    jax.config.update('jax_compilation_cache_dir', str(folder))
