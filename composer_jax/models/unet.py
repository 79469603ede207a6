"""The Composer U-Net: GLIDE's, with conditions coming in three ways."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from composer_jax.conditions.palette import expected_colours
from composer_jax.diffusion.process import Coefficients
from composer_jax.models.condition_encoder import ConditionEncoder, Encoded
from composer_jax.models.layers import (
  IMAGE,
  AttentionBlock,
  Conv3x3,
  Dense,
  GroupNorm,
  ResBlock,
  fold,
  timestep_embedding,
  unfold,
)
from composer_jax.sharding.rules import constrain


@dataclasses.dataclass(frozen=True)
class UNetConfig:
  """The shape of a U-Net.

  Attributes:
    image_size: side of the images it denoises, in pixels.
    low_res_size: side of the low-resolution image that an upsampler starts from;
      0 for a base model.
    fold: pixels folded into channels at the input, per side (space to depth); 1
      leaves the image as it is.
    channels: channels of the first level.
    multipliers: channels of each level, as multiples of `channels`.
    blocks: residual blocks a level.
    attention: for each level, whether it has attention.
    head_width: channels of an attention head.
    groups: groups of each normalisation, at most; narrow models need fewer, or a
      group is a single channel.
    dropout: rate inside residual blocks, in training.
    conditions: names of the conditions it knows.
    conditioning: how global conditions come in: as in `composer`, or as in `unclip`,
      which is what published decoders have; see `models.condition_encoder`.
    context_width: channels of a context token.
    context_tokens: the context is filled up with zeros to at least so many tokens. For
      a first stage that knows fewer conditions than the next: there new tokens then
      only take the place of zeros.
    local_hidden: channels inside the stacks of the local conditions.
    local_width: channels of the common embedding of the local conditions.
    palette_map: whether a base model that knows the palette also sees which colour it
      makes expect at each pixel; see `conditions.palette.expected_colours`. The
      paper's has no such input.
    level_embedding: whether an upsampler is told how far its input was degraded.
    learned_variance: also predict the variance (doubles the output channels).
    scan: whether blocks of equal shape that follow each other are stacked and scanned.
      Same numbers, other parameter tree: `roll` and `unroll` convert. Compilers that
      compile equal operations once gain little, and a loop keeps more.
    remat: what the backward pass computes again instead of keeping it: `none`;
      `attention`, its weights; `cheap`, these and all but convolutions and matrix
      products; or `blocks`, all but what enters each block.
    dtype: what it computes in; parameters are float32.
  """

  image_size: int = 64
  low_res_size: int = 0
  fold: int = 1
  channels: int = 512
  multipliers: tuple[int, ...] = (1, 2, 3, 4)
  blocks: int = 3
  attention: tuple[bool, ...] = (False, True, True, True)
  head_width: int = 64
  groups: int = 32
  dropout: float = 0.1
  conditions: tuple[str, ...] = ()
  conditioning: Literal['composer', 'unclip'] = 'composer'
  context_width: int = 2048
  context_tokens: int = 0
  local_hidden: int = 32
  local_width: int = 8
  palette_map: bool = False
  level_embedding: bool = True
  learned_variance: bool = False
  scan: bool = False
  remat: Literal['none', 'attention', 'cheap', 'blocks'] = 'none'
  dtype: Literal['float32', 'bfloat16'] = 'bfloat16'

  def __post_init__(self):
    for name in ('image_size', 'fold', 'channels', 'blocks', 'head_width', 'groups'):
      if getattr(self, name) < 1:
        raise ValueError(f'model.{name} is {getattr(self, name)}; expected at least 1.')
    if self.channels % 2 or not 0 <= self.dropout < 1:
      raise ValueError(
        f'model.channels is {self.channels} and model.dropout {self.dropout};'
        ' expected an even number, and a rate from 0 to under 1.'
      )
    if len(self.attention) != len(self.multipliers):
      raise ValueError(
        f'model.attention has {len(self.attention)} entries and'
        f' model.multipliers {len(self.multipliers)}; expected one for each level.'
      )
    if self.image_size % self.smallest:
      raise ValueError(
        f'model.image_size is {self.image_size}; expected a multiple of {self.smallest}'
        ' (model.fold times 2 for each level after the first).'
      )
    if self.palette_map and self.low_res_size:
      raise ValueError(
        f'model.palette_map is True and model.low_res_size {self.low_res_size};'
        ' expected False for an upsampler, which gets its colours from its input.'
      )

  @property
  def smallest(self) -> int:
    """Side of the smallest image it takes; all others are multiples of it."""
    return self.fold * 2 ** (len(self.multipliers) - 1)

  @property
  def enlargement(self) -> int:
    """How many times an upsampler makes an image larger; 0 for a base model."""
    return self.image_size // self.low_res_size if self.low_res_size else 0

  @property
  def grid(self) -> int:
    """Side of the first level."""
    return self.image_size // self.fold


class Block(nnx.Module):
  """A residual block and, where the level has it, attention."""

  def __init__(self, block: ResBlock, attention: AttentionBlock | None):
    self.block, self.attention = block, attention

  def __call__(
    self,
    x: jax.Array,
    embedding: jax.Array,
    context: jax.Array | None,
    context_mask: jax.Array | None,
    dropout_key: jax.Array | None,
  ) -> jax.Array:
    x = self.block(x, embedding, dropout_key)
    return x if self.attention is None else self.attention(x, context, context_mask)


class Shape(NamedTuple):
  """What tells one block of a U-Net from another; widths are channels.

  Equal ones that follow each other have equal inputs and outputs.
  """

  inputs: int
  outputs: int
  attend: bool
  resample: Literal['up', 'down'] | None = None
  skip: int = 0


def block_shapes(config: UNetConfig) -> tuple[list[Shape], list[Shape], list[Shape]]:
  """The blocks on the way down, in the middle, and on the way up, in order."""
  width = config.channels * config.multipliers[0]
  down, skips = [], [width]
  last = len(config.multipliers) - 1
  for level, multiplier in enumerate(config.multipliers):
    outputs = config.channels * multiplier
    for _ in range(config.blocks):
      down.append(Shape(width, outputs, config.attention[level]))
      width = outputs
      skips.append(width)
    if level != last:
      down.append(Shape(width, width, False, 'down'))
      skips.append(width)
  middle = [Shape(width, width, config.attention[last]), Shape(width, width, False)]
  up = []
  for level, multiplier in reversed(list(enumerate(config.multipliers))):
    outputs = config.channels * multiplier
    for _ in range(config.blocks + 1):
      up.append(Shape(width, outputs, config.attention[level], None, skips.pop()))
      width = outputs
    if level:
      up.append(Shape(width, width, False, 'up'))
  return down, middle, up


def _costly(primitive: Any, *_: Any, **__: Any) -> bool:
  """Whether the backward pass keeps what a primitive gives."""
  return primitive.name in ('conv_general_dilated', 'dot_general')


def runs(shapes: Sequence[Shape], scan: bool) -> list[int]:
  """How many equal blocks follow each other, or ones where nothing is scanned."""
  lengths = [len(list(equal)) for _, equal in itertools.groupby(shapes)]
  return lengths if scan else [1] * len(shapes)


class UNet(nnx.Module):
  """Denoises images under any subset of its conditions.

  Args:
    config: its shape.
    condition_shapes: stored shape of each condition, without the batch axis.
    rngs: for the initial weights.
  """

  def __init__(
    self,
    config: UNetConfig,
    condition_shapes: Mapping[str, tuple[int, ...]],
    *,
    rngs: nnx.Rngs,
  ):
    self.config = config
    embedding = 4 * config.channels
    context = config.context_width if config.conditions else None

    def block(shape: Shape, key: jax.Array) -> Block:
      rngs = nnx.Rngs(key)
      residual = ResBlock(
        shape.inputs + shape.skip,
        shape.outputs,
        embedding,
        rngs=rngs,
        resample=shape.resample,
        dropout=config.dropout,
        groups=config.groups,
      )
      if not shape.attend:
        return Block(residual, None)
      attention = AttentionBlock(
        shape.outputs,
        config.head_width,
        context,
        rngs=rngs,
        groups=config.groups,
        recompute=config.remat in ('attention', 'cheap'),
      )
      return Block(residual, attention)

    def blocks(shapes: list[Shape]) -> nnx.List[Block]:
      """A block each, or a stack where several equal ones are scanned."""
      made, rest = [], iter(shapes)
      for count in runs(shapes, config.scan):
        shape, *_ = itertools.islice(rest, count)
        keys = jnp.stack([rngs.params() for _ in range(count)])
        make = functools.partial(block, shape)
        made.append(make(keys[0]) if count == 1 else nnx.vmap(make)(keys))
      return nnx.List(made)

    self.time_in = Dense(config.channels, embedding, rngs=rngs)
    self.time_out = Dense(embedding, embedding, rngs=rngs)
    self.conditions = ConditionEncoder(
      config.conditions,
      condition_shapes,
      grid=config.grid,
      embedding=embedding,
      context=config.context_width,
      local_hidden=config.local_hidden,
      local_width=config.local_width,
      unclip=config.conditioning == 'unclip',
      rngs=rngs,
    )
    has_maps = any(len(condition_shapes[name]) == 3 for name in config.conditions)
    pixels = 3 * config.fold**2
    inputs = pixels * (2 if config.low_res_size else 1)
    width = config.channels * config.multipliers[0]
    self.conv_in = Conv3x3(inputs, width, rngs=rngs)
    # The map is concatenated to x_t along channels: the convolution of both is the sum
    # of one of each, and a model without maps has the first alone.
    self.maps_in = Conv3x3(config.local_width, width, rngs=rngs) if has_maps else None
    shown = config.palette_map and 'palette' in config.conditions
    self.colours_in = Conv3x3(pixels, width, rngs=rngs) if shown else None
    # Noise augmentation level of the low-resolution image (Ho et al. 2022).
    told = config.low_res_size and config.level_embedding
    self.level_in = Dense(config.channels, embedding, rngs=rngs) if told else None

    down, middle, up = block_shapes(config)
    self.down, self.middle, self.up = blocks(down), blocks(middle), blocks(up)
    width = up[-1].outputs
    self.norm_out = GroupNorm(width, groups=config.groups)
    outputs = pixels * (2 if config.learned_variance else 1)
    self.conv_out = Conv3x3(width, outputs, rngs=rngs, zero=True)

  def __call__(
    self,
    x_t: jax.Array,
    t: jax.Array,
    stored: Mapping[str, jax.Array],
    kept: Mapping[str, jax.Array],
    *,
    c: Coefficients | None = None,
    low_res: jax.Array | None = None,
    level: jax.Array | None = None,
    dropout_key: jax.Array | None = None,
  ) -> jax.Array:
    """Predicts eps, v or x0, as it was trained to.

    Args:
      x_t: noisy images (B, S, S, 3), float.
      t: diffusion steps (B,), int.
      stored: conditions by name, as stored in records, (B, *shape).
      kept: by name, (B,): False or 0 drops the condition for that sample, other
        numbers are its strength.
      c: signal and noise of the steps, for a model with a palette map.
      low_res: for an upsampler, the low-resolution images in [-1, 1], already
        resized to (B, S, S, 3).
      level: for an upsampler, noise augmentation level (B,) in [0, 1000).
      dropout_key: random key in training; None switches dropout off.

    Returns:
      float32 (B, S, S, 3), or (B, S, S, 6) with a learned variance.
    """
    config = self.config
    dtype = jnp.dtype(config.dtype)
    embedding = timestep_embedding(t, config.channels)
    embedding = self.time_out(nnx.silu(self.time_in(embedding)))
    encoded = self.conditions(stored, kept)
    if encoded.embedding is not None:
      embedding = embedding + encoded.embedding
    x = fold(x_t, config.fold)
    if config.low_res_size:
      if low_res is None:
        raise ValueError('An upsampler needs low_res.')
      x = jnp.concatenate([x, fold(low_res, config.fold)], axis=-1)
    if self.level_in is not None:
      if level is None:
        raise ValueError('An upsampler that is told the level needs it.')
      embedding = embedding + self.level_in(timestep_embedding(level, config.channels))
    x, embedding = x.astype(dtype), embedding.astype(dtype)
    context, mask = self._context(encoded, len(x), dtype)
    index = itertools.count()

    def run(
      stage: Block, count: int, x: jax.Array, skips: Sequence[jax.Array] = ()
    ) -> tuple[jax.Array, list[jax.Array]]:
      """Passes x through a block or a stack of `count`; also what each block gives."""
      keys = None
      if dropout_key is not None:
        numbers = jnp.array([next(index) for _ in range(count)])
        keys = jax.vmap(jax.random.fold_in, (None, 0))(dropout_key, numbers)

      def apply(
        block: Block, x: jax.Array, skip: jax.Array | None, key: jax.Array | None
      ) -> jax.Array:
        x = x if skip is None else jnp.concatenate([x, skip], axis=-1)
        return block(x, embedding, context, mask, key)

      if config.remat in ('cheap', 'blocks'):
        kept = _costly if config.remat == 'cheap' else None
        apply = jax.checkpoint(apply, policy=kept, prevent_cse=count == 1)
      if count == 1:
        skip = skips[0] if skips else None
        x = apply(stage, x, skip, None if keys is None else keys[0])
        return x, [x]
      graph, weights = nnx.split(stage)

      def step(x: jax.Array, own: Any) -> tuple[jax.Array, jax.Array]:
        weights, skip, key = own
        x = apply(nnx.merge(graph, weights), x, skip, key)
        return x, x

      stacked = jnp.stack(skips) if skips else None
      x, each = jax.lax.scan(step, x, (weights, stacked, keys))
      return x, list(each)

    down, middle, up = block_shapes(config)
    x = constrain(self.conv_in(x), *IMAGE)
    if self.maps_in is not None:
      empty = jnp.zeros((*x.shape[:3], config.local_width))
      local = empty if encoded.feature_map is None else encoded.feature_map
      x = x + self.maps_in(local.astype(dtype))
    if self.colours_in is not None:
      x = x + self.colours_in(self._colours(x_t, stored, kept, c).astype(dtype))
    skips = [x]
    for stage, count in zip(self.down, runs(down, config.scan), strict=True):
      x, each = run(stage, count, x)
      skips += each
    for stage, count in zip(self.middle, runs(middle, config.scan), strict=True):
      x, _ = run(stage, count, x)
    shapes = iter(up)
    for stage, count in zip(self.up, runs(up, config.scan), strict=True):
      shape, *_ = itertools.islice(shapes, count)
      taken = [skips.pop() for _ in range(count)] if shape.skip else []
      x, _ = run(stage, count, x, taken)
    x = self.conv_out(nnx.silu(self.norm_out(x)))
    return self._pixels(x.astype(jnp.float32))

  def _context(
    self, encoded: Encoded, batch: int, dtype: jnp.dtype
  ) -> tuple[jax.Array | None, jax.Array | None]:
    """Context and its mask, filled up to the tokens that all conditions have.

    A condition that is not there counts as dropped: its tokens are zero, and their
    order does not matter.
    """
    count = max(self.conditions.num_tokens, self.config.context_tokens)
    if not self.config.conditions or not count:
      return None, None
    width = self.config.context_width
    context, mask = encoded.context, encoded.context_mask
    if context is None:
      context = jnp.zeros((batch, 0, width))
    missing = ((0, 0), (0, count - context.shape[1]))
    if mask is not None:
      mask = jnp.pad(mask, missing)
    return jnp.pad(context.astype(dtype), (*missing, (0, 0))), mask

  def _colours(
    self,
    x_t: jax.Array,
    stored: Mapping[str, jax.Array],
    kept: Mapping[str, jax.Array],
    c: Coefficients | None,
  ) -> jax.Array:
    """What the palette makes expect, folded; 0 where it is dropped."""
    if c is None:
      raise ValueError('A model with a palette map needs c.')
    if 'palette' not in stored or 'palette' not in kept:
      return jnp.zeros_like(fold(x_t, self.config.fold))
    strength = kept['palette'].astype(jnp.float32)
    colours = expected_colours(x_t, c, stored['palette'], strength)
    colours = jnp.where(strength.reshape(-1, 1, 1, 1) != 0, colours, 0)
    return fold(colours, self.config.fold)

  def _pixels(self, x: jax.Array) -> jax.Array:
    if not self.config.learned_variance:
      return unfold(x, self.config.fold)
    halves = [unfold(half, self.config.fold) for half in jnp.split(x, 2, axis=-1)]
    return jnp.concatenate(halves, axis=-1)


def roll(weights: Mapping[str, Any], config: UNetConfig) -> dict[str, Any]:
  """Weights of an unrolled model to those of a scanned one.

  Args:
    weights: nested dict of arrays, as `nnx.to_pure_dict` gives.
    config: of either.
  """
  rolled = dict(weights)
  for part, shapes in zip(('down', 'middle', 'up'), block_shapes(config), strict=True):
    blocks = iter([weights[part][i] for i in range(len(shapes))])
    stages = [
      list(itertools.islice(blocks, count)) for count in runs(shapes, scan=True)
    ]
    rolled[part] = {
      i: jax.tree.map(lambda *x: jnp.stack(x), *stage) if len(stage) > 1 else stage[0]
      for i, stage in enumerate(stages)
    }
  return rolled


def unroll(weights: Mapping[str, Any], config: UNetConfig) -> dict[str, Any]:
  """The inverse of `roll`."""
  unrolled = dict(weights)
  for part, shapes in zip(('down', 'middle', 'up'), block_shapes(config), strict=True):
    blocks: list[Any] = []
    for i, count in enumerate(runs(shapes, scan=True)):
      stage = weights[part][i]
      if count == 1:
        blocks.append(stage)
      else:
        blocks += [jax.tree.map(lambda x, k=k: x[k], stage) for k in range(count)]
    unrolled[part] = dict(enumerate(blocks))
  return unrolled
