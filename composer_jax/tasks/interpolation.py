"""Interpolation: from one image to another, by all or some of what they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from composer_jax.composer import Composer
from composer_jax.tasks.parts import LOOKS, between, reversible, slerp, take_apart


def interpolation(
  composer: Composer,
  first: np.ndarray,
  second: np.ndarray,
  shares: np.ndarray,
  *,
  names: Iterable[str] = LOOKS,
  held: Iterable[str] = (),
  sampling: Mapping[str, Any] | None = None,
) -> np.ndarray:
  """Draws images on the way from some to others.

  Both ends are inverted to noise under their own conditions. What is drawn comes from
  the noise between, under the conditions between (Composer, section 3.2).

  Args:
    composer: the model.
    first: uint8 (B, S, S, 3), where a share is 0; S a multiple of the base's side.
    second: uint8 (B, S, S, 3), where it is 1.
    shares: float (B,), from 0 to 1.
    names: of the global conditions that go from those of the first to those of the
      second.
    held: of conditions of any kind that stay those of the first.
    sampling: as `Composer.compose` takes it; of it, `steps` and `spacing` count.

  Returns:
    uint8 (B, S', S', 3), S' the side that the cascade gives.

  Raises:
    ValueError: the numbers of images and shares differ, a condition is unknown to the
      model, or one is to go between whose values nothing lies.
  """
  names, held = list(names), list(held)
  if not len(first) == len(second) == len(shares):
    raise ValueError(
      f'{len(first)} and {len(second)} images and {len(shares)} shares; expected as'
      ' many of each.'
    )
  settings = reversible(sampling)

  def noise_of(images: np.ndarray, own: Mapping[str, np.ndarray]) -> np.ndarray:
    """The noise behind images; equal ones are inverted once."""
    _, places, rows = np.unique(images, axis=0, return_index=True, return_inverse=True)
    once = {name: value[places] for name, value in own.items()}
    return composer.invert(images[places], once, sampling=settings)[rows.ravel()]

  a, b = (
    take_apart(composer, images, dict.fromkeys([*names, *held]))
    for images in (first, second)
  )
  stored = a | {name: between(name, a[name], b[name], shares) for name in names}
  return composer.compose(
    stored,
    seeds=np.zeros(len(shares), np.int64),  # At eta 0, of the upsamplers alone.
    sampling=settings,
    start=slerp(noise_of(first, a), noise_of(second, b), shares),
  )
