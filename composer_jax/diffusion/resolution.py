"""The resolutions of a cascade: from stored pixels to what each stage sees."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from composer_jax.diffusion.process import coefficients
from composer_jax.diffusion.schedule import make_schedule

LEVELS = 1000
"""Levels of the noise on the low-resolution input of an upsampler."""


def to_float(images: jax.Array, size: int) -> jax.Array:
  """uint8 (B, S, S, 3) to float [-1, 1] (B, size, size, 3), averaging areas.

  Raises:
    ValueError: S is no multiple of `size`.
  """
  side = images.shape[1]
  x = images.astype(jnp.float32) / 127.5 - 1
  if side == size:
    return x
  if side % size:
    raise ValueError(
      f'The prepared images are {side} pixels on a side; expected a multiple of'
      f' model.image_size, {size}.'
    )
  return average(x, size)


def average(x: jax.Array, size: int) -> jax.Array:
  """Means of areas: (B, S, S, C) to (B, size, size, C), S a multiple of `size`."""
  b, side, _, c = x.shape
  f = side // size
  return x.reshape(b, size, f, size, f, c).mean(axis=(2, 4))


def enlarge(x: jax.Array, size: int) -> jax.Array:
  """Bicubic resize of (B, S, S, C) to (B, size, size, C)."""
  return jax.image.resize(x, (x.shape[0], size, size, x.shape[-1]), 'cubic')


def add_noise(x: jax.Array, level: jax.Array, noise: jax.Array) -> jax.Array:
  """Conditioning augmentation (Ho et al. 2022, section 4.2).

  The image is noised but keeps its scale, and level 0 leaves it as it is.

  Args:
    x: low-resolution images (B, S, S, C) in [-1, 1].
    level: steps (B,) of a cosine schedule of `LEVELS`.
    noise: standard normal, like x.
  """
  table = jnp.asarray(make_schedule('cosine', LEVELS).alphas_cumprod, jnp.float32)
  c = coefficients(table, level, x.ndim)
  noised = x + noise * c.noise / c.signal
  return jnp.where(level.reshape(c.signal.shape) > 0, noised, x)


def random_crops(
  key: jax.Array, side: int, size: int, arrays: Mapping[str, jax.Array]
) -> dict[str, jax.Array]:
  """Cuts a square out of each image of a batch, the same one from all its maps.

  Args:
    key: random key.
    side: of the whole image, in its own pixels.
    size: of the square, in the same pixels; at most `side`.
    arrays: (B, n side, n side, C) by name, with any whole n of its own.

  Returns:
    (B, n size, n size, C) by name.
  """
  batch = len(next(iter(arrays.values())))
  corners = jax.random.randint(key, (batch, 2), 0, side - size + 1)

  def cut(x: jax.Array) -> jax.Array:
    n = x.shape[1] // side

    def one(image: jax.Array, corner: jax.Array) -> jax.Array:
      start = (n * corner[0], n * corner[1], 0)
      return jax.lax.dynamic_slice(image, start, (n * size, n * size, x.shape[-1]))

    return jax.vmap(one)(x, corners)

  return {name: cut(x) for name, x in arrays.items()}


def to_uint8(images: np.ndarray) -> np.ndarray:
  """Float images in [-1, 1], what lies outside clipped, to uint8 of the same shape."""
  return np.round((np.clip(images, -1, 1) + 1) * 127.5).astype(np.uint8)
