"""What tasks are told on the command line, and how it is read."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np

from composer_jax import conditions
from composer_jax.commands.compose import parse_palette
from composer_jax.images import open_image


def _names(text: str) -> tuple[str, ...]:
  return tuple(c.name for c in conditions.by_name(n.strip() for n in text.split(',')))


def _checked(parse: Callable[[str], Any]) -> Callable[[str], Any]:
  """What `parse` says of a bad text becomes what the command line says."""

  def read(text: str) -> Any:
    try:
      return parse(text)
    except ValueError as error:
      raise argparse.ArgumentTypeError(str(error)) from error

  return read


def _share(text: str) -> float:
  share = float(text)
  if not 0 <= share <= 1:
    raise ValueError(f'{text}, expected 0 to 1')
  return share


def _source(text: str) -> tuple[str, str]:
  """`sketch=a.png` to its two parts."""
  name, equals, path = text.partition('=')
  if not equals:
    raise ValueError(f'{text!r}, expected NAME=IMAGE')
  return _names(name)[0], path


def _box(text: str) -> tuple[float, ...]:
  """`0.2,0.2,0.8,0.6` to left, top, right and bottom, as shares of the sides."""
  parts = text.split(',')
  if len(parts) != 4:
    raise ValueError(f'{text!r} is no box; expected L,T,R,B, as 0.2,0.2,0.8,0.6')
  left, top, right, bottom = map(float, parts)
  if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
    raise ValueError(f'{text!r} is no box; expected 0 <= L < R <= 1, 0 <= T < B <= 1')
  return left, top, right, bottom


_IMAGE: dict[str, Any] = {'metavar': 'IMAGE'}

FLAGS: dict[str, dict[str, Any]] = {
  # What `argparse` takes for each.
  'image': _IMAGE,
  'to': _IMAGE | {'help': 'where the way ends'},
  'style': _IMAGE | {'help': 'whose manner is taken'},
  'pose': _IMAGE | {'help': 'whose outlines are taken'},
  'garment': _IMAGE | {'help': 'what comes into the region'},
  'region': _IMAGE | {'help': 'white, or opaque, where the image may change; or --box'},
  'box': {
    'type': _checked(_box),
    'metavar': 'L,T,R,B',
    'help': 'the region as a rectangle, in shares of the middle square',
  },
  'caption': {'metavar': 'TEXT'},
  'palette': {'type': _checked(parse_palette), 'metavar': '#RRGGBB[:WEIGHT],...'},
  'sketch': _IMAGE | {'help': 'lines on a plain ground, instead of its own'},
  'keep': {
    'type': _checked(_names),
    'metavar': 'NAME,...',
    'help': 'conditions that stay',
  },
  'drop': {
    'type': _checked(_names),
    'metavar': 'NAME,...',
    'help': 'conditions to do without',
  },
  'move': {
    'type': _checked(_names),
    'metavar': 'NAME,...',
    'help': 'conditions that change',
  },
  'strength': {
    'type': _checked(_share),
    'default': 1.0,
    'help': '0 to 1; 1 by default',
  },
  'frames': {
    'type': int,
    'default': 8,
    'help': 'images on the way, both ends included; 8 by default',
  },
  'use': {
    'action': 'append',
    'type': _checked(_source),
    'metavar': 'NAME=IMAGE',
    'help': 'a condition and the image to take it from; once for each',
  },
  'expression': {'metavar': 'TEXT', 'help': 'with & | ! ( ) and weights'},
  'no-prior': {'action': 'store_true', 'help': 'from the caption alone'},
}


def pixels_of(composer: Any, path: str) -> np.ndarray:
  """The middle of an image, transparent parts over white, at the model's side."""
  from composer_jax.composer import square_of

  return square_of(open_image(path, name=path), composer.image_size).pixels


def _drawn(path: str) -> np.ndarray:
  """What is drawn in the middle square of an image: bool (S, S).

  That is what is opaque, if anything is transparent; else, what is light.
  """
  picture = open_image(path, name=path)
  shown = picture.pixels.mean(-1) if picture.alpha is None else picture.alpha
  height, width = shown.shape
  side = min(height, width)
  top, left = (height - side) // 2, (width - side) // 2
  return shown[top : top + side, left : left + side] > 127


def regions_of(composer: Any, flags: argparse.Namespace) -> np.ndarray:
  """Where an image may change, `n` times: bool (n, S, S), S the model's side.

  Raises:
    ValueError: the marked image is of another shape than the other, or marks nothing.
  """
  from composer_jax.regions import cover

  side = composer.image_size
  if flags.region:
    whole, marked = (open_image(p, name=p).pixels for p in (flags.image, flags.region))
    ratios = [pixels.shape[1] / pixels.shape[0] for pixels in (whole, marked)]
    if abs(ratios[0] / ratios[1] - 1) > 0.02:
      raise ValueError(
        f'{flags.region} is {ratios[1]:.2f} times as wide as high, {flags.image}'
        f' {ratios[0]:.2f} times; expected the same.'
      )
    region = cover(_drawn(flags.region)[None], side)[0]
    if not region.any():
      raise ValueError(f'{flags.region} has no white part, so nothing may change.')
  else:
    region = np.zeros((side, side), bool)
    left, top = (int(side * share) for share in flags.box[:2])
    right, bottom = (-int(-side * share // 1) for share in flags.box[2:])
    region[top:bottom, left:right] = True
  return np.stack([region] * flags.n)


def sketch_of(path: str, side: int) -> np.ndarray:
  """Lines that someone has drawn, as the sketch condition: uint8 (side, side, 1).

  Raises:
    ValueError: there are none, or more than lines.
  """
  from skimage.morphology import skeletonize

  from composer_jax.regions import cover

  lines = _drawn(path)
  if lines.mean() > 0.5:  # Dark on light.
    lines = ~lines
  edges = skeletonize(cover(lines[None], side)[0])
  if not edges.any() or lines.mean() > 0.4:
    raise ValueError(
      f'{path}: {lines.mean():.0%} of it is drawn on; expected lines on a plain ground.'
    )
  return np.where(edges, 255, 0).astype(np.uint8)[..., None]
