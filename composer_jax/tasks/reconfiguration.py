"""Reconfiguration: an image with some of its conditions exchanged, all else kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from composer_jax.composer import Composer
from composer_jax.tasks.parts import reversible, take_apart

SAY_TOO = {
  'palette': ('intensity', 'semantics'),
  'sketch': ('instances', 'depth', 'intensity', 'semantics'),
  'instances': ('sketch', 'depth', 'intensity', 'semantics'),
  'depth': ('sketch', 'instances', 'intensity', 'semantics'),
  'caption': ('semantics',),
  'semantics': ('caption',),
}
"""By condition, those that say in part the same."""


def reconfiguration(
  composer: Composer,
  images: np.ndarray,
  edits: Mapping[str, np.ndarray | None],
  *,
  captions: Sequence[str] | None = None,
  sampling: Mapping[str, Any] | None = None,
) -> np.ndarray:
  """Draws images again from the noise that they come from, under edited conditions.

  DDIM inversion under an image's own conditions, then DDIM under the edited ones
  (Composer, section 2.3). The mask is left out: it would hold the pixels themselves.
  What says in part the same as an edited condition (`SAY_TOO`) is left out too, unless
  it is edited as well.

  Args:
    composer: the model.
    images: uint8 (B, S, S, 3), S a multiple of the base model's side.
    edits: by name, (B, *shape) instead of the image's own; None leaves it out.
    captions: B texts.
    sampling: as `Composer.compose` takes it; of it, `steps` and `spacing` count.

  Returns:
    uint8 (B, S', S', 3), S' the side that the cascade gives.

  Raises:
    ValueError: a condition is unknown to the model, or of the wrong shape.
  """
  if unknown := [name for name in edits if name not in composer.names]:
    raise ValueError(
      f'This model has no condition {unknown[0]!r}; it knows'
      f' {", ".join(composer.names)}.'
    )
  given = {name: value for name, value in edits.items() if value is not None}
  too = {other for name in given for other in SAY_TOO.get(name, ())} - given.keys()
  left_out = {'mask', *too, *(edits.keys() - given.keys())}
  own = take_apart(composer, images, captions=captions)
  own = {name: value for name, value in own.items() if name not in left_out}
  settings = reversible(sampling)
  noise = composer.invert(images, own, sampling=settings)
  seeds = np.zeros(len(images), np.int64)  # At eta 0, of the upsamplers alone.
  return composer.compose(own | given, seeds=seeds, sampling=settings, start=noise)
