"""Intensity: the gray image, by channel weights drawn at random.

Composer, section 2.1: "to introduce randomness, we randomly sample the channel
weights from a set of pre-defined weights", so that colour cannot be read back.
"""

from __future__ import annotations

import jax
import numpy as np

from composer_jax.conditions.condition import Condition, Spec
from composer_jax.conditions.depth import rank_fidelity
from composer_jax.images import Picture

WEIGHTS = (
  (0.299, 0.587, 0.114),  # Rec. 601 luma.
  (0.2126, 0.7152, 0.0722),  # Rec. 709 luma.
  (1 / 3, 1 / 3, 1 / 3),
  (0.5, 0.3, 0.2),
  (0.2, 0.5, 0.3),
  (0.3, 0.2, 0.5),
)
"""The fixed set of (red, green, blue) weights; the paper does not print its own."""


class Intensity(Condition):
  """How bright each pixel is."""

  name = 'intensity'
  stored = False
  drop_rate = 0.7
  higher_is_better = {'correlation': True, 'rank_correlation': True, 'rmse': False}

  def spec(self, size: int) -> Spec:
    return Spec(
      shape=(size, size, 1),
      dtype='uint8',
      low=0,
      high=255,
      unit='gray level',
      source='channel weights drawn from a fixed set each time (Composer 2.1)',
    )

  def extract(self, picture: Picture, rng: np.random.Generator) -> np.ndarray:
    weights = np.array(WEIGHTS[rng.integers(len(WEIGHTS))], np.float32)
    return np.round(picture.pixels @ weights)[..., None].astype(np.uint8)

  def features(self, stored: jax.Array) -> jax.Array:
    return stored.astype('float32') / 127.5 - 1

  def gray(self, stored: jax.Array) -> jax.Array:
    return self.features(stored)

  def draw(self, stored: np.ndarray) -> np.ndarray:
    return np.repeat(stored, 3, axis=-1)

  def fidelity(self, asked: np.ndarray, again: np.ndarray) -> dict[str, float]:
    a, b = asked.astype(np.float64).ravel(), again.astype(np.float64).ravel()
    flat = np.ptp(a) == 0 or np.ptp(b) == 0
    linear = 0.0 if flat else float(np.corrcoef(a, b)[0, 1])
    return {'correlation': linear, **rank_fidelity(asked / 255, again / 255)}
