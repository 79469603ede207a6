"""Style transfer: what one image shows, in the manner of another."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from composer_jax.composer import Composer
from composer_jax.tasks.parts import LOOKS, SHAPES, between, known, take_apart


def style_transfer(
  composer: Composer,
  contents: np.ndarray,
  styles: np.ndarray,
  strengths: np.ndarray,
  *,
  seeds: np.ndarray,
  keep: Iterable[str] = SHAPES,
  sampling: Mapping[str, Any] | None = None,
) -> np.ndarray:
  """Draws images in the style of others.

  Embedding and palette are the style, and go from the content's own to the other's
  with the strength; lines and shapes are the content (Composer, section 3.3). No noise
  is added on the way (DDIM at eta 0), so that images of one seed differ by the strength
  alone.

  Args:
    composer: the model.
    contents: uint8 (B, S, S, 3).
    styles: uint8 (B, S, S, 3).
    strengths: float (B,): 0 is the content's own style, 1 the other's.
    seeds: integers (B,).
    keep: names of the conditions of the content that stay.
    sampling: as `Composer.compose` takes it; `eta` is 0 if missing.

  Returns:
    uint8 (B, S, S, 3).
  """
  style, keep = known(composer, LOOKS), known(composer, keep)
  own = take_apart(composer, contents, [*style, *keep])
  other = take_apart(composer, styles, style)
  moved = {name: between(name, own[name], other[name], strengths) for name in style}
  settings = {'eta': 0.0, **(sampling or {})}
  return composer.compose({**own, **moved}, seeds=seeds, sampling=settings)
