"""Degradations of the low-resolution image that an upsampler is trained on.

What a base model draws has flaws that a shrunk photograph has not. So that upsamplers
bear them, unCLIP spoils the low-resolution images of training a little: those of the
first upsampler by a Gaussian blur, those of the second by a BSR degradation (Ramesh et
al. 2022, arXiv 2204.06125, section 2.3).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import Precision

from composer_jax.diffusion.resolution import LEVELS, add_noise

# (random keys (B,), one an image; x (B, S, S, 3) in [-1, 1]; level (B,) in [0, 1])
# -> float32 like x. Level 0 leaves an image as it is, to the bit.
Degradation = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
Chroma = Literal['4:4:4', '4:2:0']


@dataclasses.dataclass(frozen=True)
class Strongest:
  """The most that `bsr` may do to an image at level 1.

  The defaults are the ranges of BSRGAN for a factor of 4 (Zhang et al. 2021). Level
  0.25 comes near the lighter variant that the code of latent diffusion (Rombach et al.
  2022) has: there the isotropic sigma is up to 0.7 and the quality from 80.

  Attributes:
    sigma: of the blur along either axis, in pixels.
    shrinking: how many times smaller the image is made before it is enlarged again.
    noise: its standard deviation, where white is 1 and black 0.
    quality: of the JPEG file, as libjpeg counts it; less is worse.
  """

  sigma: float = 2.8
  shrinking: float = 2.0
  noise: float = 25 / 255
  quality: float = 30.0


BSRGAN = Strongest()

_KERNEL = 15  # Pixels on a side; shapes are static, BSRGAN draws from 7 to 21.
_FINE_CHROMA = 90  # Quality from which encoders such as ImageMagick keep all chroma.


def noise(keys: jax.Array, x: jax.Array, level: jax.Array) -> jax.Array:
  """Gaussian noise of a cosine schedule (Ho et al. 2022); see `add_noise`."""
  draws = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))(keys)
  return add_noise(x, jnp.round(level * LEVELS).astype(jnp.int32), draws)


def blur(
  keys: jax.Array,
  x: jax.Array,
  level: jax.Array,
  *,
  sigmas: tuple[float, float] = (0.0, 0.6),
  size: int = 3,
) -> jax.Array:
  """Gaussian blur with a sigma that grows with the level (Ramesh et al. 2022, 2.3).

  Edges are continued by their last pixel. The paper prints no sizes: 3 x 3 and 0.6
  are what public re-implementations of it use.

  Args:
    keys: not used, as nothing is drawn; see `Degradation`.
    x: images (B, S, S, 3) in [-1, 1].
    level: (B,) in [0, 1].
    sigmas: in pixels, just above level 0 and at level 1.
    size: pixels on a side of the kernel.

  Raises:
    ValueError: `size` is even or not positive.
  """
  del keys
  if size < 1 or size % 2 == 0:
    raise ValueError(f'size is {size}; expected an odd number of pixels, such as 3.')
  low, high = sigmas

  def one(image: jax.Array, level: jax.Array) -> jax.Array:
    sigma = low + (high - low) * level
    taps = gaussian_kernel(jnp.stack([sigma, sigma]), 0.0, size).sum(axis=0)
    blurred = _filter(_filter(image, taps[:, None]), taps[None, :])
    return jnp.where(level > 0, jnp.clip(blurred, -1, 1), image)

  return jax.vmap(one)(x, level)


def bsr(
  keys: jax.Array, x: jax.Array, level: jax.Array, *, strongest: Strongest = BSRGAN
) -> jax.Array:
  """Blur, resizing, noise and JPEG in random order (Zhang et al. 2021).

  BSRGAN (arXiv 2103.14006) degrades a large image into a small one. Here the small one
  is given, so it is shrunk and enlarged again, and sizes are in its pixels. For each
  image are drawn: the order; an isotropic or an anisotropic Gaussian; a factor, and
  nearest, bilinear or bicubic interpolation for either way; gray or colour noise; and
  a JPEG quality. Strengths are uniform from nothing to `level` times the strongest.
  The noise of camera sensors is left out.

  Args:
    keys: random keys (B,), one an image.
    x: images (B, S, S, 3) in [-1, 1].
    level: (B,) in [0, 1].
    strongest: what level 1 may do.
  """

  def one(key: jax.Array, image: jax.Array, level: jax.Array) -> jax.Array:
    order, *rest = jax.random.split(key, 5)
    kernel = _draw_kernel(rest[0], level * strongest.sigma)
    matrix = _draw_resizing(rest[1], 1 + level * (strongest.shrinking - 1), len(image))
    # The range of x is twice that of `noise`.
    noise = _draw_noise(rest[2], 2 * level * strongest.noise, image.shape)
    share = level * jax.random.uniform(rest[3])
    quality = 100 - share * (100 - strongest.quality)
    steps = (
      lambda image: _filter(image, kernel),
      lambda image: _einsum('ij,jkc,lk->ilc', matrix, image, matrix),
      lambda image: image + noise,
      lambda image: jnp.where(
        quality < _FINE_CHROMA,
        jpeg(image[None], quality[None], '4:2:0')[0],
        jpeg(image[None], quality[None], '4:4:4')[0],
      ),
    )

    # Under vmap a switch does all four steps and keeps one. So the program holds each
    # step once, where 24 orders as branches would hold 96. A true branch would do a
    # quarter of the work, but one image after another: of a batch that is spread over
    # devices, each of them would then do every image.
    def step(image: jax.Array, which: jax.Array) -> tuple[jax.Array, None]:
      return jnp.clip(jax.lax.switch(which, steps, image), -1, 1), None

    degraded, _ = jax.lax.scan(step, image, jax.random.permutation(order, len(steps)))
    return jnp.where(level > 0, degraded, image)

  return jax.vmap(one)(keys, x, level)


def gaussian_kernel(
  sigmas: jax.Array, angle: jax.Array | float, size: int
) -> jax.Array:
  """Weights (size, size) of a Gaussian with the axes `sigmas` (2,), in pixels.

  The first axis is horizontal before both are turned by `angle`, in radians.
  """
  y, x = jnp.mgrid[:size, :size] - size // 2
  along = jnp.cos(angle) * x + jnp.sin(angle) * y
  across = jnp.cos(angle) * y - jnp.sin(angle) * x
  first, second = jnp.maximum(sigmas, 1e-3)  # Below that only the centre weighs.
  weights = jnp.exp(-0.5 * ((along / first) ** 2 + (across / second) ** 2))
  return weights / weights.sum()


def resampling(
  inputs: jax.Array | int, outputs: jax.Array | int, side: int, method: jax.Array | int
) -> jax.Array:
  """The matrix (side, side) that resizes `inputs` pixels in a row to `outputs`.

  Both may be traced, up to `side`. Columns from `inputs` on are 0, rows from `outputs`
  on mean nothing. Shrinking widens the bilinear and bicubic filter, as Pillow does.

  Args:
    inputs: pixels before.
    outputs: pixels after.
    side: of the matrix.
    method: 0 nearest, 1 bilinear, 2 bicubic (Keys 1981, a = -0.5).
  """
  column = jnp.arange(side)[None, :]
  twice = 2 * jnp.minimum(jnp.arange(side), outputs - 1)[:, None] + 1
  stride = inputs / outputs
  d = jnp.abs(column + 0.5 - twice * stride / 2) / jnp.maximum(stride, 1)
  near, far = 1 + d**2 * (1.5 * d - 2.5), 2 + d * (-4 + d * (2.5 - 0.5 * d))
  # In integers: where a centre falls between two pixels, floats would waver.
  nearest = (column == twice * inputs // (2 * outputs)).astype(jnp.float32)
  bicubic = jnp.where(d < 1, near, jnp.where(d < 2, far, 0))
  weights = jnp.stack([nearest, jnp.maximum(1 - d, 0), bicubic])[method]
  weights = jnp.where(column < inputs, weights, 0)
  return weights / weights.sum(axis=1, keepdims=True)


# ITU-T T.81 (1992), tables K.1 and K.2.
_LUMA = np.array([
    [16, 11, 10, 16, 24, 40, 51, 61],
    [12, 12, 14, 19, 26, 58, 60, 55],
    [14, 13, 16, 24, 40, 57, 69, 56],
    [14, 17, 22, 29, 51, 87, 80, 62],
    [18, 22, 37, 56, 68, 109, 103, 77],
    [24, 35, 55, 64, 81, 104, 113, 92],
    [49, 64, 78, 87, 103, 121, 120, 101],
    [72, 92, 95, 98, 112, 100, 103, 99],
])  # fmt: skip
_CHROMA = np.full((8, 8), 99)
_CHROMA[:3, :4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99]]
_CHROMA[3, :2] = 47, 66

# JFIF 1.02: (red, green, blue) to (Y, Cb - 128, Cr - 128), both in [0, 255].
_YCC = np.array([
    [0.299, 0.587, 0.114],
    [-0.168736, -0.331264, 0.5],
    [0.5, -0.418688, -0.081312],
])  # fmt: skip

# Discrete cosine transform, times sqrt(8): so the sums behind the mean of a block are
# whole numbers, and those halfway between two steps are rounded alike everywhere.
_DCT = np.sqrt(2) * np.cos(np.pi / 8 * np.arange(8)[:, None] * (np.arange(8) + 0.5))
_DCT[0] = 1


def jpeg(x: jax.Array, quality: jax.Array, chroma: Chroma = '4:2:0') -> jax.Array:
  """What a JPEG file keeps of an image (ITU-T T.81, baseline, as libjpeg does it).

  The image is rounded to 8 bits, as are all planes between the steps. Sides that are
  no multiples of 8 pixels, or 16 in 4:2:0, are continued by their last pixel.

  Args:
    x: images (B, H, W, 3) in [-1, 1].
    quality: (B,) from 1 to 100, as libjpeg counts it, rounded to whole numbers.
    chroma: `4:2:0` keeps chroma at half the resolution, `4:4:4` at all of it.

  Raises:
    ValueError: the kind of chroma is unknown.
  """
  if chroma not in ('4:2:0', '4:4:4'):
    raise ValueError(f'chroma is {chroma!r}; expected "4:2:0" or "4:4:4".')
  height, width = x.shape[1:3]
  unit = 16 if chroma == '4:2:0' else 8
  beyond = ((0, 0), (0, -height % unit), (0, -width % unit), (0, 0))
  rgb = jnp.pad(jax.lax.round((x + 1) * 127.5), beyond, 'edge')
  y, *colours = jnp.moveaxis(jax.lax.round(_einsum('bhwc,dc->bhwd', rgb, _YCC)), -1, 0)
  y = _coded(y - 128, _table(_LUMA, quality))[:, :height, :width] + 128
  table = _table(_CHROMA, quality)
  if chroma == '4:2:0':
    # libjpeg continues the columns of the whole image, but the rows of its half. It
    # does not interpolate with what is beyond the image.
    rows, columns = (height + 1) // 2, (width + 1) // 2
    ends = ((0, 0), (0, -rows % 8), (0, 0))
    colours = [jnp.pad(_halve(c)[:, :rows], ends, 'edge') for c in colours]
    colours = [_double(_coded(c, table)[:, :rows, :columns]) for c in colours]
  else:
    colours = [_coded(c, table) for c in colours]
  cb, cr = (c[:, :height, :width] for c in colours)
  g = y - 0.344136 * cb - 0.714136 * cr
  rgb = jnp.stack([y + 1.402 * cr, g, y + 1.772 * cb], axis=-1)
  return jnp.clip(jax.lax.round(rgb), 0, 255) / 127.5 - 1


def _table(base: np.ndarray, quality: jax.Array) -> jax.Array:
  """Steps (B, 8, 8) of the coefficients at each quality, as libjpeg scales them."""
  q = jnp.clip(jnp.round(quality), 1, 100).astype(jnp.int32)[:, None, None]
  scale = jnp.where(q < 50, 5000 // q, 200 - 2 * q)
  return jnp.clip((base * scale + 50) // 100, 1, 255).astype(jnp.float32)


def _coded(plane: jax.Array, table: jax.Array) -> jax.Array:
  """A plane (B, H, W) around 0 from its quantised coefficients, H and W blocks of 8."""
  b, h, w = plane.shape
  step = table[:, None, :, None, :]
  blocks = plane.reshape(b, h // 8, 8, w // 8, 8)
  sums = _einsum('ui,bhiwj,vj->bhuwv', _DCT, blocks, _DCT)
  kept = jax.lax.round(sums / (8 * step)) * step
  again = _einsum('ui,bhuwv,vj->bhiwj', _DCT, kept, _DCT) / 8
  return jnp.clip(jax.lax.round(again), -128, 127).reshape(b, h, w)


def _halve(plane: jax.Array) -> jax.Array:
  """Means of 2 x 2 pixels; halves go down and up in turn, so that none prevails."""
  b, h, w = plane.shape
  sums = plane.reshape(b, h // 2, 2, w // 2, 2).sum(axis=(2, 4))
  return jnp.floor((sums + 1 + jnp.arange(w // 2) % 2) / 4)


def _double(plane: jax.Array) -> jax.Array:
  """Twice the size by linear interpolation, which libjpeg calls fancy upsampling."""
  b, h, w = plane.shape
  return jax.lax.round(jax.image.resize(plane, (b, 2 * h, 2 * w), 'linear'))


def _draw_kernel(key: jax.Array, sigma: jax.Array) -> jax.Array:
  first, second, isotropic, turn = jax.random.uniform(key, (4,))
  axes = jnp.stack([first, jnp.where(isotropic < 0.5, first, second)])
  return gaussian_kernel(sigma * axes, jnp.pi * turn, _KERNEL)


def _draw_resizing(key: jax.Array, shrinking: jax.Array, side: int) -> jax.Array:
  size_key, method_key = jax.random.split(key)
  factor = jax.random.uniform(size_key, minval=1, maxval=shrinking)
  size = jnp.round(side / factor).astype(jnp.int32)
  down, up = jax.random.randint(method_key, (2,), 0, 3)
  there, back = resampling(side, size, side, down), resampling(size, side, side, up)
  return _einsum('ij,jk->ik', back, there)


def _draw_noise(key: jax.Array, sigma: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  normal_key, share_key, gray_key = jax.random.split(key, 3)
  noise = jax.random.normal(normal_key, shape)
  noise = jnp.where(jax.random.bernoulli(gray_key), noise[..., :1], noise)
  return sigma * jax.random.uniform(share_key) * noise


def _filter(image: jax.Array, kernel: jax.Array) -> jax.Array:
  """Weighs the neighbours (h, w), both odd, of each pixel of (H, W, C)."""
  (height, width, _), (rows, columns) = image.shape, kernel.shape
  ends = ((rows // 2,) * 2, (columns // 2,) * 2, (0, 0))
  padded = jnp.pad(image, ends, 'edge')

  # A loop over rows keeps the program small. A convolution with another kernel for
  # each image becomes one of as many groups: four to seven times slower on CPU.
  def add_row(i: jax.Array, total: jax.Array) -> jax.Array:
    row = jax.lax.dynamic_slice_in_dim(padded, i, height)
    for j in range(columns):
      total += kernel[i, j] * row[:, j : j + width]
    return total

  return jax.lax.fori_loop(0, rows, add_row, jnp.zeros_like(image))


def _einsum(formula: str, *arrays: jax.Array | np.ndarray) -> jax.Array:
  """In full float32: accelerators would round the factors to fewer bits."""
  floats = (jnp.asarray(array, jnp.float32) for array in arrays)
  return jnp.einsum(formula, *floats, precision=Precision.HIGHEST)


DEGRADATIONS: dict[str, Degradation] = {'noise': noise, 'blur': blur, 'bsr': bsr}
"""By the name that a config gives."""
