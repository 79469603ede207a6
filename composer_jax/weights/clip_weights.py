"""CLIP: a `CLIPModel` of transformers, such as openai/clip-vit-large-patch14-336."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import nnx

from composer_jax.config import Config
from composer_jax.files import read_json
from composer_jax.models.clip import (
  ACTIVATIONS,
  PIXEL_MEAN,
  PIXEL_STD,
  Clip,
  ClipConfig,
)
from composer_jax.models.tokenizer import Tokenizer
from composer_jax.safetensors_files import SafetensorsFiles
from composer_jax.weights.mapping import Path, Source, Transform, take, transposed
from composer_jax.weights.model_folder import Model

BUFFERS = (
  'text_model.embeddings.position_ids',
  'vision_model.embeddings.position_ids',
)
"""Numbers of the positions, which older files hold beside the weights."""

LEGACY_END = 2
"""The `eos_token_id` of older configs, which is wrong: with it transformers reads the
sentence at the highest id of a caption."""

# What transformers takes for a field that is missing.
_TEXT = {
  'hidden_size': 512,
  'intermediate_size': 2048,
  'num_hidden_layers': 12,
  'num_attention_heads': 8,
  'vocab_size': 49408,
  'max_position_embeddings': 77,
  'hidden_act': 'quick_gelu',
  'layer_norm_eps': 1e-5,
  'eos_token_id': 49407,
}
_VISION = {
  'hidden_size': 768,
  'intermediate_size': 3072,
  'num_hidden_layers': 12,
  'num_attention_heads': 12,
  'num_channels': 3,
  'image_size': 224,
  'patch_size': 32,
  'hidden_act': 'quick_gelu',
  'layer_norm_eps': 1e-5,
}
_PROJECTION = 512

_ADVICE = 'Copy or download the folder again.'


def read_clip(folder: pathlib.Path, files: SafetensorsFiles) -> Model:
  """Reads a folder of a `CLIPModel`.

  Args:
    folder: with `config.json` and a tokenizer, in `vocab.json` and `merges.txt` or in
      `tokenizer.json`. What `preprocessor_config.json` says is compared if it is there.
    files: its weights.

  Raises:
    OSError: a file is missing.
    ValueError: it is damaged, or is or needs what our CLIP is not.
  """
  fields = read_json(folder / 'config.json', ('model_type',), _ADVICE)
  _check_kind(fields)
  text, _ = _towers(fields)
  tokenizer = _read_tokenizer(folder, text['max_position_embeddings'])
  config = clip_config(fields, tokenizer)
  if (folder / 'preprocessor_config.json').is_file():
    path = folder / 'preprocessor_config.json'
    check_preprocessing(read_json(path, (), _ADVICE), config)
  shapes = nnx.state(nnx.eval_shape(lambda: Clip(config, rngs=nnx.Rngs(0))))
  weights = take(files, sources(config), shapes, buffers=BUFFERS)
  return Model(Config('dual_encoder', config), weights, tokenizer)


def _check_kind(fields: Mapping[str, Any]) -> None:
  kinds = fields.get('architectures') or ['CLIPModel']
  for name, value, expected in (
    ('model_type', fields.get('model_type'), 'clip'),
    ('architectures', kinds, ['CLIPModel']),
  ):
    if value != expected:
      raise _unsupported(name, value, repr(expected))


def _unsupported(name: str, value: Any, expected: str) -> ValueError:
  return ValueError(
    f'{name} in config.json is {value!r}; only models with {expected} can be imported.'
  )


def _towers(fields: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
  """The fields of both towers, complete.

  Configs of the first release have each tower twice; `*_config_dict` counts.
  """
  return (
    _TEXT | _tower(fields, 'text_config', _TEXT),
    _VISION | _tower(fields, 'vision_config', _VISION),
  )


def _tower(
  fields: Mapping[str, Any], name: str, defaults: Mapping[str, Any]
) -> dict[str, Any]:
  older = fields.get(f'{name}_dict')
  # There, a field that is missing has its default, whatever the other one says.
  found = fields.get(name) if older is None else {**defaults, **older}
  return {key: value for key, value in (found or {}).items() if key in defaults}


def clip_config(fields: Mapping[str, Any], tokenizer: Tokenizer) -> ClipConfig:
  """Our config of what a `config.json` of a `CLIPModel` describes.

  Args:
    fields: of `config.json`. What is missing has transformers' default.
    tokenizer: of the model.

  Returns:
    The config, in float32.

  Raises:
    ValueError: a field has a value that our CLIP has no counterpart of, or that does
      not go with the tokenizer.
  """
  text, vision = _towers(fields)
  for tower, values in (('text_config', text), ('vision_config', vision)):
    for name in ('hidden_size', 'intermediate_size'):
      if not isinstance(values[name], int) or values[name] < 1:
        raise _unsupported(f'{tower}.{name}', values[name], 'a positive integer')
    if values['hidden_act'] not in ACTIVATIONS:
      name, known = f'{tower}.hidden_act', ' or '.join(map(repr, ACTIVATIONS))
      raise _unsupported(name, values['hidden_act'], known)
    if values['layer_norm_eps'] != 1e-5:
      raise _unsupported(f'{tower}.layer_norm_eps', values['layer_norm_eps'], '1e-05')
  if vision['num_channels'] != 3:
    raise _unsupported('vision_config.num_channels', vision['num_channels'], '3')
  if text['hidden_act'] != vision['hidden_act']:
    other = f'{vision["hidden_act"]!r}, as vision_config has it,'
    raise _unsupported('text_config.hidden_act', text['hidden_act'], other)
  ratio = text['intermediate_size'] // text['hidden_size']
  for tower, values in (('text_config', text), ('vision_config', vision)):
    expected = ratio * values['hidden_size']
    if values['intermediate_size'] != expected:
      raise _unsupported(
        f'{tower}.intermediate_size',
        values['intermediate_size'],
        f'{expected}, {ratio} times hidden_size as in the other tower,',
      )
  try:
    return ClipConfig(
      image_size=vision['image_size'],
      patch_size=vision['patch_size'],
      vision_width=vision['hidden_size'],
      vision_layers=vision['num_hidden_layers'],
      vision_heads=vision['num_attention_heads'],
      text_width=text['hidden_size'],
      text_layers=text['num_hidden_layers'],
      text_heads=text['num_attention_heads'],
      vocab_size=text['vocab_size'],
      context_length=text['max_position_embeddings'],
      end_token=_end_token(text, tokenizer),
      embed_width=fields.get('projection_dim', _PROJECTION),
      mlp_ratio=ratio,
      activation=text['hidden_act'],
    )
  except ValueError as error:
    raise ValueError(f'config.json describes no CLIP of ours: {error}') from error


def _end_token(text: Mapping[str, Any], tokenizer: Tokenizer) -> int:
  """The id at which the sentence is read.

  It is the tokenizer's end token, which is checked to be what transformers reads at.
  """
  name, stated = 'text_config.eos_token_id', text['eos_token_id']
  if tokenizer.vocab_size > text['vocab_size']:
    raise ValueError(
      f'its tokenizer has {tokenizer.vocab_size} ids and text_config.vocab_size is'
      f' {text["vocab_size"]}; expected as many or more.'
    )
  read_at = tokenizer.vocab_size - 1 if stated == LEGACY_END else stated
  if read_at != tokenizer.end_token:
    raise ValueError(
      f'{name} is {stated!r}, so that the sentence is read at id {read_at!r}, and the'
      f' end token of its tokenizer is {tokenizer.end_token}; expected the same id.'
    )
  return tokenizer.end_token


def _read_tokenizer(folder: pathlib.Path, context_length: int) -> Tokenizer:
  vocab, merges = folder / 'vocab.json', folder / 'merges.txt'
  if vocab.is_file() and merges.is_file():
    return Tokenizer.from_clip(vocab, merges, context_length)
  if (folder / 'tokenizer.json').is_file():
    return Tokenizer.from_tokenizer_json(folder / 'tokenizer.json', context_length)
  raise FileNotFoundError(
    f'{folder} holds no tokenizer; expected vocab.json and merges.txt, or'
    ' tokenizer.json, as published with the model.'
  )


def check_preprocessing(fields: Mapping[str, Any], config: ClipConfig) -> None:
  """Refuses a model that wants its images prepared in another way than `normalise`.

  Args:
    fields: of `preprocessor_config.json`. What is missing is as in CLIP.
    config: of the model.

  Raises:
    ValueError: names the field.
  """
  side = config.image_size
  # Older files give a number, newer ones an object.
  sizes = (side, {'shortest_edge': side}, {'height': side, 'width': side})
  for name, allowed in (
    ('size', sizes),
    ('crop_size', sizes),
    ('resample', (3,)),  # Bicubic, as Pillow numbers it.
    ('rescale_factor', (1 / 255,)),
    *((f'do_{what}', (True,)) for what in ('resize', 'rescale', 'normalize')),
  ):
    if name in fields and fields[name] not in allowed:
      raise ValueError(
        f'{name} in preprocessor_config.json is {fields[name]!r}; only models with'
        f' {allowed[0]!r} can be imported.'
      )
  for name, ours in (('image_mean', PIXEL_MEAN), ('image_std', PIXEL_STD)):
    theirs = fields.get(name, ours)
    if not np.allclose(theirs, ours, rtol=0, atol=1e-6):
      raise ValueError(
        f'{name} in preprocessor_config.json is {theirs!r}; only models with'
        f' {list(ours)} can be imported.'
      )


def _from_patches(x: np.ndarray) -> np.ndarray:
  side = math.isqrt(len(x) // 3)
  return x.reshape(side, side, 3, -1).transpose(3, 2, 0, 1)


# (width, 3, P, P) as a kernel that reads a patch row by row: (P * P * 3, width).
_patches = Transform(
  lambda x: x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0]), _from_patches
)


_LINEAR = ('self_attn.q_proj', 'self_attn.k_proj', 'self_attn.v_proj',
           'self_attn.out_proj', 'mlp.fc1', 'mlp.fc2')  # fmt: skip
_NORMS = ('layer_norm1', 'layer_norm2')


def sources(config: ClipConfig) -> dict[Path, Source]:
  """Where each parameter of `Clip` comes from, by its path."""
  text, vision = 'text_model', 'vision_model'
  found: dict[Path, Source] = {
    ('logit_scale',): Source('logit_scale'),
    (vision, 'class_embedding'): Source(f'{vision}.embeddings.class_embedding'),
    (vision, 'patch_embedding', 'kernel'): Source(
      f'{vision}.embeddings.patch_embedding.weight', _patches
    ),
    ('visual_projection', 'kernel'): Source('visual_projection.weight', transposed),
    ('text_projection', 'kernel'): Source('text_projection.weight', transposed),
  }
  for tower, name in (
    (vision, 'position_embedding'),
    (text, 'position_embedding'),
    (text, 'token_embedding'),
  ):
    found[tower, name, 'embedding'] = Source(f'{tower}.embeddings.{name}.weight')
  norms: tuple[tuple[Path, str], ...] = (
    ((vision, 'pre_layernorm'), f'{vision}.pre_layrnorm'),  # So it is spelt.
    ((vision, 'post_layernorm'), f'{vision}.post_layernorm'),
    ((text, 'final_layer_norm'), f'{text}.final_layer_norm'),
  )
  for path, module in norms:
    found |= _norm(path, module)
  for tower, depth in ((vision, config.vision_layers), (text, config.text_layers)):
    for i in range(depth):
      layer = f'{tower}.encoder.layers.{i}'
      for name in _NORMS:
        found |= _norm((tower, 'layers', i, name), f'{layer}.{name}')
      for name in _LINEAR:
        ours: Path = (tower, 'layers', i, *name.split('.'))
        found[*ours, 'kernel'] = Source(f'{layer}.{name}.weight', transposed)
        found[*ours, 'bias'] = Source(f'{layer}.{name}.bias')
  return found


def _norm(path: Path, module: str) -> dict[Path, Source]:
  return {
    (*path, 'scale'): Source(f'{module}.weight'),
    (*path, 'bias'): Source(f'{module}.bias'),
  }
