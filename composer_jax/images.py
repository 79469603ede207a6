"""Image files in, image files out, and colour spaces.

Everything that a file can do wrong is decided here: callers get a `Picture` or
a `BadImage` that says what was wrong.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import io
import os
from collections.abc import Iterator
from typing import Literal

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError

MAX_PIXELS = 64_000_000
"""Largest image that is decoded, in pixels; more is a decompression bomb."""

MIN_SIDE = 2
"""Smallest side, in pixels, of an image that is worth keeping."""

# Raster formats whose decoders stay inside this process. EPS, for one, would
# start Ghostscript, and an ICO may hide an image larger than it declares.
_FORMATS = ('PNG', 'JPEG', 'WEBP', 'GIF', 'BMP', 'TIFF', 'PPM', 'JPEG2000', 'AVIF')

# How the most common of them begin, to tell a damaged image from another file.
_SIGNATURES = (b'\x89PNG\r\n\x1a\n', b'\xff\xd8\xff', b'GIF8', b'II*\0', b'MM\0*')


class BadImage(ValueError):
  """An image that cannot be used.

  Attributes:
    reason: a short, stable code to count by, such as `truncated`.
  """

  def __init__(self, reason: str, message: str):
    super().__init__(message)
    self.reason = reason

  def __reduce__(self):
    # Exceptions pickle their message only; workers need the reason back too.
    return type(self), (self.reason, str(self))


@dataclasses.dataclass(frozen=True)
class Picture:
  """A decoded image.

  Attributes:
    pixels: uint8 sRGB, shape (height, width, 3).
    alpha: uint8 coverage, shape (height, width), 255 opaque; None where the
      file has no transparency.
  """

  pixels: np.ndarray
  alpha: np.ndarray | None = None


def open_image(
  source: bytes | str | os.PathLike[str],
  *,
  name: str,
  at_least: int | None = None,
  at_most: int = MAX_PIXELS,
) -> Picture:
  """Decodes one image file, upright, as 8-bit sRGB.

  Of an animation this is the first frame. 16-bit gray is scaled to 8 bits.
  Colour profiles are not applied: values are taken to be sRGB.

  Args:
    source: the bytes of the file, or its path.
    name: what to call the file in messages.
    at_least: allows a large JPEG to be decoded at a half, a quarter or an
      eighth of its size, many times faster, as long as both sides keep this
      many pixels.
    at_most: pixels in all; a larger image is refused before it is decoded.

  Returns:
    The picture; its alpha is None if every pixel is opaque.

  Raises:
    BadImage: with the reason `not_an_image`, `truncated`, `unreadable`,
      `too_many_pixels`, `too_small` or `unsupported_mode`.
    OSError: if the path cannot be opened or read.
  """
  with _decoder(source, name, at_most) as image:
    width, height = image.size
    if width * height > min(at_most, MAX_PIXELS):
      raise BadImage(
        'too_many_pixels',
        f'{name}: {width} x {height} pixels, expected at most {at_most:,} in'
        ' all. Scale the image down or leave it out.',
      )
    if min(width, height) < MIN_SIDE:
      raise _too_small(name, width, height)
    if at_least is not None:
      image.draft(None, (at_least, at_least))
    image.load()
    # An animation seeks when it is copied, so orient the frame in place.
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode == 'F' or image.mode.startswith('I'):
      gray, alpha = _from_deep_gray(image, name)
      return _picture(np.repeat(gray[:, :, None], 3, axis=2), alpha)
    try:
      if not image.has_transparency_data:
        return Picture(np.array(image.convert('RGB')))
      rgba = np.asarray(image.convert('RGBA'))
    except ValueError as error:
      raise _unsupported(name, f'colour mode {image.mode}') from error
    return _picture(np.ascontiguousarray(rgba[..., :3]), rgba[..., 3].copy())


@contextlib.contextmanager
def _decoder(
  source: bytes | str | os.PathLike[str], name: str, at_most: int = MAX_PIXELS
) -> Iterator[Image.Image]:
  """Opens an image, and turns whatever its decoder raises into `BadImage`."""
  with io.BytesIO(source) if isinstance(source, bytes) else open(source, 'rb') as file:
    head = file.read(32)
    length = file.seek(0, os.SEEK_END)
    file.seek(0)
    try:
      with Image.open(file, formats=_FORMATS) as image:
        yield image
    except (BadImage, MemoryError):
      raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
      raise BadImage(
        'too_many_pixels',
        f'{name}: {error} Expected at most {at_most:,} pixels. Scale the image'
        ' down or leave it out.',
      ) from error
    except Exception as error:  # Hostile bytes make decoders raise anything at all.
      # A failing disk is not a bad image; EINVAL is a seek to a nonsense offset.
      if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
        raise
      raise _diagnose(error, head, length, name) from error


def _diagnose(error: Exception, head: bytes, length: int, name: str) -> BadImage:
  """The reason why a decoder failed, from what it raised and the file's start."""
  if head.startswith(_SIGNATURES[0]) and len(head) >= 24:
    width, height = (int.from_bytes(head[i : i + 4], 'big') for i in (16, 20))
    if not width or not height:
      return _too_small(name, width, height)
  is_webp = head[:4] == b'RIFF' and head[8:12] == b'WEBP'
  # WebP's decoder does not say that bytes are missing, but its header does.
  cut_short = is_webp and int.from_bytes(head[4:8], 'little') + 8 > length
  if cut_short or 'truncated' in str(error).lower():
    return BadImage(
      'truncated',
      f'{name}: the image data stop after {length:,} bytes ({error}), expected a'
      ' complete file. Copy or download it again.',
    )
  begins_well = is_webp or head[4:12] == b'ftypavif' or head.startswith(_SIGNATURES)
  if isinstance(error, UnidentifiedImageError) and not begins_well:
    return BadImage(
      'not_an_image',
      f'{name}: {length:,} bytes that begin with {head[:8]!r}, expected an image'
      f' ({", ".join(_FORMATS)}). Convert the file to one of these or leave it out.',
    )
  return BadImage(
    'unreadable',
    f'{name}: the file begins like an image but cannot be decoded'
    f' ({type(error).__name__}: {error}), expected intact data. Copy the file again'
    ' or save it anew.',
  )


def _too_small(name: str, width: int, height: int) -> BadImage:
  return BadImage(
    'too_small',
    f'{name}: {width} x {height} pixels, expected at least {MIN_SIDE} a side.'
    ' Leave the image out.',
  )


def _unsupported(name: str, what: str) -> BadImage:
  return BadImage(
    'unsupported_mode',
    f'{name}: {what}, expected 8-bit colour or gray, 16-bit gray, or floats from 0'
    ' to 1. Save the image as 8-bit sRGB.',
  )


def _from_deep_gray(
  image: Image.Image, name: str
) -> tuple[np.ndarray, np.ndarray | None]:
  """Gray of more than 8 bits, scaled rather than clipped: uint8 (height, width)."""
  values = np.asarray(image)
  low, high = float(values.min()), float(values.max())
  # Pillow widens 16-bit gray of some formats to 32 bits and keeps the values.
  full = 1.0 if image.mode == 'F' else 65535.0
  if not 0 <= low <= high <= full:  # Also false if there are NaNs.
    raise _unsupported(name, f'{image.mode} values from {low:g} to {high:g}')
  gray = np.rint(values * np.float32(255 / full)).astype(np.uint8)
  transparent = image.info.get('transparency')
  if transparent is None:
    return gray, None
  return gray, np.where(values == transparent, np.uint8(0), np.uint8(255))


def _picture(pixels: np.ndarray, alpha: np.ndarray | None) -> Picture:
  if alpha is not None and alpha.min() == 255:
    alpha = None
  return Picture(pixels, alpha)


def resize_square(
  picture: Picture,
  size: int,
  *,
  crop: Literal['centre', 'random'] = 'centre',
  rng: np.random.Generator | None = None,
) -> Picture:
  """Scales the short side to `size` pixels and crops the long one to it.

  Shrinking averages over areas (a box filter), so that no detail aliases.
  Enlarging is bicubic: a box would leave blocks, whose outlines every condition
  made from edges would then describe. Colours are weighted by alpha, so that
  whatever hides in transparent pixels does not bleed into visible ones.

  Args:
    picture: of any shape.
    size: the side of the result in pixels.
    crop: which square of the picture to keep.
    rng: draws the square's place; needed for random crops.

  Returns:
    A picture of `size` x `size` pixels.

  Raises:
    ValueError: if `size` is not positive, `crop` is unknown, or a random crop is
      asked for without `rng`.
  """
  if size < 1:
    raise ValueError(f'size: {size}, expected at least 1 pixel.')
  height, width = picture.pixels.shape[:2]
  side = min(height, width)
  # Cropping the source first gives the same square with less work, and no
  # rounding of the aspect ratio.
  if crop == 'centre':
    top, left = (height - side) // 2, (width - side) // 2
  elif crop == 'random':
    if rng is None:
      raise ValueError("crop='random' needs rng, a numpy.random.Generator.")
    top = int(rng.integers(height - side + 1))
    left = int(rng.integers(width - side + 1))
  else:
    raise ValueError(f"crop: {crop!r}, expected 'centre' or 'random'.")
  window = np.s_[top : top + side, left : left + side]
  pixels = picture.pixels[window]
  alpha = None if picture.alpha is None else picture.alpha[window]
  if side == size:
    return _picture(pixels.copy(), None if alpha is None else alpha.copy())
  filtering = Image.Resampling.BOX if size < side else Image.Resampling.BICUBIC
  # Pillow multiplies RGBA by its alpha before it filters, and divides after.
  stored = pixels if alpha is None else np.dstack([pixels, alpha])
  image = Image.fromarray(np.ascontiguousarray(stored))
  resized = np.array(image.resize((size, size), filtering))
  if alpha is None:
    return Picture(resized)
  return _picture(np.ascontiguousarray(resized[..., :3]), resized[..., 3].copy())


def resize_squares(images: np.ndarray, size: int) -> np.ndarray:
  """Square images at another side, as `resize_square` makes each.

  Args:
    images: uint8 (B, S, S, 3).
    size: of the result, in pixels.

  Returns:
    uint8 (B, size, size, 3); `images` themselves if that is their side.
  """
  if images.shape[1] == size:
    return images
  return np.stack([resize_square(Picture(image), size).pixels for image in images])


def composite(picture: Picture, colour: np.ndarray) -> Picture:
  """Lays a picture over a flat background.

  Args:
    picture: the picture, transparent or not.
    colour: the background, uint8 sRGB, shape (3,).

  Returns:
    A picture whose pixels no longer depend on the alpha. The alpha is kept all
    the same: it still says which pixels belong to the object.
  """
  if picture.alpha is None:
    return picture
  # 255 * 255 + 127 is still a uint16.
  alpha = picture.alpha[..., None].astype(np.uint16)
  over = picture.pixels * alpha + np.asarray(colour, np.uint8) * (255 - alpha)
  return Picture(((over + 127) // 255).astype(np.uint8), picture.alpha)


# CIE 15:2004, section 8.2.1 (CIELab), and IEC 61966-2-1 (sRGB).
_WHITE_D65 = np.array([0.95047, 1.0, 1.08883])
_XYZ_FROM_RGB = np.array([
    [0.412453, 0.357580, 0.180423],
    [0.212671, 0.715160, 0.072169],
    [0.019334, 0.119193, 0.950227],
])  # fmt: skip
_LAB_FROM_F = np.array([[0, 116, 0], [500, -500, 0], [0, 200, -200]])
_EPSILON = (6 / 29) ** 3
_SLOPE = (29 / 6) ** 2 / 3


@functools.cache
def _lab_tables() -> tuple[np.ndarray, ...]:
  """Constants of both conversions, in float32.

  They are the linear value of each of the 256 codes, and row-vector matrices between
  RGB, XYZ / white and Lab.
  """
  code = np.arange(256) / 255
  linear = np.where(code <= 0.04045, code / 12.92, ((code + 0.055) / 1.055) ** 2.4)
  to_xyz = (_XYZ_FROM_RGB / _WHITE_D65[:, None]).T
  tables = linear, to_xyz, _LAB_FROM_F.T
  inverses = np.linalg.inv(to_xyz), np.linalg.inv(_LAB_FROM_F.T)
  return tuple(table.astype(np.float32) for table in tables + inverses)


def srgb_to_lab(pixels: np.ndarray) -> np.ndarray:
  """CIELab under D65 (2 degree observer).

  Args:
    pixels: uint8 sRGB, shape (..., 3).

  Returns:
    float32, shape (..., 3): L in [0, 100], a and b within about [-108, 99].
  """
  linear, to_xyz, to_lab, _, _ = _lab_tables()
  # One matrix product over flat rows; a stack of small ones is slower.
  xyz = linear[pixels].reshape(-1, 3) @ to_xyz
  f = np.where(xyz > _EPSILON, np.cbrt(xyz), _SLOPE * xyz + 4 / 29)
  lab = f @ to_lab
  lab[:, 0] -= 16
  return lab.reshape(pixels.shape)


def lab_to_srgb(lab: np.ndarray) -> np.ndarray:
  """The inverse of `srgb_to_lab`; colours that sRGB lacks are clipped.

  Args:
    lab: float, shape (..., 3).

  Returns:
    uint8 sRGB, shape (..., 3).
  """
  _, _, _, from_xyz, from_lab = _lab_tables()
  flat = np.array(lab, np.float32).reshape(-1, 3)
  flat[:, 0] += 16
  f = flat @ from_lab
  xyz = np.where(f > 6 / 29, f**3, (f - 4 / 29) / _SLOPE)
  linear = np.clip(xyz @ from_xyz, 0, 1)
  power = 1.055 * linear ** (1 / 2.4) - 0.055
  code = np.where(linear <= 0.0031308, 12.92 * linear, power)
  return np.rint(code * 255).astype(np.uint8).reshape(np.shape(lab))


def encode_png(pixels: np.ndarray, *, text: dict[str, str] | None = None) -> bytes:
  """A PNG file.

  Args:
    pixels: uint8 gray (height, width), sRGB (height, width, 3), or sRGB with
      alpha (height, width, 4).
    text: keywords, of 1 to 79 Latin-1 characters, and their texts, of any
      length and script. `png_text` reads them back.

  Returns:
    The bytes of the file.

  Raises:
    ValueError: if the array or a keyword is none of the above.
  """
  if pixels.dtype != np.uint8 or not (
    pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))
  ):
    raise ValueError(
      f'pixels: {pixels.dtype} {pixels.shape}, expected uint8 (height, width),'
      ' (height, width, 3) or (height, width, 4).'
    )
  chunks = PngImagePlugin.PngInfo()
  for key, value in (text or {}).items():
    if not 1 <= len(key) <= 79 or not key.isprintable() or max(key) > '\xff':
      raise ValueError(
        f'text: keyword {key!r}, expected 1 to 79 printable Latin-1 characters.'
      )
    chunks.add_text(key, value)  # As tEXt, or as iTXt if it is not Latin-1.
  file = io.BytesIO()
  Image.fromarray(np.ascontiguousarray(pixels)).save(file, 'PNG', pnginfo=chunks)
  return file.getvalue()


def png_text(source: bytes | str | os.PathLike[str]) -> dict[str, str]:
  """The texts of a PNG file, by keyword; empty if it has none.

  Raises:
    BadImage: if it is not a PNG, or damaged.
    OSError: if the path cannot be opened or read.
  """
  name = 'PNG bytes' if isinstance(source, bytes) else os.fspath(source)
  with _decoder(source, name) as image:
    if not isinstance(image, PngImagePlugin.PngImageFile):
      raise BadImage('not_an_image', f'{name}: a {image.format} file, expected a PNG.')
    return {key: str(value) for key, value in image.text.items()}
