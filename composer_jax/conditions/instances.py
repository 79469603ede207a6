"""Instances: which pixels belong to the same thing.

The paper draws the masks of an instance segmenter. The default here needs no
weights: connected parts of the transparency mask where the image has one, else
a graph-based segmentation (Felzenszwalb and Huttenlocher 2004).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import scipy
import skimage

from composer_jax.conditions.condition import Condition, Spec
from composer_jax.images import Picture

MAX_INSTANCES = 15
MIN_SHARE = 0.004
"""Parts below this share of the image are not instances."""


def number_by_size(labels: np.ndarray) -> np.ndarray:
  """Renumbers parts from 1 by falling area; 0 stays the background."""
  area = np.bincount(labels.ravel())
  area[0] = 0
  order = np.argsort(-area, kind='stable')[:MAX_INSTANCES]
  order = order[area[order] >= MIN_SHARE * labels.size]
  ids = np.zeros(len(area), np.uint8)
  ids[order] = np.arange(1, len(order) + 1)
  return ids[labels]


def segment(pixels: np.ndarray) -> np.ndarray:
  """Parts of similar colour: uint8 sRGB (H, W, 3) to uint8 ids (H, W).

  The part that owns most of the border is the background, 0.
  """
  smallest = max(4, int(MIN_SHARE * pixels.shape[0] * pixels.shape[1]))
  labels = skimage.segmentation.felzenszwalb(
    pixels, scale=100, sigma=0.5, min_size=smallest
  )
  # Smoothing blends colours along outlines; a part without a 3 x 3 core is such a
  # rim, and goes to what is nearest.
  lowest = scipy.ndimage.minimum_filter(labels, 3)
  core = lowest == scipy.ndimage.maximum_filter(labels, 3)
  thin = ~np.isin(labels, labels[core])
  if not thin.all():
    nearest = scipy.ndimage.distance_transform_edt(
      thin, return_distances=False, return_indices=True
    )
    labels = labels[tuple(nearest)]
  border = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
  background = np.bincount(border).argmax()
  return number_by_size(np.where(labels == background, 0, labels + 1))


def codes() -> jax.Array:
  """A colour for each id in [-1, 1], (MAX_INSTANCES + 1, 3); 0 is background."""
  index = jnp.arange(1, MAX_INSTANCES + 1)
  # Irrational steps along each axis keep all pairs of colours far apart
  # (Roberts's R3 sequence).
  steps = jnp.array([0.8191725, 0.6710436, 0.5497005])
  colours = 2 * ((0.5 + index[:, None] * steps) % 1.0) - 1
  return jnp.concatenate([jnp.zeros((1, 3)), colours])


class Instances(Condition):
  """Which pixels belong together, as small ids ordered by area."""

  name = 'instances'
  higher_is_better = {'mean_iou': True}

  def spec(self, size: int) -> Spec:
    return Spec(
      shape=(size, size, 1),
      dtype='uint8',
      low=0,
      high=MAX_INSTANCES,
      unit='instance id by falling area, 0 background',
      source='parts of the alpha mask, else Felzenszwalb segmentation',
    )

  def extract(self, picture: Picture, rng: np.random.Generator) -> np.ndarray:
    if picture.alpha is None:
      return segment(picture.pixels)[..., None]
    eight = np.ones((3, 3), int)
    labels, _ = scipy.ndimage.label(picture.alpha > 127, eight)
    return number_by_size(labels)[..., None]

  def features(self, stored: jax.Array) -> jax.Array:
    ids = stored[..., 0].astype('int32')
    inside = jnp.where(ids > 0, 1.0, -1.0)[..., None]
    return jnp.concatenate([codes()[ids], inside], axis=-1)

  def draw(self, stored: np.ndarray) -> np.ndarray:
    import matplotlib

    colours = matplotlib.colormaps['tab20'](np.arange(MAX_INSTANCES))[:, :3]
    table = np.concatenate([[[0.93, 0.93, 0.93]], colours])
    return np.round(table[stored[..., 0]] * 255).astype(np.uint8)

  def fidelity(self, asked: np.ndarray, again: np.ndarray) -> dict[str, float]:
    """IoU averaged over the asked instances and the background.

    Ids are arbitrary, so instances are matched one to one for the largest sum.
    """
    a, b = asked[..., 0].astype(int), again[..., 0].astype(int)
    count = MAX_INSTANCES + 1
    both = np.bincount((a * count + b).ravel(), minlength=count**2).reshape(count, -1)
    union = both.sum(1)[:, None] + both.sum(0)[None] - both
    iou = both / np.maximum(union, 1)
    rows, columns = scipy.optimize.linear_sum_assignment(-iou[1:, 1:])
    matched = np.concatenate([[iou[0, 0]], iou[1:, 1:][rows, columns]])
    wanted = both.sum(1) > 0
    return {'mean_iou': float(matched[wanted].mean())}
