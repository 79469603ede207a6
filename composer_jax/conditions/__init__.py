"""The eight conditions of Composer; this list is the only place that knows them all."""

from __future__ import annotations

from collections.abc import Iterable

from composer_jax.conditions.caption import Caption
from composer_jax.conditions.condition import (
  Condition,
  Encoder,
  GlobalFeatures,
  Spec,
)
from composer_jax.conditions.depth import Depth
from composer_jax.conditions.instances import Instances
from composer_jax.conditions.intensity import Intensity
from composer_jax.conditions.mask import Mask
from composer_jax.conditions.palette import Palette
from composer_jax.conditions.semantics import Semantics
from composer_jax.conditions.sketch import Sketch

__all__ = [
  'ALL',
  'Condition',
  'Encoder',
  'GlobalFeatures',
  'Spec',
  'by_name',
  'obtainable',
]

ALL: tuple[Condition, ...] = (
  Caption(),
  Semantics(),
  Palette(),
  Sketch(),
  Instances(),
  Depth(),
  Intensity(),
  Mask(),
)


def by_name(names: Iterable[str]) -> tuple[Condition, ...]:
  """The named conditions, in the order of `ALL`.

  Raises:
    ValueError: a name is unknown.
  """
  known = {condition.name: condition for condition in ALL}
  names = list(names)
  unknown = [name for name in names if name not in known]
  if unknown:
    raise ValueError(
      f'Unknown condition {unknown[0]!r}; expected any of {", ".join(known)}.'
    )
  return tuple(c for c in ALL if c.name in names)


def obtainable(names: Iterable[str], encoder: Encoder | None) -> list[str]:
  """Those that can be had of an image, in the order of `ALL`.

  Args:
    names: of conditions.
    encoder: without one, those that need it cannot.

  Raises:
    ValueError: a name is unknown.
  """
  return [c.name for c in by_name(names) if encoder is not None or not c.embedded]
