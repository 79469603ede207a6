"""Variations: an image again, of which only some conditions are kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from composer_jax.composer import Composer
from composer_jax.tasks.parts import LOOKS, take_apart


def variation(
  composer: Composer,
  images: np.ndarray,
  *,
  seeds: np.ndarray,
  keep: Iterable[str] = LOOKS,
  sampling: Mapping[str, Any] | None = None,
) -> np.ndarray:
  """Draws other images that share some conditions with given ones.

  Args:
    composer: the model.
    images: uint8 (B, S, S, 3).
    seeds: integers (B,).
    keep: names of the conditions that stay; the fewer, the freer.
    sampling: as `Composer.compose` takes it.

  Returns:
    uint8 (B, S, S, 3).

  Raises:
    ValueError: a condition is unknown to the model.
  """
  stored = take_apart(composer, images, keep)
  return composer.compose(stored, seeds=seeds, sampling=sampling)
