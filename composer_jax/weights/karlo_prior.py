"""Karlo's prior: `PriorTransformer` of diffusers, such as kakaobrain/karlo-v1-alpha."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from flax import nnx

from composer_jax.config import Config, DiffusionConfig, SampleConfig
from composer_jax.files import read_json
from composer_jax.models.prior import EXTRA_TOKENS, Prior, PriorConfig
from composer_jax.safetensors_files import SafetensorsFiles
from composer_jax.weights.fields import Fields
from composer_jax.weights.mapping import (
  Path,
  Source,
  same,
  take,
  transposed,
  without_axes,
)
from composer_jax.weights.model_folder import Model

_MODULES = {
  'time_in': 'time_embedding.linear_1',
  'time_out': 'time_embedding.linear_2',
  'words_in': 'encoder_hidden_states_proj',
  'sentence_in': 'embedding_proj',
  'embedding_in': 'proj_in',
  'norm_out': 'norm_out',
  'embedding_out': 'proj_to_clip_embeddings',
}
_LAYER_MODULES = {
  'norm_attention': 'norm1',
  'q': 'attn1.to_q',
  'k': 'attn1.to_k',
  'v': 'attn1.to_v',
  'attention_out': 'attn1.to_out.0',
  'norm_mlp': 'norm3',
  'mlp_in': 'ff.net.0.proj',
  'mlp_out': 'ff.net.2',
}


# What diffusers takes for a field that is missing.
_SIZES = {
  'num_attention_heads': 32,
  'attention_head_dim': 64,
  'num_layers': 20,
  'embedding_dim': 768,
  'num_embeddings': 77,
}

# Where they are not missing; other values are other models.
_SUPPORTED: dict[str, tuple[Any, ...]] = {
  'additional_embeddings': (EXTRA_TOKENS,),
  'time_embed_act_fn': ('silu',),
  'norm_in_type': (None,),
  'embedding_proj_norm_type': (None,),
  'encoder_hid_proj_type': ('linear',),
  'added_emb_type': ('prd',),
}


def read_prior(folder: pathlib.Path, files: SafetensorsFiles) -> Model:
  """Reads a folder of a `PriorTransformer`, such as `prior/` of Karlo.

  Args:
    folder: with `config.json`.
    files: its weights.

  Raises:
    OSError: a file is missing.
    ValueError: it is damaged, or is or needs what our prior is not.
  """
  advice = 'Copy or download it again.'
  config = prior_config(read_json(folder / 'config.json', ('num_layers',), advice))
  shapes = nnx.state(nnx.eval_shape(lambda: Prior(config, rngs=nnx.Rngs(0))))
  weights = take(files, sources(config), shapes)
  diffusion = DiffusionConfig(prediction='x0', num_steps=config.num_steps)
  sample = SampleConfig(steps=25, guidance=4.0, empty_caption=True)
  return Model(Config('prior', config, diffusion=diffusion, sample=sample), weights)


def prior_config(fields: Mapping[str, Any]) -> PriorConfig:
  """Our config of what a `config.json` of `PriorTransformer` describes.

  Args:
    fields: of `config.json`. What is missing has diffusers' default.

  Returns:
    The config, in bfloat16 and scanned; replace what should be otherwise.

  Raises:
    ValueError: it is of another class, or a field has a value that this prior has no
      counterpart of.
  """
  found = Fields('PriorTransformer', fields, _SIZES)
  sizes = {name: found.positive(name) for name in _SIZES}
  heads, head_width = sizes['num_attention_heads'], sizes['attention_head_dim']
  width, embed = heads * head_width, sizes['embedding_dim']
  equal = {
    'time_embed_dim': (None, width),
    'embedding_proj_dim': (None, embed),
    'clip_embed_dim': (None, embed),
  }
  for name, values in (_SUPPORTED | equal).items():
    if name in fields:
      found.expect(name, *values)
  return PriorConfig(
    width=width,
    layers=sizes['num_layers'],
    heads=heads,
    head_width=head_width,
    embed_width=embed,
    num_tokens=sizes['num_embeddings'],
    dropout=fields.get('dropout', 0.0),
  )


def sources(config: PriorConfig) -> dict[Path, Source]:
  """Where each parameter of `Prior` comes from, and its statistics, by path.

  Args:
    config: of the prior. Of scanned layers each source names the parameter of all, to
      be stacked.
  """
  found: dict[Path, Source] = {
    ('positions',): Source('positional_embedding', without_axes(1)),
    ('final_token',): Source('prd_embedding', without_axes(2)),
    ('mean',): Source('clip_mean', without_axes(1)),
    ('std',): Source('clip_std', without_axes(1)),
  }
  for ours, theirs in _MODULES.items():
    for leaf, name in _leaves(ours):
      found[ours, leaf] = _source(leaf, f'{theirs}.{name}')
  for ours, theirs in _LAYER_MODULES.items():
    for leaf, name in _leaves(ours):
      names = tuple(
        f'transformer_blocks.{i}.{theirs}.{name}' for i in range(config.layers)
      )
      if config.scan:
        found['layers', ours, leaf] = _source(leaf, names)
      else:
        for i in range(config.layers):
          found['layers', i, ours, leaf] = _source(leaf, names[i])
  return found


def _leaves(module: str) -> tuple[tuple[str, str], ...]:
  """Our name and theirs of each parameter of a module."""
  return ('scale' if 'norm' in module else 'kernel', 'weight'), ('bias', 'bias')


def _source(leaf: str, names: str | tuple[str, ...]) -> Source:
  return Source(names, transposed if leaf == 'kernel' else same)
