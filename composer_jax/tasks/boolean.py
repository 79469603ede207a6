"""Boolean expressions: conditions joined by And, Or and Not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from composer_jax.composer import Composer
from composer_jax.sampling.expression import Expression, terms
from composer_jax.seeds import generator


def boolean(
  composer: Composer,
  expression: Expression,
  *,
  seeds: np.ndarray,
  sampling: Mapping[str, Any] | None = None,
) -> np.ndarray:
  """Draws images that follow an expression.

  Args:
    composer: the model.
    expression: as `sampling.expression.resolve` gives it, with stored values without a
      batch axis.
    seeds: integers (B,), also of the alternatives that an Or leaves open, and of the
      prior, which completes a caption.
    sampling: as `Composer.compose` takes it.

  Returns:
    uint8 (B, S, S, 3).
  """
  wishes = []
  for seed in seeds:
    first, *rest = terms(expression, generator(int(seed), 'expression'))
    whole = first._replace(values=composer.imagine(first.values, int(seed)))
    wishes.append([whole, *rest])
  return composer.compose_terms(wishes, seeds=seeds, sampling=sampling)
