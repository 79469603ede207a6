"""Image translation: the shapes of an image as something that a text says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from composer_jax.composer import Composer
from composer_jax.tasks.parts import SHAPES, known, said, take_apart


def translation(
  composer: Composer,
  images: np.ndarray,
  captions: Sequence[str],
  *,
  seeds: np.ndarray,
  keep: Iterable[str] = SHAPES,
  palettes: np.ndarray | None = None,
  sampling: Mapping[str, Any] | None = None,
) -> np.ndarray:
  """Draws images anew in the shapes of others.

  Args:
    composer: the model.
    images: uint8 (B, S, S, 3), whose shapes are kept.
    captions: B texts that say what they become.
    seeds: integers (B,).
    keep: names of the conditions of the images that stay.
    palettes: float32 (B, 180), colours to take; the model's choice if None.
    sampling: as `Composer.compose` takes it.

  Returns:
    uint8 (B, S, S, 3).

  Raises:
    ValueError: the model has no dual encoder, or was trained without captions.
  """
  stored = take_apart(composer, images, known(composer, keep))
  stored |= said(composer, captions, seeds)
  if palettes is not None:
    stored['palette'] = palettes
  return composer.compose(stored, seeds=seeds, sampling=sampling)
