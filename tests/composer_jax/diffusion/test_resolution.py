from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from composer_jax.diffusion.resolution import (
  add_noise,
  enlarge,
  random_crops,
  to_float,
)
from composer_jax.diffusion.schedule import make_schedule

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (2, 12, 12, 3), np.uint8)


@pytest.mark.parametrize('size', [12, 6, 4])
def test_shrinking_averages_areas_as_torch_does(size):
  pixels = torch.from_numpy(IMAGES / 127.5 - 1).permute(0, 3, 1, 2)
  wanted = torch.nn.functional.adaptive_avg_pool2d(pixels, size).permute(0, 2, 3, 1)
  np.testing.assert_allclose(to_float(IMAGES, size), wanted.numpy(), atol=1e-6)


def test_shrinking_to_no_divisor_is_refused():
  with pytest.raises(ValueError, match=r'12 pixels.*multiple of model.image_size, 5'):
    to_float(jnp.asarray(IMAGES), 5)


def test_black_and_white_are_the_ends_of_the_range():
  images = np.array([[[[0, 255, 0]]]], np.uint8)
  assert to_float(jnp.asarray(images), 1).tolist() == [[[[-1, 1, -1]]]]


def test_enlarging_keeps_flat_images_and_straight_ramps():
  ramp = jnp.broadcast_to(jnp.linspace(-1, 1, 8)[None, None, :, None], (1, 8, 8, 3))
  large = np.asarray(enlarge(ramp, 16))
  # Pixel centres of the large image, in pixels of the small one.
  places = (np.arange(16) + 0.5) / 2 - 0.5
  inside = slice(4, 12)  # Away from the border.
  np.testing.assert_allclose(
    large[0, 8, inside, 0], places[inside] / 3.5 - 1, atol=1e-5
  )
  flat = enlarge(jnp.full((1, 8, 8, 3), 0.3), 16)
  np.testing.assert_allclose(flat, 0.3, atol=1e-6)


def test_noise_has_the_signal_to_noise_ratio_of_its_level():
  x = jnp.zeros((4, 64, 64, 3))
  level = jnp.array([0, 100, 300, 700])
  noised = add_noise(x, level, jax.random.normal(jax.random.key(0), x.shape))
  a = make_schedule('cosine', 1000).alphas_cumprod[np.asarray(level)]
  wanted = np.sqrt((1 - a) / a)
  wanted[0] = 0  # Level 0 leaves the image alone.
  np.testing.assert_allclose(noised.std((1, 2, 3)), wanted, rtol=0.02)


def test_noise_keeps_the_scale_of_the_image():
  x = jnp.full((1, 8, 8, 3), 0.5)
  quiet = add_noise(x, jnp.array([400]), jnp.zeros_like(x))
  np.testing.assert_array_equal(quiet, x)


def test_crops_are_the_same_square_of_an_image_and_its_finer_maps():
  y, x = np.indices((8, 8))
  image = np.broadcast_to(np.stack([y, x], -1), (400, 8, 8, 2)).astype(np.float32)
  maps = {'image': image, 'fine': image.repeat(3, 1).repeat(3, 2)}
  cut = random_crops(jax.random.key(0), 8, 4, maps)
  assert cut['image'].shape == (400, 4, 4, 2)
  np.testing.assert_array_equal(cut['fine'][:, ::3, ::3], cut['image'])
  corners = np.asarray(cut['image'][:, 0, 0], int)
  np.testing.assert_array_equal(
    cut['image'], corners[:, None, None] + np.stack([y, x], -1)[:4, :4]
  )
  assert {tuple(corner) for corner in corners} == set(np.ndindex(5, 5))


def test_a_crop_of_the_whole_changes_nothing():
  cut = random_crops(jax.random.key(0), 12, 12, {'image': jnp.asarray(IMAGES)})
  np.testing.assert_array_equal(cut['image'], IMAGES)
