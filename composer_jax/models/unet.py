"""The Composer U-Net: GLIDE's, with conditions coming in three ways."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from composer_jax.models.condition_encoder import ConditionEncoder
from composer_jax.models.layers import (
  AttentionBlock,
  Conv3x3,
  Dense,
  GroupNorm,
  ResBlock,
  fold,
  timestep_embedding,
  unfold,
)


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
    context_width: channels of a context token.
    local_hidden: channels inside the stacks of the local conditions.
    local_width: channels of the common embedding of the local conditions.
    learned_variance: also predict the variance (doubles the output channels).
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
  context_width: int = 2048
  local_hidden: int = 32
  local_width: int = 8
  learned_variance: bool = False
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

  @property
  def smallest(self) -> int:
    """Side of the smallest image it takes; all others are multiples of it."""
    return self.fold * 2 ** (len(self.multipliers) - 1)

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
    dropout_key: jax.Array | None,
  ) -> jax.Array:
    x = self.block(x, embedding, dropout_key)
    return x if self.attention is None else self.attention(x, context)


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

    def stage(
      inputs: int,
      outputs: int,
      attend: bool,
      resample: Literal['up', 'down'] | None = None,
    ) -> Block:
      block = ResBlock(
        inputs,
        outputs,
        embedding,
        rngs=rngs,
        resample=resample,
        dropout=config.dropout,
        groups=config.groups,
      )
      attention = (
        AttentionBlock(
          outputs, config.head_width, context, rngs=rngs, groups=config.groups
        )
        if attend
        else None
      )
      return Block(block, attention)

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
      rngs=rngs,
    )
    self.has_maps = any(len(condition_shapes[name]) == 3 for name in config.conditions)
    pixels = 3 * config.fold**2
    inputs = pixels * (2 if config.low_res_size else 1)
    inputs += config.local_width if self.has_maps else 0
    width = config.channels * config.multipliers[0]
    self.conv_in = Conv3x3(inputs, width, rngs=rngs)
    # Noise augmentation level of the low-resolution image (Ho et al. 2022).
    self.level_in = (
      Dense(config.channels, embedding, rngs=rngs) if config.low_res_size else None
    )

    down, skips = [], [width]
    last = len(config.multipliers) - 1
    for level, multiplier in enumerate(config.multipliers):
      outputs = config.channels * multiplier
      for _ in range(config.blocks):
        down.append(stage(width, outputs, config.attention[level]))
        width = outputs
        skips.append(width)
      if level != last:
        down.append(stage(width, width, False, 'down'))
        skips.append(width)
    self.down = nnx.List(down)

    self.middle = nnx.List(
      [
        stage(width, width, config.attention[last]),
        stage(width, width, False),
      ]
    )

    up = []
    for level, multiplier in reversed(list(enumerate(config.multipliers))):
      outputs = config.channels * multiplier
      for _ in range(config.blocks + 1):
        up.append(stage(width + skips.pop(), outputs, config.attention[level]))
        width = outputs
      if level:
        up.append(stage(width, width, False, 'up'))
    self.up = nnx.List(up)

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
    if self.level_in is not None:
      if low_res is None or level is None:
        raise ValueError('An upsampler needs low_res and level.')
      x = jnp.concatenate([x, fold(low_res, config.fold)], axis=-1)
      embedding = embedding + self.level_in(timestep_embedding(level, config.channels))
    if self.has_maps:
      empty = jnp.zeros((*x.shape[:3], config.local_width), x.dtype)
      local = empty if encoded.feature_map is None else encoded.feature_map
      x = jnp.concatenate([x, local], axis=-1)

    x, embedding = x.astype(dtype), embedding.astype(dtype)
    context = None
    if self.conditions.num_tokens:
      # A condition that is not there counts as dropped: its tokens are zero, and their
      # order does not matter.
      empty = jnp.zeros((x.shape[0], 0, config.context_width), dtype)
      context = empty if encoded.context is None else encoded.context.astype(dtype)
      missing = self.conditions.num_tokens - context.shape[1]
      context = jnp.pad(context, ((0, 0), (0, missing), (0, 0)))
    count = iter(range(len(self.down) + len(self.middle) + len(self.up)))

    def run(stage: Block, x: jax.Array) -> jax.Array:
      index = next(count)
      key = None if dropout_key is None else jax.random.fold_in(dropout_key, index)
      return stage(x, embedding, context, key)

    x = self.conv_in(x)
    skips = [x]
    for stage in self.down:
      x = run(stage, x)
      skips.append(x)
    for stage in self.middle:
      x = run(stage, x)
    for stage in self.up:
      if stage.block.resample is None:
        x = jnp.concatenate([x, skips.pop()], axis=-1)
      x = run(stage, x)
    x = self.conv_out(nnx.silu(self.norm_out(x)))
    return self._pixels(x.astype(jnp.float32))

  def _pixels(self, x: jax.Array) -> jax.Array:
    if not self.config.learned_variance:
      return unfold(x, self.config.fold)
    halves = [unfold(half, self.config.fold) for half in jnp.split(x, 2, axis=-1)]
    return jnp.concatenate(halves, axis=-1)
