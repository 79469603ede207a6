"""A trained model as a folder to hand on: safetensors, and all that belongs to them.

Nothing in it could run, and no path of the machine it was made on is left in it.
"""

from __future__ import annotations

import dataclasses
import pathlib
import shlex
import shutil
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import jax
import ml_dtypes
import numpy as np
from flax import nnx
from safetensors.numpy import save_file

import composer_jax
from composer_jax.composer import Composer
from composer_jax.conditions import by_name
from composer_jax.config import Config
from composer_jax.files import whole_folder, write_json, write_text
from composer_jax.models.tokenizer import FILE_NAME as TOKENIZER
from composer_jax.models.unet import UNetConfig
from composer_jax.safetensors_files import digest
from composer_jax.trained import (
  INPUTS,
  digest_of_weights,
  load_weights,
  read_config,
  read_inputs,
  tensor_name,
  upsampler_folders,
)
from composer_jax.weights.sampler_export import export_sampler

ABOUT = 'model.json'
LIMIT = 5 * 10**9
"""Bytes in one file of weights, at most."""

DTYPES = {
  'float32': np.dtype(np.float32),
  'float16': np.dtype(np.float16),
  'bfloat16': np.dtype(ml_dtypes.bfloat16),
}


def export_model(
  workdir: pathlib.Path,
  out: pathlib.Path,
  *,
  ema: bool = True,
  dtype: Literal['float32', 'float16', 'bfloat16'] = 'float32',
  compute: Literal['float32', 'bfloat16'] | None = None,
  limit: int = LIMIT,
  sampler_batch: int | None = None,
) -> dict[str, Any]:
  """Writes a model folder that `composer_jax.load` opens.

  Args:
    workdir: a model folder, or that of a single run or import.
    out: the folder to make; it must not exist, or be empty.
    ema: whether to take the averaged weights, rather than the last ones.
    dtype: of the weights in the files. They are float32 again when opened.
    compute: what the opened model computes in; as in training if None.
    limit: bytes in one file of weights, at most.
    sampler_batch: images that an exported sampler makes at a time; None for none.

  Returns:
    The contents of `model.json`.

  Raises:
    FileNotFoundError: there is no trained model in `workdir`.
    FileExistsError: something is in `out`.
    ValueError: the folder is damaged.
  """
  stages = stages_in(workdir)
  if sampler_batch is not None and 'base' not in stages:
    raise ValueError(
      f'{workdir} holds {", ".join(stages)} and no base model, so it has no sampler;'
      ' give a model folder as --workdir.'
    )
  with whole_folder(out) as part:
    about = _write(part, stages, ema, DTYPES[dtype], compute, limit)
    if sampler_batch is not None:
      _write_sampler(part, about, sampler_batch)
    about['digests'] = {
      str(path.relative_to(part)): digest(path)
      for path in sorted(part.rglob('*'))
      if path.is_file()
    }
    write_json(part / ABOUT, about)
  return about


def stages_in(workdir: pathlib.Path) -> dict[str, pathlib.Path]:
  """The trained stages of a model folder or a single run: name to folder.

  Raises:
    FileNotFoundError: there are none.
  """
  if (workdir / 'config.json').is_file():
    return {_name_of(read_config(workdir)): workdir}
  names = ('encoder', 'prior', 'base')
  folders = [workdir / name for name in names] + upsampler_folders(workdir)
  found = {f.name: f for f in folders if (f / 'config.json').is_file()}
  if not found:
    raise FileNotFoundError(
      f'{workdir} holds no trained model; expected config.json, or folders such as'
      ' base/ that hold one.'
    )
  return found


def _name_of(config: Config) -> str:
  if isinstance(config.model, UNetConfig):
    return 'upsampler' if config.model.low_res_size else 'base'
  return {'dual_encoder': 'encoder'}.get(config.stage, config.stage)


def _write(
  folder: pathlib.Path,
  stages: Mapping[str, pathlib.Path],
  ema: bool,
  dtype: np.dtype,
  compute: str | None,
  limit: int,
) -> dict[str, Any]:
  about = about_model(ema, dtype)
  renamed: dict[str, str] = {}
  for name, source in stages.items():
    config, weights, step = load_weights(source, ema=ema)
    config = _portable(config, compute)
    before = digest_of_weights(weights)
    weights = jax.tree.map(lambda x: np.asarray(x).astype(dtype, copy=False), weights)
    if dtype != np.float32:
      again = jax.tree.map(lambda x: x.astype(np.float32), weights)
      renamed[before] = digest_of_weights(again)
    (folder / name).mkdir()
    write_tensors(folder / name, named_tensors(weights), limit)
    inputs = without_paths(read_inputs(source)) | {'step': step}
    # The encoder whose embeddings these are has other bits now.
    for made_by in inputs.get('encoders', {}).values():
      made_by['weights'] = renamed.get(made_by['weights'], made_by['weights'])
    write_json(folder / name / INPUTS, inputs)
    if (source / 'tokenizer' / TOKENIZER).is_file():
      shutil.copytree(source / 'tokenizer', folder / name / 'tokenizer')
    write_text(folder / name / 'config.json', config.to_json())
    about['stages'][name] = about_stage(config, inputs)
    about['conditions'] |= condition_specs(config, inputs)
  return about


def _write_sampler(folder: pathlib.Path, about: Mapping[str, Any], batch: int) -> None:
  sizes = {
    name: stage['image_size']
    for name, stage in about['stages'].items()
    if 'image_size' in stage
  }
  opened = Composer.load(folder)
  ordered = sorted(sizes, key=sizes.__getitem__)
  folders = dict(zip(ordered, opened.stages, strict=True))
  export_sampler(opened, folders, folder, batch)


def named_tensors(weights: nnx.State) -> dict[str, np.ndarray]:
  """Parameters by their paths, joined by full stops."""
  flat: Any = nnx.to_flat_state(weights)
  return {tensor_name(path): np.asarray(leaf[...]) for path, leaf in flat}


def write_tensors(
  folder: pathlib.Path,
  tensors: Mapping[str, np.ndarray],
  limit: int = LIMIT,
  stem: str = 'model',
) -> None:
  """Writes safetensors, in several files with an index where one would be too large.

  Args:
    folder: where they go.
    tensors: by name.
    limit: bytes in one file, at most, unless a single tensor has more.
    stem: of the names of the files.
  """
  shards = list(_shards(tensors, limit))
  if len(shards) == 1:
    _save(folder / f'{stem}.safetensors', shards[0])
    return
  places: dict[str, str] = {}
  for index, shard in enumerate(shards, 1):
    name = f'{stem}-{index:05}-of-{len(shards):05}.safetensors'
    _save(folder / name, shard)
    places |= dict.fromkeys(shard, name)
  total = sum(tensor.nbytes for tensor in tensors.values())
  index_of = {'metadata': {'total_size': total}, 'weight_map': places}
  write_json(folder / f'{stem}.safetensors.index.json', index_of)


def _save(path: pathlib.Path, tensors: Mapping[str, np.ndarray]) -> None:
  whole = {name: np.asarray(tensor, order='C') for name, tensor in tensors.items()}
  path.touch()
  mode = path.stat().st_mode
  save_file(whole, path, metadata={'format': 'pt'})
  path.chmod(mode)  # What safetensors writes, nobody else could read.


def _shards(
  tensors: Mapping[str, np.ndarray], limit: int
) -> Iterator[dict[str, np.ndarray]]:
  shard: dict[str, np.ndarray] = {}
  size = 0
  for name, tensor in tensors.items():
    if shard and size + tensor.nbytes > limit:
      yield shard
      shard, size = {}, 0
    shard[name] = tensor
    size += tensor.nbytes
  yield shard


def _portable(config: Config, compute: str | None) -> Config:
  """Without the folders of the machine that it was trained on."""
  model: Any = config.model
  return dataclasses.replace(
    config,
    model=dataclasses.replace(model, dtype=compute or model.dtype),
    data=dataclasses.replace(config.data, path=''),
    train=dataclasses.replace(config.train, start_from=''),
  )


def without_paths(inputs: Mapping[str, Any]) -> dict[str, Any]:
  """What a run says of itself, with the names of folders for their absolute paths."""
  clean = dict(inputs)
  if 'command' in clean:
    words = [_name_in(word, '=') for word in shlex.split(clean['command'])]
    clean['command'] = shlex.join(words)
  if clean.get('data'):
    parts = clean['data']['source'].split(',')
    clean['data'] = clean['data'] | {
      'source': ','.join(_name_in(part, ':') for part in parts)
    }
  return clean


def _name_in(text: str, mark: str) -> str:
  """`text`, in which an absolute path, alone or behind a mark, is cut to its name."""
  before, found, path = text.rpartition(mark)
  if path.startswith('/') and not path.startswith('//'):
    path = pathlib.PurePath(path).name
  return f'{before}{found}{path}'


def about_model(averaged: bool, dtype: np.dtype) -> dict[str, Any]:
  """What `model.json` says before anything is said of stages and conditions."""
  return {
    'format': 1,
    'composer_jax': composer_jax.__version__,
    'weights': {'averaged': averaged, 'dtype': dtype.name},
    'stages': {},
    'conditions': {},
  }


def about_stage(config: Config, inputs: Mapping[str, Any]) -> dict[str, Any]:
  """Licence, provenance, schedule and preprocessing of a stage.

  Args:
    config: of its run.
    inputs: what its run says of itself, and `step`.
  """
  about: dict[str, Any] = {
    'stage': config.stage,
    'step': inputs['step'],
    'data': inputs.get('data'),
    'imported': inputs.get('imported'),
    'started_from': inputs.get('started_from'),
  }
  if config.stage == 'dual_encoder':
    size = config.clip.image_size
    about['preprocessing'] = {
      'images': f'uint8 sRGB, squared, bicubic to {size} x {size} pixels',
      'captions': f'byte pairs, {config.clip.context_length} tokens',
    }
    return about
  diffusion = config.diffusion
  about['schedule'] = {
    'name': diffusion.schedule,
    'num_steps': diffusion.num_steps,
    'prediction': diffusion.prediction,
  }
  if isinstance(config.model, UNetConfig):
    about['image_size'] = config.model.image_size
    about['preprocessing'] = {
      'images': f'float in [-1, 1], {config.model.image_size} pixels a side',
      'low_res': config.model.low_res_size or None,
    }
  return about


def condition_specs(config: Config, inputs: Mapping[str, Any]) -> dict[str, Any]:
  """What a model is told, as it is stored."""
  shapes = inputs['condition_shapes']
  sides = [shape[0] for shape in shapes.values() if len(shape) == 3]
  return {
    c.name: c.spec(max(sides, default=0)).to_json() | {'shape': list(shapes[c.name])}
    for c in by_name(shapes)
  }
