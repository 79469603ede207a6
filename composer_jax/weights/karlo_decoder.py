"""Karlo's decoder: a `UNet2DConditionModel` of diffusers with `UnCLIPTextProjModel`."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from flax import nnx

from composer_jax.conditions import by_name
from composer_jax.config import Config, DiffusionConfig, SampleConfig
from composer_jax.files import read_json
from composer_jax.models.unet import UNet, UNetConfig
from composer_jax.safetensors_files import SafetensorsFiles
from composer_jax.weights.fields import Fields
from composer_jax.weights.mapping import (
  Path,
  Source,
  Transform,
  same,
  take,
  transposed,
)
from composer_jax.weights.model_folder import Model
from composer_jax.weights.unet_weights import unet_shape, unet_sources

TOKENS = 77
"""Word states of a caption, its padding included: CLIP's."""

PROJECTION = 'text_proj'
"""Folder, beside that of the U-Net, of what brings embeddings into it."""

# What diffusers takes for a field that is missing.
_DEFAULTS: dict[str, Any] = {
  'sample_size': 64,
  'in_channels': 4,
  'out_channels': 4,
  'block_out_channels': (320, 640, 1280, 1280),
  'layers_per_block': 2,
  'attention_head_dim': 8,
  'cross_attention_dim': 1280,
  'mid_block_type': 'UNetMidBlock2DCrossAttn',
  'class_embed_type': None,
}

# Other values are other models; also diffusers' defaults.
_SUPPORTED: dict[str, Any] = {
  'act_fn': 'silu',
  'addition_embed_type': None,
  'center_input_sample': False,
  'class_embeddings_concat': False,
  'conv_in_kernel': 3,
  'conv_out_kernel': 3,
  'cross_attention_norm': None,
  'encoder_hid_dim': None,
  'flip_sin_to_cos': True,
  'freq_shift': 0,
  'mid_block_only_cross_attention': None,
  'mid_block_scale_factor': 1,
  'norm_eps': 1e-5,
  'norm_num_groups': 32,
  'num_attention_heads': None,
  'num_class_embeds': None,
  'only_cross_attention': False,
  'resnet_out_scale_factor': 1.0,
  'resnet_skip_time_act': False,
  'time_cond_proj_dim': None,
  'time_embedding_act_fn': None,
  'time_embedding_dim': None,
  'time_embedding_type': 'positional',
  'timestep_post_act': None,
}

_ADVICE = 'Copy or download it again.'


def read_decoder(folder: pathlib.Path, files: SafetensorsFiles) -> Model:
  """Reads a folder of a decoder, such as `decoder/` of Karlo.

  Args:
    folder: with `config.json`; `text_proj/` beside it has another.
    files: the weights of both.

  Raises:
    OSError: a file is missing.
    ValueError: it is damaged, or is or needs what our U-Net is not.
  """
  config = decoder_config(read_json(folder / 'config.json', (), _ADVICE))
  projection = folder.absolute().parent / PROJECTION / 'config.json'
  fields = read_json(projection, ('time_embed_dim', 'cross_attention_dim'), _ADVICE)
  shapes = condition_shapes(config, fields)
  model = nnx.eval_shape(lambda: UNet(config, shapes, rngs=nnx.Rngs(0)))
  weights = take(files, decoder_sources(config), nnx.state(model))
  diffusion = DiffusionConfig(schedule='cosine', prediction='eps')
  sample = SampleConfig(steps=25, guidance=4.0, empty_caption=True)
  config_of_run = Config('diffusion', config, diffusion=diffusion, sample=sample)
  return Model(config_of_run, weights, condition_shapes=shapes)


def decoder_config(fields: Mapping[str, Any]) -> UNetConfig:
  """Our config of what a `config.json` of `UNet2DConditionModel` describes.

  Args:
    fields: of `config.json`. What is missing has diffusers' default.

  Returns:
    The config, in bfloat16; replace what should be otherwise.

  Raises:
    ValueError: it is of another class, or a field has a value that our U-Net has no
      counterpart of.
  """
  found = Fields('UNet2DConditionModel', fields, _DEFAULTS | _SUPPORTED)
  for name, value in _SUPPORTED.items():
    if name not in ('act_fn', 'norm_num_groups'):
      found.expect(name, value)
  found.expect('class_embed_type', 'identity')
  found.expect('in_channels', 3)
  shape = unet_shape(found, 'SimpleCrossAttn')
  if not shape['attention'][-1]:
    raise found.unsupported('down_block_types', 'attention at the last level')
  found.expect('mid_block_type', 'UNetMidBlock2DSimpleCrossAttn')
  head_widths = found['attention_head_dim']
  if isinstance(head_widths, int):
    head_widths = [head_widths]
  if len(set(head_widths)) != 1:
    raise found.unsupported('attention_head_dim', 'one width for all levels')
  return UNetConfig(
    image_size=found.positive('sample_size'),
    head_width=head_widths[0],
    conditions=tuple(c.name for c in by_name(['caption', 'semantics'])),
    conditioning='unclip',
    context_width=found.positive('cross_attention_dim'),
    learned_variance=found.expect('out_channels', 3, 6) == 6,
    **shape,
  )


def condition_shapes(
  config: UNetConfig, fields: Mapping[str, Any]
) -> dict[str, tuple[int, ...]]:
  """Stored shapes of caption and semantics.

  Args:
    config: of the U-Net.
    fields: of the `config.json` of its `UnCLIPTextProjModel`.

  Raises:
    ValueError: the two do not fit, or it has other extra tokens than ours.
  """
  (semantics,) = by_name(['semantics'])
  expected = {
    'clip_extra_context_tokens': (4, semantics.extra_tokens),
    'time_embed_dim': (None, 4 * config.channels),
    'cross_attention_dim': (None, config.context_width),
  }
  defaults = {name: default for name, (default, _) in expected.items()}
  found = Fields('UnCLIPTextProjModel', fields, defaults)
  for name, (_, value) in expected.items():
    found.expect(name, value)
  width = fields.get('clip_embeddings_dim', 768)
  return {'caption': (TOKENS + 1, width), 'semantics': (width,)}


def decoder_sources(config: UNetConfig) -> dict[Path, Source]:
  """Where each parameter of a decoder comes from."""
  (semantics,) = by_name(['semantics'])
  tokens = semantics.extra_tokens

  # Theirs has the tokens within a channel, ours the channels within a token.
  by_token = Transform(
    lambda x: x.reshape(-1, tokens, *x.shape[1:]).swapaxes(0, 1).reshape(x.shape),
    lambda x: x.reshape(tokens, -1, *x.shape[1:]).swapaxes(0, 1).reshape(x.shape),
  )

  def linear(
    branch: str, module: str, theirs: str, order: Transform = same
  ) -> dict[Path, Source]:
    path: Path = ('conditions', 'branches', branch, module)
    return {
      (*path, 'kernel'): Source(f'{theirs}.weight', transposed.after(order)),
      (*path, 'bias'): Source(f'{theirs}.bias', order),
    }

  image, norm = 'clip_image_embeddings_project_to_time_embeddings', 'norm'
  caption: Path = ('conditions', 'branches', 'caption', norm)
  return {
    **unet_sources(config),
    **linear('semantics', 'to_embedding', image),
    **linear('semantics', 'to_extra', 'clip_extra_context_tokens_proj', by_token),
    **linear('caption', 'to_embedding', 'embedding_proj'),
    **linear('caption', 'to_context', 'encoder_hidden_states_proj'),
    ('conditions', 'branches', 'semantics', 'null'): Source(
      'learned_classifier_free_guidance_embeddings'
    ),
    (*caption, 'scale'): Source('text_encoder_hidden_states_norm.weight'),
    (*caption, 'bias'): Source('text_encoder_hidden_states_norm.bias'),
  }
