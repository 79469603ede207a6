from __future__ import annotations

import dataclasses
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
import skimage.data
from PIL import Image

from composer_jax.diffusion.degradation import (
  BSRGAN,
  Strongest,
  blur,
  bsr,
  gaussian_kernel,
  jpeg,
  resampling,
)

SIDE = 32
KEYS = jax.random.split(jax.random.key(0), 32)
NOTHING = Strongest(sigma=0, shrinking=1, noise=0, quality=100)


def photographs(count, height, width=None):
  """uint8 crops (count, height, width, 3) of four photographs."""
  rng = np.random.default_rng(0)
  crops = []
  for i in range(count):
    whole = getattr(skimage.data, ['astronaut', 'chelsea', 'coffee', 'rocket'][i % 4])()
    whole = whole[::2, ::2]
    y = rng.integers(len(whole) - height)
    x = rng.integers(whole.shape[1] - (width or height))
    crops.append(whole[y : y + height, x : x + (width or height)])
  return np.stack(crops)


def to_x(pixels):
  return jnp.asarray(pixels / 127.5 - 1, jnp.float32)


def to_levels(x):
  return (np.asarray(x, np.float64) + 1) * 127.5


def psnr(a, b):
  """Decibels of each image, both in levels from 0 to 255."""
  return 10 * np.log10(255**2 / ((a - b) ** 2.0).mean(axis=(1, 2, 3)))


X = to_x(photographs(32, SIDE))
jitted_blur = jax.jit(blur)


@jax.jit
def _bsr(keys, x, level, most):
  return bsr(keys, x, level, strongest=Strongest(*most))


def jitted_bsr(keys, x, level, strongest=BSRGAN):
  """Compiled once for all strengths."""
  most = dataclasses.astuple(strongest)
  return _bsr(keys, *(jnp.asarray(a, jnp.float32) for a in (x, level, most)))


both = pytest.mark.parametrize('degrade', [jitted_blur, jitted_bsr])


@pytest.mark.parametrize(
  ('sigmas', 'size'), [((0.0, 0.6), 3), ((0.4, 0.6), 3), ((0.2, 3.0), 7)]
)
def test_blur_equals_that_of_scipy(sigmas, size):
  level = np.array([0.1, 0.6, 1.0], np.float32)
  apply = jax.jit(blur, static_argnames=('sigmas', 'size'))
  blurred = apply(KEYS[:3], X[:3], level, sigmas=sigmas, size=size)
  for i, sigma in enumerate(sigmas[0] + (sigmas[1] - sigmas[0]) * level):
    wanted = scipy.ndimage.gaussian_filter(
      np.asarray(X[i], np.float64),
      sigma,
      mode='nearest',
      radius=size // 2,
      axes=(0, 1),
    )
    np.testing.assert_allclose(blurred[i], wanted, atol=2e-6)


@pytest.mark.parametrize('size', [0, 4])
def test_a_kernel_without_a_centre_is_refused(size):
  with pytest.raises(ValueError, match=rf'size is {size}.*odd'):
    blur(KEYS, X, jnp.ones(len(X)), size=size)


@both
def test_level_zero_leaves_an_image_as_it_is_whatever_its_neighbours(degrade):
  level = jnp.tile(jnp.array([0, 0.5]), 16)
  degraded = degrade(KEYS, X, level)
  np.testing.assert_array_equal(degraded[::2], X[::2])
  changed = (degraded[1::2] != X[1::2]).any(axis=(1, 2, 3))
  assert changed.all()


@both
def test_more_level_leaves_less_of_the_image(degrade):
  left = [
    psnr(to_levels(degrade(KEYS, X, jnp.full(32, level))), to_levels(X)).mean()
    for level in (0.4, 0.6, 0.8, 1.0)
  ]
  assert (np.diff(left) < -0.5).all(), left


@both
def test_the_same_keys_give_the_same_bits(degrade):
  level = jnp.linspace(0, 1, 32)
  once = degrade(KEYS, X, level)
  np.testing.assert_array_equal(degrade(KEYS, X, level), once)
  assert once.shape == X.shape and once.dtype == jnp.float32


def test_other_keys_give_another_image():
  level = jnp.full(32, 0.5)
  ours, theirs = (np.asarray(jitted_bsr(k, X, level)) for k in (KEYS, KEYS[::-1]))
  assert (ours != theirs).any(axis=(1, 2, 3)).all()


@both
def test_an_image_does_not_depend_on_its_batch(degrade):
  level = jnp.linspace(0, 1, 32)
  batch = degrade(KEYS, X, level)
  for i in (1, 10, 20, 31):
    one = slice(i, i + 1)
    alone = degrade(KEYS[one], X[one], level[one])[0]
    # The mean: sums of another batch may round otherwise in their last bit, which JPEG
    # can turn into a whole step of a coefficient. Other draws differ by a hundredth.
    assert np.abs(alone - batch[i]).mean() < 1e-3


@both
def test_values_stay_in_the_range_of_images(degrade):
  # Black and white at random: filters that overshoot would leave the range here.
  x = jnp.sign(jax.random.normal(jax.random.key(1), X.shape))
  degraded = np.asarray(degrade(KEYS, x, jnp.ones(32)))
  assert np.abs(degraded).max() <= 1
  assert np.isfinite(degraded).all()


def test_the_order_of_noise_and_compression_is_drawn_for_each_image():
  strongest = dataclasses.replace(NOTHING, noise=0.1, quality=50)
  levels = to_levels(jitted_bsr(KEYS, X, jnp.ones(32), strongest))
  # What left a file last has whole levels; noise has not.
  compressed_last = (np.abs(levels - np.round(levels)) < 1e-3).all(axis=(1, 2, 3))
  assert abs(compressed_last.mean() - 0.5) < 4 * 0.5 / 32**0.5


def test_without_noise_flat_images_stay_flat():
  colours = np.random.default_rng(1).integers(20, 236, (32, 1, 1, 3))
  x = to_x(np.broadcast_to(colours, X.shape))
  strongest = dataclasses.replace(BSRGAN, noise=0, quality=100)
  degraded = to_levels(jitted_bsr(KEYS, x, jnp.ones(32), strongest))
  assert np.ptp(degraded, axis=(1, 2)).max() < 1e-3
  assert np.abs(degraded - colours).max() < 1.5  # YCbCr has whole levels too.


def test_noise_is_gray_or_coloured_and_at_most_the_strongest():
  strongest = dataclasses.replace(NOTHING, noise=0.1)
  noise = to_levels(jitted_bsr(KEYS, jnp.zeros_like(X), jnp.ones(32), strongest))
  noise = noise.reshape(32, -1, 3)
  share = noise.std(axis=1).mean(axis=-1) / (0.1 * 255)
  assert 0.8 < share.max() < 1.05 and share.min() < 0.2
  loud = noise[share > 0.2]
  gray = [np.corrcoef(image.T)[0, 1] > 0.9 for image in loud]
  assert abs(np.mean(gray) - 0.5) < 4 * 0.5 / len(loud) ** 0.5


def test_blur_is_isotropic_or_not_and_at_most_the_strongest():
  step = jnp.sign(jnp.arange(SIDE) - 15.5)
  strongest = dataclasses.replace(NOTHING, sigma=2.0)
  slopes = []
  for axis, edge in ((1, step[:, None, None]), (2, step[:, None])):
    x = jnp.broadcast_to(edge, X.shape)
    blurred = np.asarray(jitted_bsr(KEYS, x, jnp.ones(32), strongest))
    slopes.append(np.diff(blurred[..., 0], axis=axis).max(axis=(1, 2)))
  # A step of 2, blurred by a normal, is as steep as twice its density; 8-bit levels.
  least = 2 * scipy.stats.norm(scale=2.0).pdf(0) - 1 / 255
  assert least < np.min(slopes) < least + 0.2
  assert np.max(slopes) > 1.5
  round_ones = np.abs(slopes[0] - slopes[1]) < 2 / 255
  assert 0.25 < round_ones.mean() < 0.75


@pytest.mark.parametrize('angle', [0.0, 0.7, 2.5])
@pytest.mark.parametrize('sigmas', [(2.0, 0.8), (1.3, 1.3)])
def test_a_gaussian_kernel_has_the_density_of_a_turned_normal(sigmas, angle):
  turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
  normal = scipy.stats.multivariate_normal(
    cov=turn @ np.diag(np.square(sigmas)) @ turn.T
  )
  y, x = np.mgrid[-7:8, -7:8]
  wanted = normal.pdf(np.stack([x, y], axis=-1))
  kernel = jax.jit(gaussian_kernel, static_argnums=2)(jnp.array(sigmas), angle, 15)
  np.testing.assert_allclose(kernel, wanted / wanted.sum(), atol=1e-6)


FILTERS = (
  Image.Resampling.NEAREST,
  Image.Resampling.BILINEAR,
  Image.Resampling.BICUBIC,
)


@pytest.mark.parametrize('method', [0, 1, 2])
@pytest.mark.parametrize(
  ('inputs', 'outputs'), [(24, 24), (24, 17), (24, 12), (17, 24), (13, 20), (11, 7)]
)
def test_resampling_equals_that_of_pillow(inputs, outputs, method):
  image = np.random.default_rng(2).normal(size=(24, inputs)).astype(np.float32)
  wanted = np.asarray(
    Image.fromarray(image).resize((outputs, 24), FILTERS[method]), np.float32
  )
  beyond = np.full((24, 24 - inputs), 1e3, np.float32)  # It must not leak in.
  matrix = jax.jit(resampling, static_argnums=2)(inputs, outputs, 24, method)
  resized = np.concatenate([image, beyond], axis=1) @ np.asarray(matrix).T
  np.testing.assert_allclose(resized[:, :outputs], wanted, atol=2e-5)


@pytest.mark.parametrize(('chroma', 'subsampling'), [('4:4:4', 0), ('4:2:0', 2)])
@pytest.mark.parametrize(('height', 'width'), [(48, 48), (40, 51)])
def test_compression_equals_that_of_pillow(height, width, chroma, subsampling):
  pixels = photographs(8, height, width)
  quality = np.array([5, 10, 30, 49, 50, 75, 90, 95])
  files = [io.BytesIO() for _ in pixels]
  for image, q, file in zip(pixels, quality.tolist(), files, strict=True):
    Image.fromarray(image).save(file, 'JPEG', quality=q, subsampling=subsampling)
  theirs = np.stack([np.asarray(Image.open(file)) for file in files]).astype(float)
  ours = to_levels(jax.jit(jpeg, static_argnums=2)(to_x(pixels), quality, chroma))
  np.testing.assert_allclose(ours, np.round(ours), atol=1e-3)
  # Of 255 levels. libjpeg's cosine transform works in integers, so that a coefficient
  # about halfway between two steps may go the other way.
  assert np.abs(ours - theirs).mean() < 0.3
  np.testing.assert_allclose(psnr(ours, pixels), psnr(theirs, pixels), atol=0.15)


def test_compression_of_unknown_chroma_is_refused():
  with pytest.raises(ValueError, match=r"chroma is '4:1:1'.*4:2:0"):
    jpeg(X, jnp.full(32, 50), '4:1:1')
