"""What the U-Nets of diffusers and ours have in common: names, layout, sizes.

`UNet2DConditionModel` and `UNet2DModel` are GLIDE's U-Net, which is ours, where their
blocks resample in residual blocks and attend to context and image by one softmax.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from composer_jax.models.unet import Shape, UNetConfig, block_shapes
from composer_jax.weights.fields import Fields
from composer_jax.weights.mapping import (
  Path,
  Source,
  convolution,
  pointwise,
  same,
  transposed,
)

_OUTER = {
  'time_in': 'time_embedding.linear_1',
  'time_out': 'time_embedding.linear_2',
  'conv_in': 'conv_in',
  'norm_out': 'conv_norm_out',
  'conv_out': 'conv_out',
}
_RESIDUAL = {
  'norm_in': 'norm1',
  'conv_in': 'conv1',
  'modulation': 'time_emb_proj',
  'norm_out': 'norm2',
  'conv_out': 'conv2',
}
_ATTENTION = {
  'norm': ('group_norm',),
  'qkv': ('to_q', 'to_k', 'to_v'),
  'context_kv': ('add_k_proj', 'add_v_proj'),
  'out': ('to_out.0',),
}


def unet_sources(config: UNetConfig) -> dict[Path, Source]:
  """Where each parameter of a U-Net comes from, but for its conditions'.

  Args:
    config: of the U-Net, whose blocks are not scanned.
  """
  found = _module((), _OUTER)
  for part, index, shape, residual, attention in named_blocks(config):
    path: Path = (part, index, 'block')
    found |= _module(path, _RESIDUAL, f'{residual}.')
    if shape.inputs + shape.skip != shape.outputs:
      shortcut = f'{residual}.conv_shortcut'
      found[*path, 'skip', 'kernel'] = Source(f'{shortcut}.weight', pointwise)
      found[*path, 'skip', 'bias'] = Source(f'{shortcut}.bias')
    if not shape.attend:
      continue
    for ours, theirs in _ATTENTION.items():
      if ours == 'context_kv' and not config.conditions:
        continue
      leaf = 'scale' if ours == 'norm' else 'kernel'
      transform = same if ours == 'norm' else transposed
      for own, end, change in ((leaf, 'weight', transform), ('bias', 'bias', same)):
        names = tuple(f'{attention}.{name}.{end}' for name in theirs)
        source = Source(names[0], change)
        if len(names) > 1:
          source = Source(names, change, axis=-1)
        found[part, index, 'attention', ours, own] = source
  return found


def named_blocks(
  config: UNetConfig,
) -> list[tuple[str, int, Shape, str, str]]:
  """Our blocks in order, and what diffusers calls each.

  Returns:
    For each: part of the U-Net, index in it, shape, name of its residual block, and
    name of its attention if it has one.
  """
  down, middle, up = block_shapes(config)
  each = config.blocks
  found = []
  for part, shapes, count in (('down', down, each), ('up', up, each + 1)):
    level = own = 0
    for index, shape in enumerate(shapes):
      home = f'{part}_blocks.{level}'
      names = f'{home}.resnets.{own}', f'{home}.attentions.{own}'
      if shape.resample:
        names = f'{home}.{part}samplers.0', ''
      found.append((part, index, shape, *names))
      own += 1
      # The last level on either way does not resample.
      last = level == len(config.multipliers) - 1
      if shape.resample or (own == count and last):
        level, own = level + 1, 0
  for index, shape in enumerate(middle):
    names = f'mid_block.resnets.{index}', f'mid_block.attentions.{index}'
    found.append(('middle', index, shape, *names))
  return found


def _module(
  path: Path, modules: Mapping[str, str], prefix: str = ''
) -> dict[Path, Source]:
  """Sources of linear maps, convolutions and norms, as their names say."""
  found: dict[Path, Source] = {}
  for ours, theirs in modules.items():
    norm = ours.startswith('norm')
    change = convolution if ours.startswith('conv') else transposed
    leaf = 'scale' if norm else 'kernel'
    found[*path, ours, leaf] = Source(
      f'{prefix}{theirs}.weight', same if norm else change
    )
    found[*path, ours, 'bias'] = Source(f'{prefix}{theirs}.bias')
  return found


def unet_shape(fields: Fields, attending: str | None = None) -> dict[str, Any]:
  """The fields of our config that follow from those of either U-Net.

  Args:
    fields: of its `config.json`.
    attending: start of the name of block types with attention; None if there are none.

  Returns:
    Fields of `UNetConfig` by name.

  Raises:
    ValueError: a field has a value that our U-Net has no counterpart of.
  """
  for name, values in (
    ('resnet_time_scale_shift', ('scale_shift',)),
    ('act_fn', ('silu', 'swish')),
    ('flip_sin_to_cos', (True,)),
    ('freq_shift', (0,)),
    ('center_input_sample', (False,)),
    ('mid_block_scale_factor', (1,)),
    ('norm_eps', (1e-5,)),
  ):
    fields.expect(name, *values)
  widths = _sizes(fields, 'block_out_channels')
  if any(width % widths[0] for width in widths):
    raise fields.unsupported('block_out_channels', 'multiples of the first')
  ways = {'ResnetDownsampleBlock2D': ('ResnetUpsampleBlock2D', False)}
  if attending is not None:
    ways[f'{attending}DownBlock2D'] = (f'{attending}UpBlock2D', True)
  attention: list[bool] = []
  ups: list[str] = []
  for kind in fields['down_block_types'] or ():
    if kind not in ways:
      raise fields.unsupported('down_block_types', f'types among {", ".join(ways)}')
    up, attend = ways[kind]
    attention.append(attend)
    ups.insert(0, up)
  if list(fields['up_block_types'] or ()) != ups:
    raise fields.unsupported('up_block_types', f'{ups}, as on the way down,')
  if len(attention) != len(widths):
    raise fields.unsupported('block_out_channels', 'one entry for each block type')
  return {
    'channels': widths[0],
    'multipliers': tuple(width // widths[0] for width in widths),
    'blocks': fields.positive('layers_per_block'),
    'attention': tuple(attention),
    'groups': fields.positive('norm_num_groups'),
    'dropout': float(fields['dropout'] or 0.0),
  }


def _sizes(fields: Fields, name: str) -> Sequence[int]:
  values = fields[name]
  whole = isinstance(values, list | tuple) and all(isinstance(v, int) for v in values)
  if not whole or not values or min(values) < 1:
    raise fields.unsupported(name, 'positive integers')
  return values
