"""What tasks share: taking images apart, and going between two of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from composer_jax.composer import REVERSIBLE, Composer, seen_by, square_of
from composer_jax.conditions import by_name, obtainable
from composer_jax.images import Picture

LOOKS = ('semantics', 'palette')
"""Conditions that say how an image looks, and not where anything is."""
SHAPES = ('sketch', 'instances', 'depth')
"""Conditions that say where things are, and not how they look."""


def take_apart(
  composer: Composer,
  images: np.ndarray,
  names: Iterable[str] | None = None,
  captions: Sequence[str] | None = None,
) -> dict[str, np.ndarray]:
  """Conditions of images, as batches.

  Args:
    composer: what it knows is extracted; what needs an encoder that it lacks is not.
    images: uint8 (B, S, S, 3). Equal ones are taken apart once.
    names: of the conditions wanted; all that can be had if None.
    captions: B texts; none if None.

  Returns:
    Stored conditions (B, *shape) by name.

  Raises:
    ValueError: the model does not know one of `names`, or it cannot be taken from an
      image: a caption, or the mask, which says what part of an image is given.
  """
  texts = [''] * len(images) if captions is None else list(captions)
  names = None if names is None else list(names)
  for condition in by_name(names or ()):
    needs_text = condition.from_text and captions is None
    if needs_text or condition.name == 'mask':
      raise ValueError(f'{condition.name} cannot be taken from an image.')
  there = obtainable(composer.names, composer.encoder)
  names = there if names is None else names
  if missing := [name for name in names if name not in there]:
    raise ValueError(
      f'This model cannot take {missing[0]} from an image; it can take'
      f' {", ".join(there)}.'
    )
  first: dict[tuple[bytes, str], int] = {}
  keys = zip((image.tobytes() for image in images), texts, strict=True)
  places = [first.setdefault(key, len(first)) for key in keys]
  chosen = [places.index(place) for place in range(len(first))]
  pictures = [Picture(images[row]) for row in chosen]
  wanted = by_name(names)
  plain = [c.name for c in wanted if not c.embedded]
  parts = [composer.decompose(one, names=plain) for one in pictures]
  found = {name: np.stack([part[name] for part in parts])[places] for name in plain}
  for condition in wanted:
    if condition.embedded:
      encoder, size = composer.encoder, composer.condition_size
      assert encoder is not None  # Else it is not there.
      squares = [square_of(one, size) for one in pictures]
      seen = [seen_by(encoder, *pair) for pair in zip(pictures, squares, strict=True)]
      values = condition.embed(encoder, np.stack(seen), [texts[row] for row in chosen])
      found[condition.name] = values[places]
  return {name: found[name] for name in names}


def said(
  composer: Composer, captions: Sequence[str], seeds: np.ndarray, *, prior: bool = True
) -> dict[str, np.ndarray]:
  """What captions ask for, as batches.

  Args:
    composer: the model.
    captions: B texts.
    seeds: integers (B,), of the prior.
    prior: whether it completes them by an image embedding.

  Raises:
    ValueError: the model has no dual encoder, or was trained without captions.
  """
  wishes = [composer.embed_caption(text) for text in captions]
  if prior:
    wishes = [
      composer.imagine(wish, int(seed))
      for wish, seed in zip(wishes, seeds, strict=True)
    ]
  return {name: np.stack([wish[name] for wish in wishes]) for name in wishes[0]}


def known(composer: Composer, names: Iterable[str]) -> list[str]:
  """Those of some conditions that a model knows."""
  return [name for name in names if name in composer.names]


def reversible(sampling: Mapping[str, Any] | None) -> dict[str, Any]:
  """Settings under which the way back is the way there; steps and spacing stay."""
  asked = sampling or {}
  return {n: asked[n] for n in ('steps', 'spacing') if n in asked} | REVERSIBLE


def slerp(a: np.ndarray, b: np.ndarray, share: np.ndarray) -> np.ndarray:
  """Between vectors along the arc, lengths linearly (Shoemake 1985).

  Args:
    a: float (B, ...), where `share` is 0; axes after the first are one vector.
    b: float (B, ...), where it is 1.
    share: float (B,).

  Returns:
    float32 (B, ...).
  """
  count = len(a)
  u, v = (np.asarray(x, np.float64).reshape(count, -1) for x in (a, b))
  share = np.asarray(share, np.float64)[:, None]
  lengths = [
    np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (u, v)
  ]
  u, v = u / lengths[0], v / lengths[1]
  angle = np.arccos(np.clip((u * v).sum(1, keepdims=True), -1, 1))
  sine = np.sin(angle)
  near = sine < 1e-6
  safe = np.where(near, 1.0, sine)
  first = np.where(near, 1 - share, np.sin((1 - share) * angle) / safe)
  second = np.where(near, share, np.sin(share * angle) / safe)
  length = (1 - share) * lengths[0] + share * lengths[1]
  return (length * (first * u + second * v)).reshape(a.shape).astype(np.float32)


def between(name: str, a: np.ndarray, b: np.ndarray, share: np.ndarray) -> np.ndarray:
  """Between two values of a global condition.

  The image embedding goes along the arc. A palette is a share of pixels, so it goes
  along the line, and what lies between is the palette of an image that has parts of
  both.

  Args:
    name: `semantics` or `palette`.
    a: (B, *shape), where `share` is 0.
    b: (B, *shape), where it is 1.
    share: float (B,), from 0 to 1.

  Raises:
    ValueError: nothing lies between two values of it.
  """
  if name == 'semantics':
    return slerp(a, b, share).astype(a.dtype)
  if name == 'palette':
    weight = np.asarray(share, np.float32)[:, None]
    return ((1 - weight) * a + weight * b).astype(a.dtype)
  raise ValueError(
    f'Nothing lies between two values of {name}; expected semantics or palette.'
  )
