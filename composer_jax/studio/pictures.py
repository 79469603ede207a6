"""Conditions as pictures to look at and to draw on, and drawings as conditions."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from composer_jax.conditions import Condition, by_name
from composer_jax.conditions.palette import SIGMA, codebook, distances, from_colours
from composer_jax.images import Picture, encode_png, open_image
from composer_jax.studio.limits import Limits

MAX_COLOURS = 12
"""Colours of a palette that is edited."""
_PREFIX = 'data:image/png;base64,'


def data_uri(png: bytes) -> str:
  """A PNG file as the address of an image in a page."""
  return _PREFIX + base64.b64encode(png).decode()


def from_data_uri(text: Any, side: int) -> Picture:
  """A drawing that a page sends: a PNG of `side` x `side` pixels.

  Raises:
    ValueError: it is none.
  """
  if not isinstance(text, str) or not text.startswith(_PREFIX):
    raise ValueError('A drawing came in no form that the studio knows; draw it again.')
  if len(text) > 64 + side * side * 8:
    raise ValueError(f'A drawing has {len(text):,} bytes, too many for {side} pixels.')
  try:
    png = base64.b64decode(text[len(_PREFIX) :], validate=True)
  except binascii.Error as error:
    raise ValueError(f'A drawing is damaged ({error}); draw it again.') from error
  picture = open_image(png, name='The drawing', at_most=side * side)
  if picture.pixels.shape[:2] != (side, side):
    height, width = picture.pixels.shape[:2]
    raise ValueError(
      f'A drawing has {width} x {height} pixels; expected {side} a side.'
    )
  return picture


def picture_of(condition: Condition, value: np.ndarray) -> str:
  """How a stored condition is shown."""
  return data_uri(encode_png(condition.draw(value)))


@dataclasses.dataclass(frozen=True)
class Canvas:
  """How a local condition is drawn by hand.

  Attributes:
    hint: what to do, in a line.
    paints: names and colours (#rrggbb) to paint with; the second rubs out. With a name
      `gray`, any gray is chosen by a slider.
    layer: from a stored value to the layer to draw on, uint8 (S, S, 3) or (S, S, 4).
    value: from the layer, and the pixels (S, S, 3) of the image it belongs to, to what
      is stored.
    empty: from the side to the value of an empty drawing.
    behind: whether the image is shown behind the layer.
  """

  hint: str
  paints: Sequence[tuple[str, str]]
  layer: Callable[[np.ndarray], np.ndarray]
  value: Callable[[Picture, np.ndarray], np.ndarray]
  empty: Callable[[int], np.ndarray]
  behind: bool = False


def _gray(layer: Picture) -> np.ndarray:
  return layer.pixels.mean(-1, keepdims=True)


def _ids_of(layer: Picture, table: np.ndarray) -> np.ndarray:
  """The nearest colour of a table to each pixel, uint8 (S, S, 1)."""
  pixels = layer.pixels.astype(int)[:, :, None]
  far = ((pixels - table.astype(int)) ** 2).sum(-1)
  return far.argmin(-1)[..., None].astype(np.uint8)


def _hex(colour: np.ndarray) -> str:
  return '#' + ''.join(f'{int(c):02x}' for c in colour)


def _instances() -> Canvas:
  (condition,) = by_name(['instances'])
  most = int(condition.spec(1).high)
  table = condition.draw(np.arange(most + 1, dtype=np.uint8)[None, :, None])[0]
  names = ['thing 1', 'ground', *(f'thing {i}' for i in range(2, most + 1))]
  order = [1, 0, *range(2, most + 1)]
  return Canvas(
    hint='One colour for each thing; gray is the ground.',
    paints=[(name, _hex(table[i])) for name, i in zip(names, order, strict=True)],
    layer=condition.draw,
    value=lambda layer, _: _ids_of(layer, table),
    empty=lambda side: np.zeros((side, side, 1), np.uint8),
  )


def _depth() -> Canvas:
  (condition,) = by_name(['depth'])
  near = condition.spec(1).high
  return Canvas(
    hint='The lighter, the nearer.',
    paints=[('gray', '#ffffff'), ('far away', '#000000')],
    layer=lambda value: np.repeat(_to_u8(value.astype(float) * 255 / near), 3, -1),
    value=lambda layer, _: (_gray(layer) * near / 255).astype(np.float16),
    empty=lambda side: np.zeros((side, side, 1), np.float16),
  )


def _to_u8(values: np.ndarray) -> np.ndarray:
  return np.clip(np.round(values), 0, 255).astype(np.uint8)


def _hidden(value: np.ndarray) -> np.ndarray:
  """The layer of a mask: opaque where the image is to be drawn anew."""
  layer = np.zeros_like(value)
  layer[value[..., 3] <= 127] = (224, 64, 160, 255)
  return layer


def _mask(layer: Picture, image: np.ndarray) -> np.ndarray:
  nothing = np.zeros(image.shape[:2], np.uint8)
  painted = layer.alpha
  if painted is None:  # Nothing of the layer is transparent: all of it is painted.
    painted = np.full_like(nothing, 255)
  shown = np.where(painted > 127, 0, 255).astype(np.uint8)[..., None]
  return np.concatenate([np.where(shown, image, 0).astype(np.uint8), shown], -1)


CANVASES: dict[str, Canvas] = {
  'sketch': Canvas(
    hint='Thin lines on white. The image shines through, to be traced.',
    paints=[('line', '#000000'), ('eraser', '#ffffff')],
    layer=lambda value: np.repeat(255 - value, 3, -1),
    value=lambda layer, _: np.where(_gray(layer) < 128, 255, 0).astype(np.uint8),
    empty=lambda side: np.zeros((side, side, 1), np.uint8),
    behind=True,
  ),
  'instances': _instances(),
  'depth': _depth(),
  'intensity': Canvas(
    hint='Light and shade.',
    paints=[('gray', '#ffffff'), ('black', '#000000')],
    layer=lambda value: np.repeat(value, 3, -1),
    value=lambda layer, _: _to_u8(_gray(layer)),
    empty=lambda side: np.full((side, side, 1), 128, np.uint8),
  ),
  'mask': Canvas(
    hint='Paint over what is to be drawn anew; the rest stays.',
    paints=[('drawn anew', '#e040a0'), ('kept', 'transparent')],
    layer=_hidden,
    value=_mask,
    empty=lambda side: np.full((side, side, 4), 255, np.uint8),
    behind=True,
  ),
}
"""By name, the conditions that can be drawn."""


def colours_of(value: np.ndarray) -> list[dict[str, Any]]:
  """The main colours of a palette, the most of them first: `colour` and `weight`."""
  # Smoothing spread each colour over its neighbours; the peaks are what it came from.
  near = distances() < 1.5 * SIGMA
  peaks = np.flatnonzero(value >= np.where(near, value, 0).max(1))
  peaks = peaks[value[peaks] > 0.01]
  peaks = peaks[np.argsort(-value[peaks])][:MAX_COLOURS]
  share = value[peaks] / max(value[peaks].sum(), 1e-12)
  return [
    {'colour': _hex(codebook()[i]), 'weight': max(1, round(100 * float(s)))}
    for i, s in zip(peaks, share, strict=True)
  ]


def palette_of(colours: Any) -> np.ndarray:
  """A palette from colours and weights, as `colours_of` gives them.

  Raises:
    ValueError: they are none.
  """
  if not isinstance(colours, list) or not 1 <= len(colours) <= MAX_COLOURS:
    raise ValueError(f'A palette needs 1 to {MAX_COLOURS} colours.')
  rows, weights = [], []
  for each in colours:
    colour, weight = (
      (each.get('colour'), each.get('weight')) if isinstance(each, dict) else (each, 1)
    )
    if not isinstance(colour, str) or not re.fullmatch('#[0-9a-fA-F]{6}', colour):
      raise ValueError(f'{colour!r:.40} is no colour; expected one like #aa3322.')
    rows.append([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    weights.append(Limits.number(weight, f'The weight of {colour}', 0.01, 1e6))
  return from_colours(np.array(rows, np.uint8), np.array(weights))
