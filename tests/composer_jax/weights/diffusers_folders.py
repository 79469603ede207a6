"""Small models with random weights, in folders as diffusers itself writes them."""

from __future__ import annotations

import pathlib

import diffusers
from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel

from tests.composer_jax.models.public_weights import randomised

EMBED = 12
"""Width of the embeddings."""

SHAPES = {'caption': (6, EMBED), 'semantics': (EMBED,)}
"""Of the stored conditions, with captions of five tokens."""


def decoder(**changes) -> diffusers.UNet2DConditionModel:
  """A small U-Net of Karlo's kind."""
  options = {
    'sample_size': 8,
    'in_channels': 3,
    'out_channels': 6,
    'down_block_types': ['ResnetDownsampleBlock2D', 'SimpleCrossAttnDownBlock2D'],
    'mid_block_type': 'UNetMidBlock2DSimpleCrossAttn',
    'up_block_types': ['SimpleCrossAttnUpBlock2D', 'ResnetUpsampleBlock2D'],
    'block_out_channels': [32, 64],
    'layers_per_block': 1,
    'attention_head_dim': 16,
    'cross_attention_dim': 20,
    'class_embed_type': 'identity',
    'resnet_time_scale_shift': 'scale_shift',
  }
  return randomised(diffusers.UNet2DConditionModel(**options | changes))


def text_proj(unet: diffusers.UNet2DConditionModel) -> UnCLIPTextProjModel:
  """What brings embeddings into `unet`."""
  model = UnCLIPTextProjModel(
    clip_embeddings_dim=EMBED,
    time_embed_dim=4 * unet.config.block_out_channels[0],
    cross_attention_dim=unet.config.cross_attention_dim,
  )
  return randomised(model, seed=1)


def write_decoder(folder: pathlib.Path, **changes):
  """Writes `decoder/` and `text_proj/` into a folder; returns the two models."""
  unet = decoder(**changes)
  projection = text_proj(unet)
  unet.save_pretrained(folder / 'decoder', safe_serialization=True)
  projection.save_pretrained(folder / 'text_proj', safe_serialization=True)
  return unet, projection


def upsampler(**changes) -> diffusers.UNet2DModel:
  """A small U-Net of the kind of Karlo's super-resolution."""
  options = {
    'sample_size': 16,
    'in_channels': 6,
    'out_channels': 3,
    'down_block_types': ['ResnetDownsampleBlock2D'] * 2,
    'up_block_types': ['ResnetUpsampleBlock2D'] * 2,
    'block_out_channels': [32, 64],
    'layers_per_block': 1,
    'add_attention': False,
    'resnet_time_scale_shift': 'scale_shift',
  }
  return randomised(diffusers.UNet2DModel(**options | changes))
