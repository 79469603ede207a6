from __future__ import annotations

import io

import numpy as np
import PIL.Image
import pytest
import skimage.data
import transformers

from composer_jax.images import Picture, open_image
from composer_jax.models.clip import PIXEL_STD, normalise
from composer_jax.models.clip_images import clip_square

SIZE = 28
SHAPES = [(28, 28), (64, 64), (37, 91), (200, 33), (29, 28), (11, 17), (5, 123), (2, 3)]


def photograph(height, width, mode):
  """Part of a photograph under noise, transparent in places."""
  rng = np.random.default_rng(height * width)
  pixels = skimage.data.astronaut()[80 : 80 + height, 200 : 200 + width] // 2
  pixels += rng.integers(0, 128, pixels.shape, np.uint8)
  alpha = rng.choice([0, 90, 255], (height, width)).astype(np.uint8)
  image = PIL.Image.fromarray(np.dstack([pixels, alpha]))
  return image if mode == 'RGBA' else image.convert('RGB').convert(mode)


@pytest.mark.parametrize('mode', ['RGB', 'RGBA', 'L', 'P', '1'])
@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_any_picture_becomes_the_input_of_the_public_processor(shape, mode):
  image = photograph(*shape, mode)
  processor = transformers.CLIPImageProcessorPil(
    size={'shortest_edge': SIZE}, crop_size={'height': SIZE, 'width': SIZE}
  )
  expected = processor(image, return_tensors='np')['pixel_values'][0]
  file = io.BytesIO()
  image.save(file, 'PNG')
  picture = open_image(file.getvalue(), name='picture')
  square = clip_square(picture, SIZE)
  assert (square.shape, square.dtype) == ((SIZE, SIZE, 3), np.uint8)
  got = np.asarray(normalise(square[None], SIZE)[0])
  assert got.std() > 0.1
  grays = (got - expected.transpose(1, 2, 0)) * np.array(PIXEL_STD) * 255
  # Transparent pixels are rounded in another way before they are scaled.
  assert np.abs(grays).max() < (1.01 if mode == 'RGBA' else 0.01)


def test_the_middle_of_a_long_picture_is_kept():
  pixels = np.zeros((20, 101, 3), np.uint8)
  pixels[:, 40:61] = 255
  square = clip_square(Picture(pixels), 20)
  np.testing.assert_array_equal(square, pixels[:, 40:60])
  tall = Picture(pixels.swapaxes(0, 1))
  np.testing.assert_array_equal(clip_square(tall, 20), pixels[:, 40:60])


def test_what_is_hidden_by_transparency_is_white():
  colours = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
  picture = Picture(colours, np.zeros((6, 9), np.uint8))
  np.testing.assert_array_equal(clip_square(picture, 4), 255)


def test_a_size_without_pixels_is_refused():
  with pytest.raises(ValueError, match='size: 0, expected at least 1 pixel'):
    clip_square(Picture(np.zeros((4, 4, 3), np.uint8)), 0)
