"""Virtual try-on: a garment from one image in a region of another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from composer_jax.composer import Composer
from composer_jax.tasks.parts import LOOKS, known, take_apart
from composer_jax.tasks.region_editing import region_editing


def try_on(
  composer: Composer,
  people: np.ndarray,
  garments: np.ndarray,
  regions: np.ndarray,
  *,
  seeds: np.ndarray,
  sampling: Mapping[str, Any] | None = None,
) -> np.ndarray:
  """Draws regions of images in the likeness of others.

  Args:
    composer: the model.
    people: uint8 (B, S, S, 3).
    garments: uint8 (B, S, S, 3): their embedding and colours come into the region.
    regions: bool (B, S, S), True where the old garment is.
    seeds: integers (B,).
    sampling: as `Composer.compose` takes it.

  Returns:
    uint8 (B, S', S', 3); outside the regions, the people's own pixels.
  """
  wishes = take_apart(composer, garments, known(composer, LOOKS))
  return region_editing(
    composer, people, regions, wishes, seeds=seeds, sampling=sampling
  )
