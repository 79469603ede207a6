from __future__ import annotations

import io
import math
import struct
import zlib

import pytest
from PIL import Image

from composer_jax.studio.limits import Limits, plain_name

LIMITS = Limits(upload_mb=0.1, pixels=10_000)


def png(width, height):
  file = io.BytesIO()
  Image.new('RGB', (width, height), '#336699').save(file, 'PNG')
  return file.getvalue()


def bomb(side):
  """A PNG of a few kilobytes that claims to be large."""
  header = struct.pack('>IIBBBBB', side, side, 8, 2, 0, 0, 0)
  parts = [(b'IHDR', header), (b'IDAT', zlib.compress(bytes(100_000))), (b'IEND', b'')]
  chunks = [
    struct.pack('>I', len(data)) + kind + data
    + struct.pack('>I', zlib.crc32(kind + data))
    for kind, data in parts
  ]  # fmt: skip
  return b'\x89PNG\r\n\x1a\n' + b''.join(chunks)


def test_an_image_within_the_limits_is_opened():
  assert LIMITS.picture(png(100, 100), 'a.png').pixels.shape == (100, 100, 3)


@pytest.mark.parametrize(
  ('data', 'message'),
  [
    (png(101, 100), 'a.png: 101 x 100 pixels, expected at most 10,000'),
    (bomb(30_000), r'a.png: Image size \(900000000 pixels\).*at most 10,000 pixels'),
    (b'only a text', 'expected an image'),
    (png(50, 50)[:60], 'a.png'),
    (bytes(200_000), r'a.png has 0.2 MB; expected at most 0.1 MB'),
  ],
)
def test_others_are_refused_with_what_was_expected(data, message):
  with pytest.raises(ValueError, match=message):
    LIMITS.picture(data, 'a.png')


@pytest.mark.parametrize('value', [math.nan, math.inf, -0.1, 1.1, '1', None, True, []])
def test_what_is_no_number_of_the_range_is_refused(value):
  with pytest.raises(ValueError, match='Strength is .*; expected 0 to 1'):
    LIMITS.number(value, 'Strength', 0, 1)


def test_whole_numbers_come_as_floats_too_but_not_as_parts():
  assert LIMITS.whole(3.0, 'Steps', 1, 5) == 3
  with pytest.raises(ValueError, match='expected a whole number'):
    LIMITS.whole(2.5, 'Steps', 1, 5)


def test_texts_are_trimmed_and_not_endless():
  assert LIMITS.words('  a red apple ', 'The caption') == 'a red apple'
  assert LIMITS.words(None, 'The caption') == ''
  with pytest.raises(ValueError, match='501 characters; expected at most 500'):
    LIMITS.words('x' * 501, 'The caption')
  with pytest.raises(ValueError, match='expected a text'):
    LIMITS.words(['x'], 'The caption')


@pytest.mark.parametrize(
  ('path', 'name'),
  [
    ('../../etc/passwd', 'passwd'),
    ('C:\\Users\\me\\a.png', 'a.png'),
    ('/', 'image'),
    ('a\nb.png', 'ab.png'),
    ('x' * 99, 'x' * 60),
  ],
)
def test_names_have_no_folders(path, name):
  assert plain_name(path) == name


def test_a_limit_is_above_0():
  with pytest.raises(ValueError, match='The limit steps is 0'):
    Limits(steps=0)
