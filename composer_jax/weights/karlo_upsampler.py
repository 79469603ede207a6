"""Karlo's upsampler, 64 to 256 pixels: a `UNet2DModel` of diffusers."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from flax import nnx

from composer_jax.config import Config, DiffusionConfig, SampleConfig
from composer_jax.files import read_json
from composer_jax.models.unet import UNet, UNetConfig
from composer_jax.safetensors_files import SafetensorsFiles
from composer_jax.weights.fields import Fields
from composer_jax.weights.mapping import take
from composer_jax.weights.model_folder import Model
from composer_jax.weights.unet_weights import unet_shape, unet_sources

ENLARGED = 4
"""How many times larger than their input the images are, per side: Karlo's."""

# What diffusers takes for a field that is missing.
_DEFAULTS: dict[str, Any] = {
  'sample_size': 256,
  'in_channels': 3,
  'out_channels': 3,
  'act_fn': 'silu',
  'add_attention': True,
  'block_out_channels': (224, 448, 672, 896),
  'class_embed_type': None,
  'center_input_sample': False,
  'flip_sin_to_cos': True,
  'freq_shift': 0,
  'layers_per_block': 2,
  'mid_block_scale_factor': 1,
  'mid_block_type': 'UNetMidBlock2D',
  'norm_eps': 1e-5,
  'norm_num_groups': 32,
  'num_class_embeds': None,
  'time_embedding_dim': None,
  'time_embedding_type': 'positional',
}


def read_upsampler(folder: pathlib.Path, files: SafetensorsFiles) -> Model:
  """Reads a folder of an upsampler, such as `super_res_first/` of Karlo.

  Args:
    folder: with `config.json`.
    files: its weights.

  Raises:
    OSError: a file is missing.
    ValueError: it is damaged, or is or needs what our U-Net is not.
  """
  fields = read_json(folder / 'config.json', (), 'Copy or download it again.')
  config = upsampler_config(fields)
  model = nnx.eval_shape(lambda: UNet(config, {}, rngs=nnx.Rngs(0)))
  weights = take(files, unet_sources(config), nnx.state(model))
  diffusion = DiffusionConfig(schedule='cosine', prediction='eps')
  sample = SampleConfig(steps=7, guidance=1.0)
  return Model(Config('diffusion', config, diffusion=diffusion, sample=sample), weights)


def upsampler_config(fields: Mapping[str, Any]) -> UNetConfig:
  """Our config of what a `config.json` of `UNet2DModel` describes.

  Args:
    fields: of `config.json`. What is missing has diffusers' default.

  Returns:
    The config, in bfloat16; replace what should be otherwise.

  Raises:
    ValueError: it is of another class, or a field has a value that our U-Net has no
      counterpart of.
  """
  found = Fields('UNet2DModel', fields, _DEFAULTS)
  for name in ('class_embed_type', 'num_class_embeds', 'time_embedding_dim'):
    found.expect(name, None)
  found.expect('time_embedding_type', 'positional')
  found.expect('mid_block_type', 'UNetMidBlock2D')
  found.expect('add_attention', False)
  found.expect('in_channels', 6)
  size = found.positive('sample_size')
  if size % ENLARGED:
    raise found.unsupported('sample_size', f'a multiple of {ENLARGED}')
  return UNetConfig(
    image_size=size,
    low_res_size=size // ENLARGED,
    level_embedding=False,
    learned_variance=found.expect('out_channels', 3, 6) == 6,
    **unet_shape(found),
  )
