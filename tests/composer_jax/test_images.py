from __future__ import annotations

import io
import pickle
import struct
import warnings
import zlib

import numpy as np
import pytest
import skimage.color
from PIL import Image

from composer_jax import images
from composer_jax.images import BadImage, Picture


def noise(height=24, width=36, channels=3, seed=0):
  """Coarse random colours: detail enough to tell any two places apart."""
  rng = np.random.default_rng(seed)
  small = rng.integers(0, 256, (height // 4, width // 4, channels), dtype=np.uint8)
  return small.repeat(4, axis=0).repeat(4, axis=1)


def encoded(image, form, **options):
  if isinstance(image, np.ndarray):
    image = Image.fromarray(image)
  file = io.BytesIO()
  image.save(file, form, **options)
  return file.getvalue()


def opened(data, **options):
  return images.open_image(data, name='the file', **options)


def refusal(data):
  """The reason of a refusal, after checking that the message says enough."""
  with pytest.raises(BadImage) as caught:
    opened(data)
  message = str(caught.value)
  assert message.startswith('the file: ')
  assert 'xpected' in message
  return caught.value.reason


def png_header(width, height):
  """A PNG that declares a size and has no pixels to back it."""

  def chunk(kind, body):
    return (
      struct.pack('>I', len(body))
      + kind
      + body
      + struct.pack('>I', zlib.crc32(kind + body))
    )

  header = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
  return (
    b'\x89PNG\r\n\x1a\n'
    + chunk(b'IHDR', header)
    + chunk(b'IDAT', zlib.compress(b'\0'))
    + chunk(b'IEND', b'')
  )


class TestOpenImage:
  @pytest.mark.parametrize('form', ['PNG', 'BMP', 'TIFF', 'PPM'])
  def test_lossless_formats_come_back_exactly(self, form):
    picture = opened(encoded(noise(), form))
    np.testing.assert_array_equal(picture.pixels, noise())
    assert picture.pixels.dtype == np.uint8
    assert picture.alpha is None

  def test_a_path_reads_like_its_bytes(self, tmp_path):
    path = tmp_path / 'a picture.png'
    path.write_bytes(encoded(noise(), 'PNG'))
    np.testing.assert_array_equal(opened(path).pixels, noise())
    np.testing.assert_array_equal(opened(str(path)).pixels, noise())

  def test_a_missing_path_is_not_a_bad_image(self, tmp_path):
    with pytest.raises(FileNotFoundError):
      opened(tmp_path / 'none.png')

  def test_alpha_is_kept_and_dropped_where_it_says_nothing(self):
    rgba = noise(channels=4)
    picture = opened(encoded(rgba, 'PNG'))
    np.testing.assert_array_equal(picture.pixels, rgba[..., :3])
    np.testing.assert_array_equal(picture.alpha, rgba[..., 3])
    rgba[..., 3] = 255
    assert opened(encoded(rgba, 'PNG')).alpha is None

  def test_gray_with_alpha(self):
    both = noise(channels=2)
    picture = opened(encoded(Image.fromarray(both, 'LA'), 'PNG'))
    np.testing.assert_array_equal(picture.pixels, both[..., :1].repeat(3, axis=2))
    np.testing.assert_array_equal(picture.alpha, both[..., 1])

  def test_palette_with_a_transparent_entry(self):
    indices = noise(channels=1)[..., 0] % 3
    image = Image.fromarray(indices, 'P')
    palette = np.array([[255, 0, 0], [0, 200, 0], [0, 0, 90]], np.uint8)
    image.putpalette(palette.tobytes())
    np.testing.assert_array_equal(
      opened(encoded(image, 'PNG')).pixels, palette[indices]
    )
    picture = opened(encoded(image, 'PNG', transparency=1))
    np.testing.assert_array_equal(picture.pixels, palette[indices])
    np.testing.assert_array_equal(picture.alpha, np.where(indices == 1, 0, 255))

  def test_one_bit(self):
    bits = noise(channels=1)[..., 0] > 127
    pixels = opened(encoded(Image.fromarray(bits), 'PNG')).pixels
    np.testing.assert_array_equal(pixels[..., 1], np.where(bits, 255, 0))

  @pytest.mark.parametrize('form', ['PNG', 'TIFF', 'PPM'])
  def test_16_bit_gray_is_scaled_rather_than_clipped(self, form):
    deep = np.linspace(0, 65535, 24 * 36).astype(np.uint16).reshape(24, 36)
    pixels = opened(encoded(deep, form)).pixels
    np.testing.assert_array_equal(pixels[..., 0], np.rint(deep / 257))
    assert np.ptp(pixels, axis=2).max() == 0

  def test_16_bit_gray_with_a_transparent_value(self):
    deep = np.array([[0, 300], [301, 65535]], np.uint16)
    picture = opened(encoded(deep, 'PNG', transparency=300))
    np.testing.assert_array_equal(picture.alpha, [[255, 0], [255, 255]])

  def test_floats_from_0_to_1_are_scaled_and_others_refused(self):
    unit = np.linspace(0, 1, 36, dtype=np.float32).reshape(6, 6)
    pixels = opened(encoded(unit, 'TIFF')).pixels
    np.testing.assert_array_equal(pixels[..., 2], np.rint(unit * 255))
    assert refusal(encoded(unit * 40, 'TIFF')) == 'unsupported_mode'
    unit[2, 2] = np.nan
    assert refusal(encoded(unit, 'TIFF')) == 'unsupported_mode'

  def test_integers_beyond_16_bits_are_refused(self):
    wide = np.full((6, 6), 70_000, np.int32)
    assert refusal(encoded(wide, 'TIFF')) == 'unsupported_mode'

  def test_cmyk_jpeg_shows_the_colours_that_were_saved(self):
    flat = np.empty((32, 32, 3), np.uint8)
    flat[:] = (200, 40, 90)
    data = encoded(Image.fromarray(flat).convert('CMYK'), 'JPEG', quality=95)
    assert Image.open(io.BytesIO(data)).mode == 'CMYK'
    np.testing.assert_allclose(opened(data).pixels, flat.astype(int), atol=6)

  @pytest.mark.parametrize(
    ('orientation', 'upright'),
    [
      (1, lambda stored: stored),
      (2, lambda stored: stored[:, ::-1]),
      (3, lambda stored: stored[::-1, ::-1]),
      (4, lambda stored: stored[::-1]),
      (5, lambda stored: stored.swapaxes(0, 1)),
      (6, lambda stored: np.rot90(stored, -1)),
      (7, lambda stored: stored[::-1, ::-1].swapaxes(0, 1)),
      (8, lambda stored: np.rot90(stored, 1)),
    ],
  )
  @pytest.mark.parametrize('form', ['PNG', 'JPEG'])
  def test_exif_orientation_is_undone(self, orientation, upright, form):
    stored = noise(24, 40)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {'quality': 100, 'subsampling': 0} if form == 'JPEG' else {}
    pixels = opened(encoded(stored, form, exif=exif, **options)).pixels
    np.testing.assert_allclose(pixels, upright(stored.astype(int)), atol=8)

  @pytest.mark.parametrize('form', ['GIF', 'PNG', 'WEBP'])
  def test_of_an_animation_the_first_frame_counts(self, form):
    frames = [Image.new('RGB', (9, 7), colour) for colour in ('red', 'blue')]
    options = {'lossless': True} if form == 'WEBP' else {}
    data = encoded(frames[0], form, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(data)).n_frames == 2
    np.testing.assert_array_equal(
      opened(data).pixels, np.broadcast_to([255, 0, 0], (7, 9, 3))
    )

  def test_of_a_multi_picture_jpeg_the_first_counts(self):
    pictures = [Image.new('RGB', (16, 16), colour) for colour in ('red', 'blue')]
    data = encoded(pictures[0], 'MPO', save_all=True, append_images=pictures[1:])
    assert Image.open(io.BytesIO(data)).format == 'MPO'
    assert opened(data).pixels.shape == (16, 16, 3)
    np.testing.assert_allclose(opened(data).pixels.mean((0, 1)), [255, 0, 0], atol=3)

  def test_a_large_jpeg_may_be_decoded_smaller(self):
    data = encoded(noise(512, 768), 'JPEG')
    assert opened(data).pixels.shape == (512, 768, 3)
    assert opened(data, at_least=100).pixels.shape == (128, 192, 3)
    assert opened(encoded(noise(), 'PNG'), at_least=4).pixels.shape == (24, 36, 3)


class TestRefusals:
  def test_empty_and_foreign_files_are_not_images(self):
    assert refusal(b'') == 'not_an_image'
    assert refusal(b'a letter, renamed to .png') == 'not_an_image'
    assert refusal(bytes(1000)) == 'not_an_image'
    assert refusal(b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n') == (
      'not_an_image'
    )

  @pytest.mark.parametrize('form', ['PNG', 'JPEG', 'WEBP', 'GIF', 'BMP', 'TIFF'])
  @pytest.mark.parametrize('kept', [0.5, 0.9])
  def test_a_file_cut_short_is_truncated(self, form, kept):
    data = encoded(noise(96, 96), form)
    assert refusal(data[: int(len(data) * kept)]) == 'truncated'

  @pytest.mark.parametrize('form', ['PNG', 'JPEG', 'GIF', 'TIFF'])
  def test_a_damaged_header_is_not_taken_for_another_kind_of_file(self, form):
    assert refusal(encoded(noise(), form)[:9]) in ('truncated', 'unreadable')

  def test_damage_inside_is_unreadable(self):
    data = bytearray(encoded(noise(96, 96), 'PNG'))
    middle = data.index(b'IDAT') + 40
    data[middle : middle + 40] = bytes(40)
    assert refusal(bytes(data)) in ('unreadable', 'truncated')

  @pytest.mark.filterwarnings('ignore::UserWarning')  # Pillow's, about the damage.
  def test_no_damage_gets_past_as_another_exception(self):
    rng = np.random.default_rng(3)
    reasons = set()
    for form in ('PNG', 'JPEG', 'WEBP', 'GIF', 'TIFF', 'JPEG2000'):
      for _ in range(30):
        data = bytearray(encoded(noise(), form))
        places = rng.integers(0, len(data), 6)
        data[places[0]] ^= 0xFF
        for place in places[1:]:
          data[place] = rng.integers(256)
        try:
          opened(bytes(data))
        except BadImage as error:
          reasons.add(error.reason)
    assert {'truncated', 'unreadable'} <= reasons  # Most damage is noticed.

  @pytest.mark.parametrize('side', [8_001, 10_000, 60_000])
  def test_bombs_are_refused_by_their_header(self, side):
    # Below, between and above the two limits at which Pillow itself reacts.
    limit = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
      warnings.simplefilter('ignore', Image.DecompressionBombWarning)
      assert refusal(png_header(side, side)) == 'too_many_pixels'
    assert limit == Image.MAX_IMAGE_PIXELS

  def test_a_bomb_is_a_bad_image_where_warnings_are_errors(self):
    with warnings.catch_warnings():
      warnings.simplefilter('error')
      assert refusal(png_header(10_000, 10_000)) == 'too_many_pixels'

  def test_tiny_and_empty_images_are_too_small(self):
    assert refusal(encoded(np.zeros((1, 50, 3), np.uint8), 'PNG')) == 'too_small'
    assert refusal(png_header(0, 50)) == 'too_small'
    assert opened(encoded(np.zeros((2, 2, 3), np.uint8), 'PNG')).pixels.size == 12

  def test_a_refusal_survives_the_way_from_a_worker(self):
    error = pickle.loads(pickle.dumps(BadImage('truncated', 'x: cut off')))
    assert (error.reason, str(error)) == ('truncated', 'x: cut off')


class TestResizeSquare:
  def test_shrinking_averages_over_areas(self):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    means = pixels.reshape(16, 4, 16, 4, 3).mean((1, 3))
    small = images.resize_square(Picture(pixels), 16).pixels
    np.testing.assert_allclose(small, means, atol=1)

  def test_the_centre_of_the_long_side_is_kept(self):
    pixels = np.zeros((10, 30, 3), np.uint8)
    pixels[:, 10:20] = 255
    for picture in (Picture(pixels), Picture(pixels.swapaxes(0, 1))):
      assert images.resize_square(picture, 5).pixels.min() == 255
      assert images.resize_square(picture, 10).pixels.min() == 255

  def test_random_crops_cover_the_picture_and_repeat_with_the_seed(self):
    columns = np.arange(0, 256, 4, dtype=np.uint8)
    pixels = np.broadcast_to(columns[None, :, None], (8, 64, 3))
    rng = np.random.default_rng(0)
    first = []
    for _ in range(400):
      crop = images.resize_square(Picture(pixels), 8, crop='random', rng=rng).pixels
      np.testing.assert_array_equal(np.diff(crop[0, :, 0].astype(int)), 4)
      first.append(crop[0, 0, 0] // 4)
    assert min(first) == 0
    assert max(first) == 64 - 8
    again = images.resize_square(
      Picture(pixels), 8, crop='random', rng=np.random.default_rng(0)
    )
    assert again.pixels[0, 0, 0] // 4 == first[0]

  def test_transparent_colours_do_not_bleed(self):
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:, ::2] = (0, 255, 0)  # Hidden behind alpha 0.
    pixels[:, 1::2] = (200, 10, 0)
    alpha = np.zeros((8, 8), np.uint8)
    alpha[:, 1::2] = 255
    small = images.resize_square(Picture(pixels, alpha), 4)
    np.testing.assert_allclose(small.alpha, 127.5, atol=1)
    np.testing.assert_allclose(
      small.pixels, np.broadcast_to([200, 10, 0], (4, 4, 3)), atol=2
    )

  def test_resizing_then_compositing_equals_compositing_then_resizing(self):
    rng = np.random.default_rng(5)
    pixels = rng.integers(0, 256, (60, 60, 3), dtype=np.uint8)
    alpha = rng.integers(0, 256, (60, 60), dtype=np.uint8)
    colour = np.array([250, 128, 3], np.uint8)
    share = alpha[..., None] / 255
    exact = (pixels * share + colour * (1 - share)).reshape(12, 5, 12, 5, 3)
    small = images.resize_square(Picture(pixels, alpha), 12)
    np.testing.assert_allclose(
      images.composite(small, colour).pixels, exact.mean((1, 3)), atol=2.5
    )

  def test_enlarging_is_smooth_and_keeps_flat_colours(self):
    flat = np.full((3, 3, 3), 77, np.uint8)
    assert (images.resize_square(Picture(flat), 32).pixels == 77).all()
    edge = np.zeros((4, 4, 3), np.uint8)
    edge[:, 2:] = 255
    row = images.resize_square(Picture(edge), 64).pixels[32, :, 0].astype(int)
    assert np.abs(np.diff(row)).max() < 40  # A box would jump by 255.
    assert row[4] == 0
    assert row[-4] == 255

  def test_the_same_size_is_left_alone(self):
    picture = images.resize_square(Picture(noise(24, 24)), 24)
    np.testing.assert_array_equal(picture.pixels, noise(24, 24))

  def test_an_opaque_crop_has_no_alpha(self):
    alpha = np.full((8, 24), 255, np.uint8)
    alpha[:, 0] = 0
    picture = Picture(np.zeros((8, 24, 3), np.uint8), alpha)
    assert images.resize_square(picture, 4).alpha is None

  def test_wrong_arguments_are_named(self):
    picture = Picture(noise())
    with pytest.raises(ValueError, match='size: 0'):
      images.resize_square(picture, 0)
    with pytest.raises(ValueError, match='rng'):
      images.resize_square(picture, 8, crop='random')
    with pytest.raises(ValueError, match="'top'"):
      images.resize_square(picture, 8, crop='top')


class TestComposite:
  def test_equals_the_weighted_mean_to_the_nearest_code(self):
    rgba = np.random.default_rng(0).integers(0, 256, (40, 50, 4), dtype=np.uint8)
    colour = np.array([10, 250, 77], np.uint8)
    share = rgba[..., 3:] / 255
    expected = np.rint(rgba[..., :3] * share + colour * (1 - share))
    laid = images.composite(Picture(rgba[..., :3], rgba[..., 3]), colour)
    np.testing.assert_array_equal(laid.pixels, expected)
    assert laid.pixels.dtype == np.uint8
    np.testing.assert_array_equal(laid.alpha, rgba[..., 3])

  def test_an_opaque_picture_stays_as_it_is(self):
    laid = images.composite(Picture(noise()), np.zeros(3, np.uint8))
    np.testing.assert_array_equal(laid.pixels, noise())

  def test_the_extremes_are_exact(self):
    pixels = np.full((1, 2, 3), 255, np.uint8)
    picture = Picture(pixels, np.array([[0, 255]], np.uint8))
    laid = images.composite(picture, np.array([1, 2, 3], np.uint8))
    np.testing.assert_array_equal(laid.pixels, [[[1, 2, 3], [255, 255, 255]]])


class TestLab:
  def test_equals_scikit_image_everywhere(self):
    levels = np.append(np.arange(0, 255, 6), 255).astype(np.uint8)
    colours = np.stack(np.meshgrid(levels, levels, levels), axis=-1)
    lab = images.srgb_to_lab(colours)
    assert lab.dtype == np.float32
    assert lab.shape == colours.shape
    np.testing.assert_allclose(lab, skimage.color.rgb2lab(colours), atol=1e-3)

  def test_any_leading_shape(self):
    colours = noise()
    lab = images.srgb_to_lab(colours)
    one = images.srgb_to_lab(colours[3, 5])
    np.testing.assert_allclose(one, lab[3, 5], atol=1e-4)
    np.testing.assert_allclose(images.srgb_to_lab(colours[None]), lab[None], atol=1e-4)

  def test_and_back(self):
    colours = np.random.default_rng(0).integers(0, 256, (999, 3), dtype=np.uint8)
    back = images.lab_to_srgb(images.srgb_to_lab(colours))
    np.testing.assert_array_equal(back, colours)

  def test_the_inverse_equals_scikit_image_and_clips(self):
    rng = np.random.default_rng(1)
    lab = rng.uniform([5, -60, -60], [95, 60, 60], (500, 3)).astype(np.float32)
    before = lab.copy()
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')  # Some are outside sRGB, as they should be.
      expected = skimage.color.lab2rgb(lab) * 255
    # Where a colour lies far outside, the two clip at different stages.
    inside = ((expected > 0.5) & (expected < 254.5)).all(axis=1)
    assert inside.sum() > 150
    result = images.lab_to_srgb(lab)
    np.testing.assert_allclose(result[inside], expected[inside], atol=0.6)
    assert images.lab_to_srgb(np.array([100.0, 0, 120])).tolist()[2] == 0
    np.testing.assert_array_equal(lab, before)


class TestPng:
  @pytest.mark.parametrize('shape', [(7, 9), (7, 9, 3), (7, 9, 4)])
  def test_pillow_reads_what_was_written(self, shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    read = np.array(Image.open(io.BytesIO(images.encode_png(pixels))))
    np.testing.assert_array_equal(read, pixels)

  def test_texts_of_any_script_come_back(self, tmp_path):
    text = {
      'recipe': '{"seed": 3}',
      'title': 'Sch\xf6n',
      'caption': '\u732b and \U0001f431\nin two lines',
      'long': 'x' * 300_000,
    }
    data = images.encode_png(noise(), text=text)
    assert images.png_text(data) == text
    path = tmp_path / 'a.png'
    path.write_bytes(data)
    assert images.png_text(path) == text
    assert images.png_text(images.encode_png(noise())) == {}

  def test_wrong_arrays_and_keywords_are_refused(self):
    for wrong in (np.zeros((4, 4, 2), np.uint8), np.zeros((4, 4, 3), np.float32)):
      with pytest.raises(ValueError, match='pixels'):
        images.encode_png(wrong)
    for key in ('', 'x' * 80, '\u732b', 'a\0b'):
      with pytest.raises(ValueError, match='keyword'):
        images.encode_png(noise(), text={key: ''})

  def test_texts_of_other_files_are_refused(self):
    with pytest.raises(BadImage, match='JPEG') as caught:
      images.png_text(encoded(noise(), 'JPEG'))
    assert caught.value.reason == 'not_an_image'
