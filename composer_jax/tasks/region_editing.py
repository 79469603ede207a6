"""Region-specific editing: new content in one part of an image, the rest as it was."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from composer_jax.composer import Composer
from composer_jax.images import resize_squares
from composer_jax.regions import FEATHER, cover, lay_over


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
  laid over what it has drawn (see `regions.lay_over`). Images of the side that the
  cascade gives so keep them as they are; others, as resizing makes them.

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
