"""Palette colorization: the light and shade of an image in given colours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from composer_jax.composer import Composer
from composer_jax.tasks.parts import known, take_apart


def colorization(
  composer: Composer,
  images: np.ndarray,
  palettes: np.ndarray,
  *,
  seeds: np.ndarray,
  sampling: Mapping[str, Any] | None = None,
) -> np.ndarray:
  """Draws images in other colours.

  The intensity holds light and shade, the sketch the lines, where the model knows it.

  Args:
    composer: the model.
    images: uint8 (B, S, S, 3); their colours do not count.
    palettes: float32 (B, 180), as `conditions.palette` gives them.
    seeds: integers (B,).
    sampling: as `Composer.compose` takes it.

  Returns:
    uint8 (B, S, S, 3).

  Raises:
    ValueError: the model does not know intensity and palette.
  """
  stored = take_apart(composer, images, ['intensity', *known(composer, ['sketch'])])
  stored['palette'] = palettes
  return composer.compose(stored, seeds=seeds, sampling=sampling)
