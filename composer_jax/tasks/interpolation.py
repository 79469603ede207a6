"""Interpolation: from one image to another, by all or some of what they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from composer_jax.composer import Composer
from composer_jax.tasks.parts import between, slerp, take_apart

INVERSION = {'sampler': 'ddim', 'eta': 0.0, 'guidance': 1.0}
"""Settings of the sampling under which the way from noise to image can be gone back."""


def interpolation(
  composer: Composer,
  first: np.ndarray,
  second: np.ndarray,
  shares: np.ndarray,
  *,
  names: Iterable[str] = ('semantics', 'palette'),
  held: Iterable[str] = (),
  sampling: Mapping[str, Any] | None = None,
) -> np.ndarray:
  """Draws images on the way from one to another.

  Both are inverted to noise under their own conditions. What is drawn comes from the
  noise between, under the conditions between (Composer, section 3.2).

  Args:
    composer: the model.
    first: uint8 (S, S, 3), where a share is 0.
    second: uint8 (S, S, 3), where it is 1.
    shares: float (N,), from 0 to 1.
    names: of the global conditions that go from those of the first to those of the
      second.
    held: of conditions of any kind that stay those of the first image.
    sampling: as `Composer.compose` takes it; of it, `steps` and `spacing` count.

  Returns:
    uint8 (N, S, S, 3).

  Raises:
    ValueError: a condition is unknown to the model; or is to go, and is a map.
  """
  names, held = list(names), list(held)
  pair = np.stack([first, second])
  ends = take_apart(composer, pair, dict.fromkeys([*names, *held]))
  settings = {**(sampling or {}), **INVERSION}
  count = len(shares)

  def repeated(values: np.ndarray, row: int) -> np.ndarray:
    return np.stack([values[row]] * count)

  stored = {
    name: between(name, repeated(ends[name], 0), repeated(ends[name], 1), shares)
    for name in names
  }
  stored |= {name: repeated(ends[name], 0) for name in held}
  noise = composer.invert(pair, ends, sampling=settings)
  start = slerp(repeated(noise, 0), repeated(noise, 1), shares)
  seeds = np.zeros(count, np.int64)
  return composer.compose(stored, seeds=seeds, sampling=settings, start=start)
