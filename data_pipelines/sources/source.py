"""What a source of images is, and what all of them ask of names and captions."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Protocol

from composer_jax.images import Picture

MAX_CAPTION = 10_000
"""Longest caption that is taken for one, in characters."""


@dataclasses.dataclass(frozen=True)
class Example:
  """One image of a source.

  Attributes:
    key: its name, unique within the source.
    picture: the decoded image.
    caption: what it shows, '' where nobody said.
  """

  key: str
  picture: Picture
  caption: str


class BadRecord(ValueError):
  """A record that cannot be used, for a reason other than its pixels.

  Attributes:
    reason: a short, stable code to count by, such as `caption_too_long`.
  """

  def __init__(self, reason: str, message: str):
    super().__init__(message)
    self.reason = reason

  def __reduce__(self):
    # Exceptions pickle their message only; workers need the reason back too.
    return type(self), (self.reason, str(self))


class Source(Protocol):
  """A list of images, any of which can be loaded on its own.

  Sources are pickled and sent to workers, so they hold names and offsets but no
  open files.

  Attributes:
    name: what `open_source` opened.
    licence: the terms under which the images may be used.
    credit: whom to name where the images are shown.
  """

  name: str
  licence: str
  credit: str

  def keys(self) -> Sequence[str]:
    """The names of all images: unique, sorted, and the same each time."""

  def load(self, index: int, size: int) -> Example:
    """Reads one image.

    Args:
      index: its place in `keys()`.
      size: the side, in pixels, of the square that will be made of it. Drawings
        are rendered at that size, photographs need not be decoded in full; the
        picture may be larger than this, and have any shape.

    Raises:
      BadImage: if the image cannot be used.
      BadRecord: if its caption, or the record itself, cannot.
    """


def text_key(name: str) -> str:
  r"""A file name as printable text, different for different names.

  File systems hold any bytes, which Python reads as lone surrogates where they
  are not UTF-8. These, control characters and line breaks are written as
  escapes, such as `\udcff` and `\n`, and a backslash as two.
  """
  unsafe = r'[\\\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]'
  return re.sub(unsafe, lambda c: c[0].encode('unicode_escape').decode(), name)


def check_caption(caption: str, *, name: str) -> str:
  """Accepts a caption, without the white space around it.

  Args:
    caption: text in which bytes that are not UTF-8 are lone surrogates, as
      after `bytes.decode('utf-8', 'surrogateescape')`.
    name: what to call the record in messages.

  Raises:
    BadRecord: with the reason `caption_too_long` or `caption_not_utf8`.
  """
  if len(caption) > MAX_CAPTION:
    raise BadRecord(
      'caption_too_long',
      f'{name}: a caption of {len(caption):,} characters, expected at most'
      f' {MAX_CAPTION:,}. Shorten it.',
    )
  bad = re.search('[\ud800-\udfff]', caption)
  if bad:
    raise BadRecord(
      'caption_not_utf8',
      f'{name}: character {bad.start()} of the caption is not text, expected'
      ' UTF-8. Save the caption again in that encoding.',
    )
  return caption.strip()
