"""Mask: the part of the image that is given, and where it is given.

Drawn anew each time: irregular strokes, rectangles or half images are hidden.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw

from composer_jax.conditions.condition import Condition, Spec
from composer_jax.images import Picture


def hide_half(size: int, rng: np.random.Generator) -> np.ndarray:
  """Hides one half of the image; bool (S, S), True where hidden."""
  hidden = np.zeros((size, size), bool)
  hidden[: size // 2] = True
  return np.rot90(hidden, int(rng.integers(4)))


def hide_rectangle(size: int, rng: np.random.Generator) -> np.ndarray:
  """Hides a rectangle of 1/4 to 3/4 of each side; bool (S, S)."""
  height, width = rng.integers(size // 4, 3 * size // 4 + 1, 2)
  top, left = rng.integers(0, (size - height + 1, size - width + 1))
  hidden = np.zeros((size, size), bool)
  hidden[top : top + height, left : left + width] = True
  return hidden


def hide_strokes(size: int, rng: np.random.Generator) -> np.ndarray:
  """Hides one to four strokes of a thick brush; bool (S, S)."""
  canvas = Image.new('L', (size, size))
  pen = ImageDraw.Draw(canvas)
  for _ in range(rng.integers(1, 5)):
    width = int(rng.integers(size // 12 + 1, size // 5 + 2))
    points = rng.integers(0, size, (rng.integers(2, 6), 2))
    pen.line([tuple(map(int, p)) for p in points], fill=1, width=width, joint='curve')
  return np.asarray(canvas, bool)


SHAPES = (hide_half, hide_rectangle, hide_strokes)


class Mask(Condition):
  """The visible part of the image."""

  name = 'mask'
  stored = False
  higher_is_better = {'psnr': True}

  def spec(self, size: int) -> Spec:
    return Spec(
      shape=(size, size, 4),
      dtype='uint8',
      low=0,
      high=255,
      unit='sRGB, 0 where hidden; fourth channel 255 where visible',
      source='strokes, rectangles and halves, drawn at random each time',
    )

  def extract(self, picture: Picture, rng: np.random.Generator) -> np.ndarray:
    hidden = SHAPES[rng.integers(len(SHAPES))](picture.pixels.shape[0], rng)
    stored = np.empty((*hidden.shape, 4), np.uint8)
    stored[..., :3] = picture.pixels
    stored[..., 3] = 255
    stored.view(np.uint32)[..., 0] *= ~hidden  # All four channels at once.
    return stored

  def features(self, stored: jax.Array) -> jax.Array:
    colour, visible = self.given(stored)
    return jnp.concatenate([colour * visible, 2 * visible - 1], axis=-1)

  def given(self, stored: jax.Array) -> tuple[jax.Array, jax.Array]:
    colour = stored[..., :3].astype('float32') / 127.5 - 1
    return colour, stored[..., 3:].astype('float32') / 255

  def draw(self, stored: np.ndarray) -> np.ndarray:
    """The visible pixels over a gray checkerboard."""
    y, x = np.indices(stored.shape[:2]) * 16 // stored.shape[0]
    board = np.where((x + y) % 2, 200, 235).astype(np.uint8)[..., None]
    return np.where(stored[..., 3:] > 127, stored[..., :3], board)

  def fidelity(self, asked: np.ndarray, again: np.ndarray) -> dict[str, float]:
    """PSNR on the pixels that were given, in dB, at most 60."""
    visible = asked[..., 3] > 127
    if not visible.any():
      raise ValueError('A mask that hides everything has no fidelity.')
    difference = asked[visible, :3].astype(float) - again[visible, :3]
    error = max(np.mean(difference**2), 255**2 / 1e6)
    return {'psnr': float(10 * np.log10(255**2 / error))}
