"""Reconfiguration: an image with some of its conditions exchanged, all else kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from composer_jax.composer import Composer
from composer_jax.tasks.interpolation import INVERSION
from composer_jax.tasks.parts import take_apart


def reconfiguration(
  composer: Composer,
  images: np.ndarray,
  edits: Mapping[str, np.ndarray],
  *,
  captions: list[str] | None = None,
  sampling: Mapping[str, Any] | None = None,
) -> np.ndarray:
  """Draws images again from the noise that they come from, under edited conditions.

  DDIM inversion under an image's own conditions, then DDIM under the edited ones
  (Composer, section 2.3). The mask is left out: it would hold the pixels themselves.
  A condition that says the same as an edited one is dropped: intensity and depth under
  an edited sketch, for instance, are for the caller to edit as well, or to drop by
  None.

  Args:
    composer: the model.
    images: uint8 (B, S, S, 3), S a multiple of the base model's side.
    edits: by name, (B, *shape) instead of the image's own; None drops it, in both
      directions.
    captions: B texts.
    sampling: as `Composer.compose` takes it; of it, `steps` and `spacing` count.

  Returns:
    uint8 (B, S, S, 3).

  Raises:
    ValueError: a condition is unknown to the model, or of the wrong shape.
  """
  own = take_apart(composer, images, captions=captions)
  dropped = {'mask', *(name for name, value in edits.items() if value is None)}
  own = {name: value for name, value in own.items() if name not in dropped}
  settings = {**(sampling or {}), **INVERSION}
  noise = composer.invert(images, own, sampling=settings)
  edited = own | {name: value for name, value in edits.items() if value is not None}
  seeds = np.zeros(len(images), np.int64)
  return composer.compose(edited, seeds=seeds, sampling=settings, start=noise)
