"""Parts of images: what stays of an original, and what is made beside it."""

from __future__ import annotations

import numpy as np
import scipy

FEATHER = 1 / 64
"""Width of the seam inside a region, as a share of the side."""


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
