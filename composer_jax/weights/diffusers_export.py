"""Models of ours in the folders that diffusers opens, where it has a class for them."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from flax import nnx

from composer_jax.config import Config
from composer_jax.files import whole_folder, write_json
from composer_jax.models.prior import PUBLISHED_STEPS, PriorConfig
from composer_jax.models.unet import UNetConfig, unroll
from composer_jax.trained import load_weights, read_inputs
from composer_jax.weights import karlo_decoder, karlo_prior
from composer_jax.weights.export import (
  ABOUT,
  DTYPES,
  LIMIT,
  about_model,
  about_stage,
  condition_specs,
  stages_in,
  without_paths,
  write_tensors,
)
from composer_jax.weights.mapping import give
from composer_jax.weights.unet_weights import unet_sources

STEM = 'diffusion_pytorch_model'


def export_diffusers(
  workdir: pathlib.Path,
  out: pathlib.Path,
  *,
  ema: bool = True,
  dtype: Literal['float32', 'float16', 'bfloat16'] = 'float32',
  limit: int = LIMIT,
) -> list[str]:
  """Writes prior, decoder and super-resolution as diffusers has them.

  Beside them, `model.json` says where they come from and under which licence.

  Args:
    workdir: a model folder, or that of a single run or import. Its dual encoder is left
      out, as that is a model of transformers.
    out: the folder to make; it must not exist, or be empty.
    ema: whether to take the averaged weights, rather than the last ones.
    dtype: of the weights in the files.
    limit: bytes in one file of weights, at most.

  Returns:
    Names of the folders in `out`.

  Raises:
    FileNotFoundError: there is no trained model in `workdir`.
    FileExistsError: something is in `out`.
    ValueError: a model has no counterpart in diffusers; says why.
  """
  about = about_model(ema, DTYPES[dtype])
  with whole_folder(out) as part:
    for name, source in stages_in(workdir).items():
      if name == 'encoder':
        continue
      config, weights, step = load_weights(source, ema=ema)
      inputs = without_paths(read_inputs(source)) | {'step': step}
      shapes = inputs['condition_shapes']
      for folder, (fields, tensors) in _models(name, config, weights, shapes).items():
        (part / folder).mkdir()
        cast = {key: x.astype(DTYPES[dtype], copy=False) for key, x in tensors.items()}
        write_tensors(part / folder, cast, limit, STEM)
        write_json(part / folder / 'config.json', fields)
        about['stages'][folder] = about_stage(config, inputs)
      about['conditions'] |= condition_specs(config, inputs)
    if not about['stages']:
      raise ValueError(
        f'{workdir} holds nothing but a dual encoder, which diffusers has no class for.'
      )
    write_json(part / ABOUT, about)
  return sorted(about['stages'])


_Weights = Mapping[Any, Any]

_Written = tuple[dict[str, Any], dict[str, np.ndarray]]
"""Fields of a `config.json`, and tensors by name."""


def _models(
  name: str, config: Config, state: nnx.State, shapes: dict[str, Any]
) -> dict[str, _Written]:
  """What one of our stages is in diffusers: folder to contents."""
  weights = nnx.to_pure_dict(state)
  if isinstance(config.model, PriorConfig):
    return {'prior': _prior(config.model, weights)}
  model = config.unet
  if model.scan:
    weights = unroll(weights, model)
  if model.low_res_size:
    _check(name, {'diffusion.prediction': (config.diffusion.prediction, 'eps'),
                  'model.conditions': (model.conditions, ()),
                  'model.fold': (model.fold, 1),
                  'model.level_embedding': (model.level_embedding, False),
                  'model.attention': (any(model.attention), False)})  # fmt: skip
    return {'super_res_first': _upsampler(model, weights)}
  _check(name, {'diffusion.prediction': (config.diffusion.prediction, 'eps'),
                'model.conditions': (model.conditions, ('caption', 'semantics')),
                'model.fold': (model.fold, 1),
                'model.conditioning': (model.conditioning, 'unclip'),
                'model.attention[-1]': (model.attention[-1], True)})  # fmt: skip
  return _decoder(model, weights, shapes['semantics'][0])


def _check(stage: str, fields: dict[str, tuple[Any, Any]]) -> None:
  differing = [
    f'{name} is {found!r}, expected {wanted!r}'
    for name, (found, wanted) in fields.items()
    if found != wanted
  ]
  if differing:
    raise ValueError(
      f'{stage}: diffusers has no class for this model: {"; ".join(differing)}. Export'
      ' it with --format composer.'
    )


def _prior(config: PriorConfig, weights: _Weights) -> _Written:
  _check('prior', {'model.mlp_ratio': (config.mlp_ratio, 4),
                   'model.num_steps': (config.num_steps, PUBLISHED_STEPS),
                   'heads * head_width': (config.heads * config.head_width,
                                          config.width)})  # fmt: skip
  fields = {
    '_class_name': 'PriorTransformer',
    'num_attention_heads': config.heads,
    'attention_head_dim': config.head_width,
    'num_layers': config.layers,
    'embedding_dim': config.embed_width,
    'num_embeddings': config.num_tokens,
    'additional_embeddings': 4,
    'dropout': config.dropout,
  }
  return fields, give(weights, karlo_prior.sources(config))


def _unet(config: UNetConfig, attending: str) -> dict[str, Any]:
  kinds = [(attending, 'Down', 'Up') if a else ('Resnet', 'Downsample', 'Upsample')
           for a in config.attention]  # fmt: skip
  return {
    'sample_size': config.image_size,
    'out_channels': 6 if config.learned_variance else 3,
    'block_out_channels': [config.channels * m for m in config.multipliers],
    'down_block_types': [f'{kind}{down}Block2D' for kind, down, _ in kinds],
    'up_block_types': [f'{kind}{up}Block2D' for kind, _, up in reversed(kinds)],
    'layers_per_block': config.blocks,
    'norm_num_groups': config.groups,
    'resnet_time_scale_shift': 'scale_shift',
    'dropout': config.dropout,
  }


def _upsampler(config: UNetConfig, weights: _Weights) -> _Written:
  fields = {
    '_class_name': 'UNet2DModel',
    'in_channels': 6,
    'add_attention': False,
    **_unet(config, ''),
  }
  return fields, give(weights, unet_sources(config))


def _decoder(config: UNetConfig, weights: _Weights, width: int) -> dict[str, _Written]:
  fields = {
    '_class_name': 'UNet2DConditionModel',
    'in_channels': 3,
    'mid_block_type': 'UNetMidBlock2DSimpleCrossAttn',
    'attention_head_dim': config.head_width,
    'cross_attention_dim': config.context_width,
    'class_embed_type': 'identity',
    **_unet(config, 'SimpleCrossAttn'),
  }
  tensors = give(weights, karlo_decoder.decoder_sources(config))
  own = {name for source in unet_sources(config).values() for name in source.parts}
  projection = {
    '_class_name': 'UnCLIPTextProjModel',
    'clip_extra_context_tokens': 4,
    'clip_embeddings_dim': width,
    'time_embed_dim': 4 * config.channels,
    'cross_attention_dim': config.context_width,
  }
  return {
    'decoder': (fields, {name: x for name, x in tensors.items() if name in own}),
    karlo_decoder.PROJECTION: (
      projection,
      {name: x for name, x in tensors.items() if name not in own},
    ),
  }
