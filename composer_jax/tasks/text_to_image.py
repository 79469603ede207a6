"""Text to image: a caption, the prior's image embedding of it, the cascade."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from composer_jax.composer import Composer
from composer_jax.tasks.parts import said


def text_to_image(
  composer: Composer,
  captions: Sequence[str],
  *,
  seeds: np.ndarray,
  prior: bool = True,
  sampling: Mapping[str, Any] | None = None,
) -> np.ndarray:
  """Draws what texts say.

  Args:
    composer: the model.
    captions: B texts.
    seeds: integers (B,), of the prior and of the cascade.
    prior: whether the prior makes an image embedding of each caption first.
    sampling: as `Composer.compose` takes it.

  Returns:
    uint8 (B, S, S, 3).

  Raises:
    ValueError: the model has no dual encoder, or was trained without captions.
  """
  stored = said(composer, captions, seeds, prior=prior)
  return composer.compose(stored, seeds=seeds, sampling=sampling)
