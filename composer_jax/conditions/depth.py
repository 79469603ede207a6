"""Depth: how near each pixel is.

The paper uses MiDaS. The default here is a stand-in for flat art and says so: each
instance is inflated like a balloon, so that it is nearest where it is thickest.
"""

from __future__ import annotations

import jax
import numpy as np
import scipy

from composer_jax.conditions.condition import Condition, Spec
from composer_jax.conditions.instances import Instances
from composer_jax.images import Picture

NEAREST = 10.0
"""Largest stored value, as in the public video model of the paper's authors."""


def inflate(ids: np.ndarray) -> np.ndarray:
  """Balloons over instances.

  Args:
    ids: integer (H, W), 0 background.

  Returns:
    float64 (H, W) in 0 (far) to 10: the height of a half circle over the
    distance to the outline, with the half image side as 10.
  """
  height = np.zeros(ids.shape)
  for instance in range(1, int(ids.max()) + 1):
    inside = np.pad(ids == instance, 1)
    reach = scipy.ndimage.distance_transform_edt(inside)[1:-1, 1:-1]
    radius = reach.max()
    # A circle's height at distance r from its rim: sqrt(R^2 - (R - r)^2).
    height += np.sqrt(np.maximum(radius**2 - (radius - reach) ** 2, 0)) * (reach > 0)
  return np.clip(height / (max(ids.shape) / 2) * NEAREST, 0, NEAREST)


class Depth(Condition):
  """How near each pixel is, 0 far to 10 near."""

  name = 'depth'
  higher_is_better = {'rank_correlation': True, 'rmse': False}

  def spec(self, size: int) -> Spec:
    return Spec(
      shape=(size, size, 1),
      dtype='float16',
      low=0,
      high=NEAREST,
      unit='relative inverse depth, 0 far, 10 near',
      source='stand-in: inflated instances, not measured depth',
    )

  def extract(self, picture: Picture, rng: np.random.Generator) -> np.ndarray:
    ids = Instances().extract(picture, rng)[..., 0]
    return inflate(ids)[..., None].astype(np.float16)

  def features(self, stored: jax.Array) -> jax.Array:
    return stored.astype('float32') / (NEAREST / 2) - 1

  def draw(self, stored: np.ndarray) -> np.ndarray:
    import matplotlib

    shade = np.clip(stored[..., 0].astype(float) / NEAREST, 0, 1)
    return np.round(matplotlib.colormaps['magma'](shade)[..., :3] * 255).astype('u1')

  def fidelity(self, asked: np.ndarray, again: np.ndarray) -> dict[str, float]:
    return rank_fidelity(asked / NEAREST, again / NEAREST)


def rank_fidelity(asked: np.ndarray, again: np.ndarray) -> dict[str, float]:
  """Agreement of two maps in [0, 1]: Spearman's correlation and RMSE."""
  a, b = asked.astype(np.float64).ravel(), again.astype(np.float64).ravel()
  # A constant map orders nothing; say so with 0 rather than with NaN.
  flat = np.ptp(a) == 0 or np.ptp(b) == 0
  return {
    'rank_correlation': 0.0 if flat else float(scipy.stats.spearmanr(a, b).statistic),
    'rmse': float(np.sqrt(np.mean((a - b) ** 2))),
  }
