from __future__ import annotations

import numpy as np
import pytest
import skimage.color
import skimage.feature
from scipy import ndimage

from composer_jax.conditions.sketch import Sketch, edges
from composer_jax.images import Picture, lab_to_srgb

NEAR = np.ones((3, 3), bool)
Y, X = np.indices((64, 64))


def gray(levels):
  """A gray image uint8 (H, W, 3) of levels in [0, 1]."""
  levels = np.round(np.asarray(levels) * 255).astype(np.uint8)
  return np.repeat(levels[..., None], 3, axis=-1)


SHAPES = {
  'disc': np.hypot(Y - 30, X - 33) < 17,
  'square': (abs(Y - 31) < 15) & (abs(X - 28) < 12),
  'diamond': abs(Y - 32) + abs(X - 30) < 20,
  'slope': 2 * Y + X < 90,
  'other slope': 2 * Y - X < 30,
}
shapes = pytest.mark.parametrize('shape', SHAPES.values(), ids=SHAPES)


def stored(lines):
  return (np.asarray(lines)[..., None] * 255).astype(np.uint8)


def f1(asked, again):
  return Sketch().fidelity(stored(asked), stored(again))['f1']


def blank():
  return np.zeros((32, 32), bool)


def reference_f1(asked, again):
  """The definition, pixel by pixel."""

  def matched(these, those):
    those = np.argwhere(those)
    near = [np.abs(those - p).max(axis=1).min() <= 1 for p in np.argwhere(these)]
    return np.mean(near)

  recall, precision = matched(asked, again), matched(again, asked)
  return 2 * precision * recall / (precision + recall)


@shapes
def test_lines_lie_within_a_pixel_of_those_of_canny_and_leave_none_out(shape):
  levels = 0.2 + 0.6 * shape
  ours = edges(gray(levels))
  # The same sigma; thresholds on a Sobel slope between flat and the step.
  theirs = skimage.feature.canny(levels, 0.8, 0.1, 0.3)
  # Canny of scikit-image leaves the frame out.
  inside = np.zeros_like(ours)
  inside[3:-3, 3:-3] = True
  assert (theirs & inside).sum() > 50
  assert not (ours & inside & ~ndimage.binary_dilation(theirs, NEAR)).any()
  assert not (theirs & inside & ~ndimage.binary_dilation(ours, NEAR)).any()


@shapes
def test_lines_lie_on_the_outline_and_go_all_along_it(shape):
  lines = edges(gray(0.2 + 0.6 * shape))
  outline = ndimage.binary_dilation(shape) & ndimage.binary_dilation(~shape)
  assert not (lines & ~ndimage.binary_dilation(outline, NEAR)).any()
  inside = np.s_[2:-2, 2:-2]
  assert not (outline & ~ndimage.binary_dilation(lines, NEAR, 2))[inside].any()


@shapes
def test_lines_are_one_pixel_thin(shape):
  lines = edges(gray(0.2 + 0.6 * shape)).astype(int)
  blocks = lines[1:, 1:] + lines[1:, :-1] + lines[:-1, 1:] + lines[:-1, :-1]
  assert lines.any() and blocks.max() < 4


def test_lines_of_photographs_are_thin_and_cover_a_part(photographs):
  for picture in photographs:
    lines = edges(picture.pixels).astype(int)
    blocks = lines[1:, 1:] + lines[1:, :-1] + lines[:-1, 1:] + lines[:-1, :-1]
    assert blocks.max() < 4
    assert 0.03 < lines.mean() < 0.5


def test_a_step_gives_one_pixel_in_every_row_beside_the_step():
  lines = edges(gray(np.where(X < 20, 0.3, 0.7)))
  rows, columns = np.nonzero(lines)
  assert set(columns) <= {19, 20}
  counts = np.bincount(rows, minlength=64)
  # Thinning may take the very ends.
  assert (counts[1:-1] == 1).all()


def test_colours_that_are_equally_light_have_an_edge_between_them():
  lab = np.where((X < 30)[..., None], [60.0, 40, 0], [60.0, -40, 0])
  pixels = lab_to_srgb(lab)
  lightness = skimage.color.rgb2lab(pixels)[..., 0]
  assert np.ptp(lightness) < 0.5
  rows, columns = np.nonzero(edges(pixels))
  assert set(columns) <= {29, 30} and len(rows) > 60


@pytest.mark.parametrize('height', [3, 60])
def test_only_slopes_of_some_strength_are_lines(height):
  # The derivative of a Gaussian of 0.8 pixels finds half of a step's height.
  lab = np.zeros((64, 64, 3))
  lab[..., 0] = np.where(X < 30, 20, 20 + height)
  assert edges(lab_to_srgb(lab)).any() == (height == 60)


def test_flat_images_and_soft_shades_have_no_lines():
  assert not edges(np.full((20, 20, 3), 130, np.uint8)).any()
  assert not edges(gray(X / 64)).any()


def test_turned_and_mirrored_images_have_turned_and_mirrored_lines(photographs):
  pixels = photographs[1].pixels
  lines = edges(pixels)
  for turn in (np.transpose, np.fliplr, np.flipud, np.rot90):
    turned = turn(pixels, (1, 0, 2)) if turn is np.transpose else turn(pixels)
    # Ties between two equal neighbours, and thinning, may go the other way.
    assert reference_f1(turn(lines), edges(turned)) > 0.97


def test_edges_are_stored_as_255_and_drawn_black_on_white():
  pixels = gray(0.2 + 0.6 * SHAPES['disc'])
  value = Sketch().extract(Picture(pixels), np.random.default_rng(0))
  np.testing.assert_array_equal(value[..., 0], edges(pixels) * 255)
  drawn = Sketch().draw(value)
  assert (drawn[edges(pixels)] == 0).all() and (drawn[~edges(pixels)] == 255).all()
  np.testing.assert_allclose(
    Sketch().features(value[None])[0, ..., 0], np.where(edges(pixels), 1, -1)
  )


def test_a_line_one_pixel_away_still_matches_and_two_pixels_away_does_not():
  line, beside, apart, diagonal = blank(), blank(), blank(), blank()
  line[10, 5:25] = True
  beside[11, 5:25] = True
  apart[12, 5:25] = True
  diagonal[11, 6:26] = True
  assert f1(line, beside) == pytest.approx(1)
  assert f1(line, diagonal) == pytest.approx(1)
  assert f1(line, apart) == 0


def test_f1_of_lines_too_many_and_too_few():
  line, both, half = blank(), blank(), blank()
  line[10, 5:25] = True
  both[[10, 20], 5:25] = True
  half[10, 5:15] = True
  # Precision 1/2 and recall 1.
  assert f1(line, both) == pytest.approx(2 / 3)
  # Precision 1 and recall 1/2.
  assert f1(both, line) == pytest.approx(2 / 3)
  # Of 20 pixels, 10 are there and the next one is within a pixel: recall 11/20.
  assert f1(line, half) == pytest.approx(2 * 11 / (20 + 11))


def test_f1_with_nothing_drawn():
  line = blank()
  line[3] = True
  assert f1(blank(), blank()) == 1
  assert f1(line, blank()) == 0
  assert f1(blank(), line) == 0


def test_f1_of_scattered_points_equals_the_definition():
  rng = np.random.default_rng(0)
  for share in (0.02, 0.05, 0.1):
    a, b = rng.random((2, 30, 40)) < share
    assert f1(a, b) == pytest.approx(reference_f1(a, b), abs=1e-9)
