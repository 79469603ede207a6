"""What the studio takes, and what it refuses: everything comes from strangers."""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
from typing import Any

from composer_jax.images import Picture, open_image


@dataclasses.dataclass(frozen=True)
class Limits:
  """How much one visitor may ask for.

  Attributes:
    upload_mb: size of a file, in megabytes.
    pixels: of an image, in all.
    images: open at a time.
    steps: of the base model's sampler.
    count: images that one request makes.
    queue: requests that wait at a time; more are told to come back later.
    text: characters of a caption.
    strength: of a condition; 1 is as trained.
    guidance: its scale; 1 is none.
  """

  upload_mb: float = 20.0
  pixels: int = 16_000_000
  images: int = 4
  steps: int = 100
  count: int = 8
  queue: int = 16
  text: int = 500
  strength: float = 4.0
  guidance: float = 20.0

  def __post_init__(self):
    for name, value in dataclasses.asdict(self).items():
      if not value > 0:
        raise ValueError(f'The limit {name} is {value}; expected a number above 0.')

  def picture(self, source: bytes | str | os.PathLike[str], name: str) -> Picture:
    """Opens an image that is not too large.

    Raises:
      ValueError: it is too large, or no image.
    """
    self.size(source, name)
    return open_image(source, name=name, at_most=self.pixels)

  def size(self, source: bytes | str | os.PathLike[str], name: str) -> None:
    """Refuses a file that is too large."""
    length = len(source) if isinstance(source, bytes) else os.path.getsize(source)
    if length > self.upload_mb * 1e6:
      raise ValueError(
        f'{name} has {length / 1e6:.1f} MB; expected at most {self.upload_mb:g} MB.'
      )

  def words(self, text: Any, what: str) -> str:
    """A caption, without what surrounds it."""
    if not isinstance(text, str | None):
      raise ValueError(f'{what} is {text!r:.80}; expected a text.')
    text = (text or '').strip()
    if len(text) > self.text:
      raise ValueError(
        f'{what} has {len(text)} characters; expected at most {self.text}.'
      )
    return text

  def whole(self, value: Any, what: str, low: int, high: int) -> int:
    """A whole number within a range."""
    number = self.number(value, what, low, high)
    if number != int(number):
      raise ValueError(f'{what} is {value!r:.80}; expected a whole number.')
    return int(number)

  @staticmethod
  def number(value: Any, what: str, low: float, high: float) -> float:
    """A number within a range; NaN and texts are none."""
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    if not plain or not math.isfinite(value) or not low <= value <= high:
      raise ValueError(f'{what} is {value!r:.80}; expected {low:g} to {high:g}.')
    return value


def plain_name(path: Any) -> str:
  """What to call an uploaded file: no folders, nothing unprintable, not long."""
  name = pathlib.PurePosixPath(str(path).replace('\\', '/')).name
  name = ''.join(c for c in name if c.isprintable())
  return name[:60] or 'image'
