"""Compositional generation: each condition from an image of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from composer_jax.composer import Composer
from composer_jax.tasks.parts import take_apart


def composition(
  composer: Composer,
  sources: Mapping[str, np.ndarray],
  *,
  seeds: np.ndarray,
  sampling: Mapping[str, Any] | None = None,
) -> np.ndarray:
  """Draws images that take each condition from another source.

  Args:
    composer: the model.
    sources: condition name to the images it is taken from, uint8 (B, S, S, 3).
    seeds: integers (B,).
    sampling: as `Composer.compose` takes it.

  Returns:
    uint8 (B, S, S, 3).

  Raises:
    ValueError: a condition is unknown to the model.
  """
  stored = {
    name: take_apart(composer, images, [name])[name] for name, images in sources.items()
  }
  return composer.compose(stored, seeds=seeds, sampling=sampling)
