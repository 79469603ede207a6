"""Region-specific editing: new content in one part of an image, the rest as it was."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy

from composer_jax.composer import Composer
from composer_jax.images import resize_squares

FEATHER = 1 / 64
"""Width of the seam inside a region, as a share of the side."""


def region_editing(
  composer: Composer,
  images: np.ndarray,
  regions: np.ndarray,
  wishes: Mapping[str, np.ndarray],
  *,
  seeds: np.ndarray,
  feather: float = FEATHER,
  sampling: Mapping[str, Any] | None = None,
) -> np.ndarray:
  """Draws a region of images anew.

  The mask condition gives the model the pixels outside the region; afterwards they are
  laid over what it has drawn (see `lay_over`). Images of the side that the cascade
  gives so keep them as they are; others, as resizing makes them.

  Args:
    composer: the model.
    images: uint8 (B, S, S, 3).
    regions: bool (B, S, S), True where the image may change.
    wishes: other conditions (B, *shape) by name, for what comes into the region.
    seeds: integers (B,).
    feather: width of the seam inside the region, as a share of the side; 0 for none.
    sampling: as `Composer.compose` takes it.

  Returns:
    uint8 (B, S', S', 3), S' the side that the cascade gives.
  """
  stored = {**wishes, 'mask': given_outside(composer, images, regions)}
  made = composer.compose(stored, seeds=seeds, sampling=sampling)
  side = made.shape[1]
  originals = resize_squares(images, side)
  return lay_over(made, originals, cover(regions, side), feather * side)


def lay_over(
  made: np.ndarray, originals: np.ndarray, regions: np.ndarray, feather: float
) -> np.ndarray:
  """Originals outside of regions, what was made inside, and no seam between them.

  Inside, each pixel takes on that of the original nearest to it, in a share that falls
  with the distance as exp(-(d - 1/2) / feather).

  Args:
    made: uint8 (B, S, S, 3).
    originals: uint8 (B, S, S, 3).
    regions: bool (B, S, S).
    feather: in pixels; 0 for a hard edge.

  Returns:
    uint8 (B, S, S, 3), outside of the regions the originals to the bit.
  """
  laid = np.where(regions[..., None], made, originals)
  if not feather:
    return laid
  for image, original, region in zip(laid, originals, regions, strict=True):
    if region.all():
      continue
    distance, (rows, columns) = scipy.ndimage.distance_transform_edt(
      region, return_indices=True
    )
    share = np.exp(-(distance - 0.5) / feather)[..., None]
    nearest = original[rows, columns]
    blended = np.rint(image + share * (nearest.astype(np.float32) - image))
    image[region] = blended[region].astype(np.uint8)
  return laid


def given_outside(
  composer: Composer, images: np.ndarray, regions: np.ndarray
) -> np.ndarray:
  """The mask condition that shows what lies outside regions: uint8 (B, s, s, 4).

  A pixel of the map that lies partly inside a region is hidden.
  """
  side = composer.condition_size
  pixels = resize_squares(images, side)
  shown = np.where(cover(regions, side), 0, 255).astype(np.uint8)[..., None]
  return np.concatenate([np.where(shown > 0, pixels, 0).astype(np.uint8), shown], -1)


def cover(regions: np.ndarray, side: int) -> np.ndarray:
  """Regions at another side, True where any part was: bool (B, side, side)."""
  size = regions.shape[1]
  begin = np.arange(side) * size // side
  end = np.maximum(-(-(np.arange(side) + 1) * size // side), begin + 1)
  rows = np.stack(
    [regions[:, a:b].any(1) for a, b in zip(begin, end, strict=True)], axis=1
  )
  columns = [rows[:, :, a:b].any(2) for a, b in zip(begin, end, strict=True)]
  return np.stack(columns, axis=2)
