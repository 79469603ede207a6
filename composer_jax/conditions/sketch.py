"""Sketch: thin edges of the colour gradient.

The paper uses PiDiNet and sketch simplification. The default here needs no
weights: Canny's non-maximum suppression and hysteresis (Canny 1986) on the colour
gradient of Di Zenzo (1986) in CIELab, thinned to one pixel.
"""

from __future__ import annotations

import jax
import numpy as np
import scipy
import skimage

from composer_jax.conditions.condition import Condition, Spec
from composer_jax.images import Picture, srgb_to_lab

SIGMA = 0.8
"""Width of the Gaussian whose derivative is taken, in pixels."""
LOW, HIGH = 6.0, 12.0
"""Hysteresis thresholds of the colour gradient, in CIELab units a pixel."""


def edges(pixels: np.ndarray) -> np.ndarray:
  """Thin colour edges of an image.

  Args:
    pixels: uint8 sRGB (H, W, 3).

  Returns:
    bool (H, W).
  """
  lab = srgb_to_lab(pixels)
  dy = scipy.ndimage.gaussian_filter(lab, (SIGMA, SIGMA, 0), (1, 0, 0), mode='nearest')
  dx = scipy.ndimage.gaussian_filter(lab, (SIGMA, SIGMA, 0), (0, 1, 0), mode='nearest')
  # Di Zenzo's structure tensor: its largest eigenvalue is the squared slope of
  # the steepest direction, over all channels together.
  xx, yy, xy = (dx * dx).sum(-1), (dy * dy).sum(-1), (dx * dy).sum(-1)
  spread = np.sqrt(((xx - yy) / 2) ** 2 + xy**2)
  slope = np.sqrt((xx + yy) / 2 + spread)
  angle = np.arctan2(2 * xy, xx - yy) / 2
  step = np.round(angle / (np.pi / 4)).astype(int) % 4
  padded = np.pad(slope, 1)
  h, w = slope.shape

  def shifted(y: int, x: int) -> np.ndarray:
    return padded[1 + y : 1 + y + h, 1 + x : 1 + x + w]

  ahead = np.choose(step, [shifted(0, 1), shifted(1, 1), shifted(1, 0), shifted(1, -1)])
  behind = np.choose(
    step, [shifted(0, -1), shifted(-1, -1), shifted(-1, 0), shifted(-1, 1)]
  )
  ridge = np.where((slope >= ahead) & (slope > behind), slope, 0)
  lines = skimage.filters.apply_hysteresis_threshold(ridge, LOW, HIGH)
  return skimage.morphology.skeletonize(lines)


class Sketch(Condition):
  """Where the lines are."""

  name = 'sketch'
  higher_is_better = {'f1': True}

  def spec(self, size: int) -> Spec:
    return Spec(
      shape=(size, size, 1),
      dtype='uint8',
      low=0,
      high=255,
      unit='255 on an edge',
      source='Canny on the CIELab gradient, thinned (no learned weights)',
    )

  def extract(self, picture: Picture, rng: np.random.Generator) -> np.ndarray:
    return edges(picture.pixels)[..., None] * np.uint8(255)

  def features(self, stored: jax.Array) -> jax.Array:
    return stored.astype('float32') / 127.5 - 1

  def draw(self, stored: np.ndarray) -> np.ndarray:
    return np.repeat(255 - stored, 3, axis=-1)

  def fidelity(self, asked: np.ndarray, again: np.ndarray) -> dict[str, float]:
    """F1 of the edge pixels, each matched to an edge within one pixel."""
    a, b = asked[..., 0] > 127, again[..., 0] > 127
    if not a.any() and not b.any():
      return {'f1': 1.0}
    near = np.ones((3, 3), bool)
    matched_a = (a & scipy.ndimage.binary_dilation(b, near)).sum()
    matched_b = (b & scipy.ndimage.binary_dilation(a, near)).sum()
    recall, precision = matched_a / max(a.sum(), 1), matched_b / max(b.sum(), 1)
    return {'f1': float(2 * precision * recall / max(precision + recall, 1e-12))}
