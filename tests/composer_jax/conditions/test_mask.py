from __future__ import annotations

import numpy as np
import pytest
import skimage.metrics
from scipy import ndimage

from composer_jax.conditions.mask import (
  SHAPES,
  Mask,
  hide_half,
  hide_rectangle,
  hide_strokes,
)
from composer_jax.images import Picture

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (32, 32, 3), np.uint8)
every_shape = pytest.mark.parametrize('shape', SHAPES, ids=lambda s: s.__name__)


def draws(shape, size, count):
  rng = np.random.default_rng(0)
  return [shape(size, rng) for _ in range(count)]


@every_shape
@pytest.mark.parametrize('size', [16, 33, 64])
def test_shapes_hide_something_and_leave_something(shape, size):
  for hidden in draws(shape, size, 200):
    assert hidden.shape == (size, size) and hidden.dtype == bool
    assert 0 < hidden.sum() < size**2


@every_shape
def test_shapes_differ_from_draw_to_draw(shape):
  assert len({hidden.tobytes() for hidden in draws(shape, 32, 60)}) >= 4


def test_halves_are_the_four_halves_equally_often():
  y, x = np.indices((20, 20))
  halves = [y < 10, y >= 10, x < 10, x >= 10]
  drawn = draws(hide_half, 20, 2000)
  counts = [sum(np.array_equal(half, hidden) for hidden in drawn) for half in halves]
  assert sum(counts) == 2000
  # Five standard deviations of a binomial count.
  assert max(abs(count - 500) for count in counts) < 5 * (2000 * 3 / 16) ** 0.5


def test_rectangles_are_filled_and_measure_a_quarter_to_three_quarters():
  sides, tops = [], []
  for hidden in draws(hide_rectangle, 32, 2000):
    rows, columns = np.flatnonzero(hidden.any(1)), np.flatnonzero(hidden.any(0))
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    assert hidden.sum() == height * width
    sides += [height, width]
    tops += [rows[0], columns[0]]
  assert set(sides) == set(range(8, 25))
  # They go from edge to edge.
  assert min(tops) == 0 and max(tops) == 24


def test_rectangles_touch_both_edges_of_both_axes():
  union = [
    [hidden[0].any(), hidden[-1].any(), hidden[:, 0].any(), hidden[:, -1].any()]
    for hidden in draws(hide_rectangle, 32, 500)
  ]
  assert np.array(union).any(axis=0).all()


def test_strokes_are_one_to_four_of_a_thick_brush():
  parts, thickness = [], []
  for hidden in draws(hide_strokes, 64, 500):
    _, count = ndimage.label(hidden, np.ones((3, 3)))
    parts.append(count)
    thickness.append(2 * ndimage.distance_transform_edt(np.pad(hidden, 1)).max())
  assert set(parts) >= {1, 2, 3} and max(parts) <= 4
  # The thinnest brush is 1/12 of the side, 6 pixels.
  assert min(thickness) >= 5


@pytest.mark.parametrize('size', [32, 31])
def test_visible_pixels_are_stored_and_hidden_ones_are_zero(size):
  pixels = np.ascontiguousarray(PIXELS[:size, :size])
  for seed in range(20):
    stored = Mask().extract(Picture(pixels), np.random.default_rng(seed))
    visible = stored[..., 3] == 255
    assert visible.any() and not visible.all()
    np.testing.assert_array_equal(stored[visible, :3], pixels[visible])
    assert (stored[~visible] == 0).all()


def test_all_three_shapes_are_drawn_equally_often():
  picture = Picture(np.full((32, 32, 3), 255, np.uint8))
  rng = np.random.default_rng(0)
  counts = dict(half=0, rectangle=0, strokes=0)
  for _ in range(1500):
    hidden = Mask().extract(picture, rng)[..., 3] == 0
    rows, columns = hidden.any(1), hidden.any(0)
    if hidden.sum() != rows.sum() * columns.sum():
      counts['strokes'] += 1
    elif sorted((rows.sum(), columns.sum())) == [16, 32]:
      counts['half'] += 1
    else:
      counts['rectangle'] += 1
  # Five standard deviations, and a few straight strokes that look like rectangles.
  deviation = 5 * (1500 * 2 / 9) ** 0.5
  assert abs(counts['half'] - 500) < deviation
  assert abs(counts['rectangle'] - 500) < deviation + 30
  assert abs(counts['strokes'] - 500) < deviation + 30


def test_features_are_the_colours_where_visible_then_plus_or_minus_one():
  stored = np.zeros((1, 2, 2, 4), np.uint8)
  stored[0, 0, 0] = 255, 0, 51, 255
  stored[0, 1, 1] = 0, 0, 0, 255  # Black, but given.
  features = np.asarray(Mask().features(stored))
  np.testing.assert_allclose(features[0, 0, 0], [1, -1, -0.6, 1], atol=1e-6)
  np.testing.assert_allclose(features[0, 1, 1], [-1, -1, -1, 1])
  np.testing.assert_allclose(features[0, 0, 1], [0, 0, 0, -1])


def test_what_it_gives_are_the_visible_pixels_and_where_they_are():
  stored = np.zeros((1, 1, 2, 4), np.uint8)
  stored[0, 0, 0] = (0, 255, 51, 255)
  colour, where = Mask().given(stored)
  np.testing.assert_allclose(colour[0, 0, 0], (-1, 1, -0.6), atol=1e-6)
  np.testing.assert_array_equal(where[0, 0], [[1], [0]])


def test_drawings_show_the_visible_pixels_over_gray():
  stored = Mask().extract(Picture(PIXELS), np.random.default_rng(3))
  visible = stored[..., 3] == 255
  drawn = Mask().draw(stored)
  np.testing.assert_array_equal(drawn[visible], PIXELS[visible])
  hidden = drawn[~visible]
  assert (hidden == hidden[:, :1]).all() and len(np.unique(hidden)) == 2


@every_shape
def test_psnr_is_scikit_image_s_on_the_visible_pixels(shape):
  noisy = np.clip(PIXELS + RNG.normal(size=PIXELS.shape) * 9, 0, 255).astype(np.uint8)
  visible = ~shape(32, np.random.default_rng(1))
  asked = np.dstack([PIXELS, np.full((32, 32), 255, np.uint8)]) * visible[..., None]
  # What was generated in the hidden part is free.
  again = np.where(visible[..., None], noisy, 255 - noisy)
  again = np.dstack([again, visible * 255]).astype(np.uint8)
  wanted = skimage.metrics.peak_signal_noise_ratio(
    PIXELS[visible], noisy[visible], data_range=255
  )
  assert 20 < wanted < 40
  got = Mask().fidelity(asked.astype(np.uint8), again)
  assert got['psnr'] == pytest.approx(wanted, abs=1e-9)


def test_psnr_of_black_against_white_is_zero_and_ends_at_sixty():
  asked = np.zeros((4, 4, 4), np.uint8)
  asked[..., 3] = 255
  again = np.full((4, 4, 4), 255, np.uint8)
  assert Mask().fidelity(asked, again)['psnr'] == pytest.approx(0)
  assert Mask().fidelity(asked, asked)['psnr'] == pytest.approx(60)


def test_a_mask_that_hides_everything_has_no_fidelity():
  with pytest.raises(ValueError, match='hides everything'):
    Mask().fidelity(np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8))
