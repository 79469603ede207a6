"""Building blocks of the GLIDE U-Net (Nichol et al. 2021; Dhariwal and Nichol 2021).

Parameters are float32; each block computes in the dtype of its input.
"""

from __future__ import annotations

import math
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from composer_jax.sharding.rules import Axes, constrain

# Logical axes of kernels: inputs, outputs.
OUTER: Axes = ('features', 'features')
INWARD: Axes = ('features', 'hidden')
OUTWARD: Axes = ('hidden', 'features')

IMAGE: Axes = ('batch', 'rows', None, None)
INSIDE: Axes = ('batch', 'rows', None, 'hidden')
"""Logical axes of images between blocks, and inside one."""


def timestep_embedding(t: jax.Array, width: int) -> jax.Array:
  """Sinusoidal features of steps t (B,): float32 (B, width), cosines first."""
  half = width // 2
  frequencies = jnp.exp(-math.log(10_000) * jnp.arange(half) / half)
  angles = t.astype(jnp.float32)[:, None] * frequencies
  return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def fold(x: jax.Array, factor: int) -> jax.Array:
  """Space to depth: (B, H, W, C) to (B, H/f, W/f, f f C)."""
  b, h, w, c = x.shape
  x = x.reshape(b, h // factor, factor, w // factor, factor, c)
  return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h // factor, w // factor, -1)


def unfold(x: jax.Array, factor: int) -> jax.Array:
  """Depth to space, the inverse of `fold`."""
  b, h, w, c = x.shape
  x = x.reshape(b, h, w, factor, factor, c // factor**2)
  return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h * factor, w * factor, -1)


def upsample(x: jax.Array) -> jax.Array:
  """Doubles the side by repeating pixels."""
  return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


def downsample(x: jax.Array) -> jax.Array:
  """Halves the side by averaging 2 x 2 pixels."""
  b, h, w, c = x.shape
  return x.reshape(b, h // 2, 2, w // 2, 2, c).mean(axis=(2, 4))


def _kernel(
  shape: tuple[int, ...], rngs: nnx.Rngs, zero: bool, axes: Axes
) -> nnx.Param[jax.Array]:
  """A kernel whose last axes are inputs and outputs, drawn or zero."""
  init = nnx.initializers.zeros if zero else nnx.initializers.lecun_normal()
  return nnx.Param(init(rngs.params(), shape, jnp.float32), axes=axes)


class Dense(nnx.Module):
  """A linear map of the last axis, computed in the dtype of its input."""

  def __init__(
    self,
    inputs: int,
    outputs: int,
    *,
    rngs: nnx.Rngs,
    zero: bool = False,
    axes: Axes = OUTER,
  ):
    self.kernel = _kernel((inputs, outputs), rngs, zero, axes)
    self.bias = nnx.Param(jnp.zeros(outputs))

  def __call__(self, x: jax.Array) -> jax.Array:
    return x @ self.kernel[...].astype(x.dtype) + self.bias[...].astype(x.dtype)


class Conv3x3(nnx.Module):
  """A 3 x 3 convolution with zero padding."""

  def __init__(
    self,
    inputs: int,
    outputs: int,
    *,
    rngs: nnx.Rngs,
    zero: bool = False,
    axes: Axes = OUTER,
  ):
    self.kernel = _kernel((3, 3, inputs, outputs), rngs, zero, axes)
    self.bias = nnx.Param(jnp.zeros(outputs))

  def __call__(self, x: jax.Array) -> jax.Array:
    kernel, bias = self.kernel[...], self.bias[...].astype(x.dtype)
    y = lax.conv_general_dilated(
      x,
      kernel.astype(x.dtype),
      window_strides=(1, 1),
      padding='SAME',
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )
    return y + bias


class GroupNorm(nnx.Module):
  """Group normalisation with an optional adaptive scale and shift.

  The statistics are two sums a channel, folded with all scales into one multiply and
  one add a pixel: several times faster on CPUs than normalising first. A group of a
  single channel would lose that channel's mean, and with it colour and brightness.
  """

  def __init__(self, channels: int, *, groups: int = 32, eps: float = 1e-5):
    # Narrow levels have fewer channels than 32 groups would need.
    self.groups = math.gcd(groups, channels)
    self.eps = eps
    self.scale = nnx.Param(jnp.ones(channels))
    self.bias = nnx.Param(jnp.zeros(channels))

  def __call__(
    self,
    x: jax.Array,
    scale: jax.Array | None = None,
    shift: jax.Array | None = None,
  ) -> jax.Array:
    """Normalises x (B, ..., C), then applies (1 + scale) and shift, both (B, C)."""
    b, c = x.shape[0], x.shape[-1]
    pixels = x.reshape(b, -1, c).astype(jnp.float32)
    sums = jnp.stack([pixels.mean(1), (pixels**2).mean(1)])
    mean, square = sums.reshape(2, b, self.groups, -1).mean(-1)
    inverse = lax.rsqrt(jnp.maximum(square - mean**2, 0) + self.eps)
    per_group = c // self.groups
    factor = jnp.repeat(inverse, per_group, axis=1) * self.scale[...]
    offset = self.bias[...] - jnp.repeat(mean, per_group, axis=1) * factor
    if scale is not None and shift is not None:
      gain = 1 + scale.astype(jnp.float32)
      factor, offset = factor * gain, offset * gain + shift.astype(jnp.float32)
    y = pixels * factor[:, None] + offset[:, None]
    return y.reshape(x.shape).astype(x.dtype)


def dropped(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
  """Dropout: zeroes a share of x and scales the rest; without a key, x itself."""
  if not rate or key is None:
    return x
  keep = jax.random.bernoulli(key, 1 - rate, x.shape)
  # Drawn within the convolutions that use it, it would take TPUs longer to compile than
  # they do; and so would a mask of booleans.
  keep = lax.optimization_barrier(keep.astype(x.dtype))
  return x * keep / (1 - rate)


class ResBlock(nnx.Module):
  """Residual block with scale-shift norm and optional resampling inside.

  Dhariwal and Nichol 2021, section 3 ("adaptive group normalization", "BigGAN up
  and downsampling").
  """

  def __init__(
    self,
    inputs: int,
    outputs: int,
    embedding: int,
    *,
    rngs: nnx.Rngs,
    resample: Literal['up', 'down'] | None = None,
    dropout: float = 0.0,
    groups: int = 32,
  ):
    self.norm_in = GroupNorm(inputs, groups=groups)
    self.conv_in = Conv3x3(inputs, outputs, rngs=rngs, axes=INWARD)
    self.modulation = Dense(embedding, 2 * outputs, rngs=rngs, axes=INWARD)
    self.norm_out = GroupNorm(outputs, groups=groups)
    self.conv_out = Conv3x3(outputs, outputs, rngs=rngs, zero=True, axes=OUTWARD)
    self.skip = Dense(inputs, outputs, rngs=rngs) if inputs != outputs else None
    self.resample = resample
    self.dropout = dropout

  def __call__(
    self, x: jax.Array, embedding: jax.Array, dropout_key: jax.Array | None = None
  ) -> jax.Array:
    """Maps x (B, H, W, C) and an embedding (B, E); no key means no dropout."""
    h = nnx.silu(self.norm_in(x))
    if self.resample == 'up':
      h, x = upsample(h), upsample(x)
    elif self.resample == 'down':
      h, x = downsample(h), downsample(x)
    h = constrain(self.conv_in(h), *INSIDE)
    scale, shift = jnp.split(self.modulation(nnx.silu(embedding)), 2, axis=-1)
    h = nnx.silu(self.norm_out(h, scale, shift))
    h = dropped(h, self.dropout, dropout_key)
    h = self.conv_out(h)
    return constrain(h + (x if self.skip is None else self.skip(x)), *IMAGE)


class AttentionBlock(nnx.Module):
  """Self-attention whose one softmax also runs over the context (GLIDE, 2.3).

  Keys and values projected from the context are concatenated to the image's own. With
  `recompute` the backward pass computes the weights again, a number for each head and
  each pair of tokens, instead of keeping them.
  """

  def __init__(
    self,
    channels: int,
    head_width: int,
    context_width: int | None,
    *,
    rngs: nnx.Rngs,
    groups: int = 32,
    recompute: bool = False,
  ):
    if channels % head_width:
      raise ValueError(
        f'model.head_width is {head_width}; expected a divisor of the'
        f' {channels} channels of a level with attention.'
      )
    self.heads = channels // head_width
    self.recompute = recompute
    self.norm = GroupNorm(channels, groups=groups)
    self.qkv = Dense(channels, 3 * channels, rngs=rngs, axes=INWARD)
    self.context_kv = (
      None
      if context_width is None
      else Dense(context_width, 2 * channels, rngs=rngs, axes=INWARD)
    )
    self.out = Dense(channels, channels, rngs=rngs, zero=True, axes=OUTWARD)

  def __call__(
    self,
    x: jax.Array,
    context: jax.Array | None,
    context_mask: jax.Array | None = None,
  ) -> jax.Array:
    """Maps x (B, H, W, C).

    Args:
      x: pixels.
      context: tokens (B, T, D), or None.
      context_mask: bool (B, T), which of them may be attended to; None for all.
    """
    b, h, w, c = x.shape
    q, k, v = jnp.split(self.qkv(self.norm(x)).reshape(b, h * w, 3 * c), 3, axis=-1)
    mask = None
    if self.context_kv is not None and context is not None:
      context_k, context_v = jnp.split(self.context_kv(context), 2, axis=-1)
      k = jnp.concatenate([context_k, k], axis=1)
      v = jnp.concatenate([context_v, v], axis=1)
      if context_mask is not None:
        own = ((0, 0), (0, h * w))
        mask = jnp.pad(context_mask, own, constant_values=True)[:, None, None]
    q, k, v = (
      constrain(a.reshape(b, a.shape[1], self.heads, -1), 'batch', None, 'hidden', None)
      for a in (q, k, v)
    )
    attend = jax.nn.dot_product_attention
    if self.recompute:
      attend = jax.checkpoint(attend)
    attended = attend(q, k, v, mask=mask)
    return constrain(x + self.out(attended.reshape(b, h, w, c)), *IMAGE)
