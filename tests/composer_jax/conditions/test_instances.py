from __future__ import annotations

import itertools

import numpy as np
import pytest

from composer_jax.conditions.instances import (
  MAX_INSTANCES,
  Instances,
  codes,
  segment,
)
from composer_jax.images import Picture

RNG = np.random.default_rng(0)
Y, X = np.indices((60, 60))
BIG = np.hypot(Y - 20, X - 20) < 14
MIDDLE = (abs(Y - 45) < 8) & (abs(X - 45) < 9)
SMALL = np.hypot(Y - 48, X - 12) < 6


def extract(alpha):
  blank = np.zeros((*alpha.shape, 3), np.uint8)
  picture = Picture(blank, alpha.astype(np.uint8) * 255)
  return Instances().extract(picture, np.random.default_rng(0))[..., 0]


def mean_iou(asked, again):
  asked, again = (np.asarray(ids, np.uint8)[..., None] for ids in (asked, again))
  return Instances().fidelity(asked, again)['mean_iou']


def reference_mean_iou(asked, again):
  """The best of all one-to-one matchings, one by one."""

  def iou(i, j):
    a, b = asked == i, again == j
    return (a & b).sum() / (a | b).sum()

  wanted = [i for i in np.unique(asked) if i]
  found = [j for j in np.unique(again) if j]
  found += [None] * len(wanted)
  best = max(
    sum(iou(i, j) for i, j in zip(wanted, matching, strict=True) if j is not None)
    for matching in set(itertools.permutations(found, len(wanted)))
  )
  background = [iou(0, 0)] if (asked == 0).any() else []
  return (best + sum(background)) / (len(wanted) + len(background))


def test_parts_of_the_alpha_mask_are_numbered_by_falling_area():
  ids = extract(SMALL | BIG | MIDDLE)
  np.testing.assert_array_equal(ids, 1 * BIG + 2 * MIDDLE + 3 * SMALL)
  assert BIG.sum() > MIDDLE.sum() > SMALL.sum()


def test_parts_that_touch_at_a_corner_are_one():
  alpha = np.zeros((20, 20), bool)
  alpha[4:8, 4:8] = alpha[8:12, 8:12] = True
  np.testing.assert_array_equal(extract(alpha), alpha)


def test_half_transparent_pixels_belong_to_the_background():
  alpha = np.where(BIG, 255, np.where(MIDDLE, 127, 0)).astype(np.uint8)
  picture = Picture(np.zeros((60, 60, 3), np.uint8), alpha)
  ids = Instances().extract(picture, np.random.default_rng(0))[..., 0]
  np.testing.assert_array_equal(ids, BIG)


def test_specks_below_the_share_are_left_out():
  # 0.004 of 3600 pixels are 14.4 pixels.
  for pixels, there in ((14, False), (15, True)):
    alpha = BIG.copy()
    alpha[50, 40 : 40 + pixels] = True
    assert (extract(alpha)[50, 40] == 2) == there
    assert (extract(alpha)[BIG] == 1).all()


def test_of_many_parts_the_largest_fifteen_are_kept_in_order():
  alpha = np.zeros((90, 90), bool)
  corners = [(18 * (i // 5) + 1, 18 * (i % 5) + 1) for i in RNG.permutation(20)]
  for pixels, (top, left) in enumerate(corners, 35):
    for row in range(0, pixels, 7):
      alpha[top + row // 7, left : left + min(7, pixels - row)] = True
  ids = extract(alpha)
  assert MAX_INSTANCES == 15
  np.testing.assert_array_equal(
    [ids[corner] for corner in corners], [0] * 5 + list(range(15, 0, -1))
  )
  np.testing.assert_array_equal(np.bincount(ids.ravel())[1:], np.arange(54, 39, -1))


def test_nothing_opaque_is_no_instance():
  assert not extract(np.zeros((16, 16), bool)).any()
  assert (extract(np.ones((16, 16), bool)) == 1).all()


def smooth_outline(part):
  """The share of each pixel that a part ten times finer covers."""
  return part.reshape(60, 10, 60, 10).mean((1, 3))


@pytest.mark.parametrize('outline', ['hard', 'smooth'])
def test_without_alpha_the_coloured_parts_are_found_on_their_background(outline):
  y, x = (np.indices((600, 600)) - 4.5) / 10
  big = np.hypot(y - 20, x - 20) < 14
  middle = (abs(y - 45) < 8) & (abs(x - 45) < 9)
  pixels = np.array([[(230, 225, 210)]])
  for part, colour in ((big, (200, 30, 20)), (middle, (20, 90, 200))):
    share = smooth_outline(part)[..., None]
    share = share if outline == 'smooth' else share > 0.5
    pixels = share * colour + (1 - share) * pixels
  pixels = np.round(pixels).astype(np.uint8)
  ids = segment(pixels)
  assert ids.dtype == np.uint8
  # The blurred rim of a part is not a part of its own.
  assert ids.max() == 2 and ids[20, 20] == 1 and ids[45, 45] == 2
  wanted = (smooth_outline(big) > 0.5) + 2 * (smooth_outline(middle) > 0.5)
  # An outline may shift by a pixel.
  assert reference_mean_iou(wanted, ids) > 0.8
  assert not ids[[0, -1]].any() and not ids[:, [0, -1]].any()


def test_without_alpha_the_segments_are_what_is_stored(photographs):
  for picture in photographs:
    stored = Instances().extract(picture, np.random.default_rng(0))
    np.testing.assert_array_equal(stored[..., 0], segment(picture.pixels))
    sizes = np.bincount(stored.ravel())[1:]
    assert len(sizes) > 2
    assert (np.diff(sizes) <= 0).all() and sizes.min() >= 0.004 * stored.size


def test_codes_are_zero_for_the_background_and_far_apart_otherwise():
  colours = np.asarray(codes())
  assert colours.shape == (MAX_INSTANCES + 1, 3)
  assert (colours[0] == 0).all()
  assert np.abs(colours).max() <= 1
  apart = np.linalg.norm(colours[:, None] - colours[None], axis=-1)
  assert apart[~np.eye(16, dtype=bool)].min() > 0.25


def test_features_are_the_code_of_the_id_and_whether_there_is_one():
  ids = RNG.integers(0, 16, (2, 5, 5, 1)).astype(np.uint8)
  features = np.asarray(Instances().features(ids))
  assert features.shape == (2, 5, 5, 4)
  table = np.asarray(codes())
  for place in np.ndindex(2, 5, 5):
    instance = ids[place][0]
    np.testing.assert_array_equal(features[place][:3], table[instance])
    assert features[place][3] == (1 if instance else -1)


def test_drawings_give_each_instance_its_own_colour():
  ids = np.arange(16, dtype=np.uint8).reshape(4, 4, 1)
  drawn = Instances().draw(ids).reshape(16, 3)
  assert len(np.unique(drawn, axis=0)) == 16
  assert (drawn[0] == drawn[0, 0]).all()  # The background is gray.


def test_other_names_for_the_same_parts_are_as_good():
  asked = 1 * BIG + 2 * MIDDLE + 3 * SMALL
  again = 9 * BIG + 1 * MIDDLE + 15 * SMALL
  assert mean_iou(asked, again) == 1


def test_mean_iou_of_hand_made_cases():
  asked = np.zeros((4, 8), int)
  asked[:, :4] = 1
  shifted = np.zeros((4, 8), int)
  shifted[:, 2:6] = 1
  # Two of six columns are common, inside and outside.
  assert mean_iou(asked, shifted) == pytest.approx(1 / 3)
  # A missing instance counts 0; the background's IoU is 4 of 8 columns.
  assert mean_iou(asked, 0 * asked) == pytest.approx((0 + 1 / 2) / 2)
  # Split in two: only one half matches.
  split = asked.copy()
  split[:, 2:4] = 2
  assert mean_iou(asked, split) == pytest.approx((1 / 2 + 1) / 2)
  # Two that became one: one of them finds nothing.
  assert mean_iou(split, asked) == pytest.approx((1 / 2 + 0 + 1) / 3)
  # Without any background asked for, none is counted.
  assert mean_iou(asked + 1, asked + 1) == 1
  # Found where nothing was asked for: only the background suffers.
  assert mean_iou(0 * asked, asked) == pytest.approx(1 / 2)


def test_matching_maximises_the_sum_rather_than_taking_the_best_pair_first():
  asked = np.repeat([[1, 1, 1, 1, 1, 1, 2, 2, 2, 2]], 2, axis=0)
  again = np.repeat([[3, 3, 3, 1, 1, 1, 1, 1, 1, 1]], 2, axis=0)
  # IoU of (2, 1) is 4/7 and of (1, 3) 3/6; (1, 1) would be 3/10.
  assert mean_iou(asked, again) == pytest.approx((4 / 7 + 1 / 2) / 2)
  assert mean_iou(asked, again) == pytest.approx(reference_mean_iou(asked, again))


@pytest.mark.parametrize('seed', range(12))
def test_mean_iou_equals_the_best_of_all_matchings(seed):
  rng = np.random.default_rng(seed)
  # Parts of very different sizes, with or without background.
  shares = [0.1 * (seed % 2), 0.5, 0.25, 0.1, 0.05]
  asked, again = rng.choice(5, (2, 6, 7), p=np.array(shares) / sum(shares))
  assert mean_iou(asked, again) == pytest.approx(reference_mean_iou(asked, again))
