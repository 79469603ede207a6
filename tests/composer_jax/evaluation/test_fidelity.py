from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from scipy import optimize, stats

from composer_jax import conditions
from composer_jax.conditions import palette
from composer_jax.conditions.intensity import WEIGHTS
from composer_jax.evaluation.bootstrap import estimate, interval, paired
from composer_jax.evaluation.fidelity import Metric, derangement, hold_out, measure

NAMES = tuple(c.name for c in conditions.ALL)
MEASURED_IN_PIXELS = tuple(c.name for c in conditions.ALL if not c.embedded)


@pytest.fixture
def held_out(records, lookup):
  return hold_out(records, NAMES, encoder=lookup.encoder, seed=5)


def cosines(a, b):
  a, b = a.astype(np.float64), b.astype(np.float64)
  return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def darker(held_out):
  """A composer that gives each original back, at half of its brightness."""
  images = (held_out.images // 2).astype(np.uint8)
  return images, lambda stored, kept, *, seeds: images


def values_of(outcome, condition, metric):
  metrics = {m.name: m for m in outcome.fidelities[condition].metrics}
  return {
    kind: getattr(metrics[metric], kind).values
    for kind in ('asked', 'shuffled', 'ceiling')
  }


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('size', [2, 3, 4, 11, 96])
def test_a_derangement_is_one_cycle_through_all(size, seed):
  order = derangement(size, seed)
  place, visited = 0, []
  for _ in range(size):
    visited.append(place)
    place = order[place]
  assert place == 0
  assert sorted(visited) == list(range(size))


def test_all_cycles_are_equally_likely():
  counts = Counter(tuple(derangement(4, seed).tolist()) for seed in range(1200))
  assert len(counts) == 6  # (4 - 1)! cycles of four.
  assert stats.chisquare(list(counts.values())).pvalue > 0.01


def test_the_seed_decides_the_derangement():
  np.testing.assert_array_equal(derangement(50, 1), derangement(50, 1))
  assert (derangement(50, 1) != derangement(50, 2)).any()


def test_what_is_stored_is_taken_from_the_records(records, held_out):
  stored = [c.name for c in conditions.ALL if c.stored and not c.embedded]
  assert stored
  for name in stored:
    for record, value in zip(records, held_out.asked[name], strict=True):
      np.testing.assert_array_equal(value, record[name])
  np.testing.assert_array_equal(held_out.images[3], records[3]['image'])
  assert held_out.captions[3] == records[3]['text']
  assert [c.name for c in held_out.conditions] == list(NAMES)
  assert len(held_out) == len(records)


def test_embedded_conditions_are_of_the_models_own_encoder(records, lookup):
  foreign = [record | {'semantics': np.ones(7, np.float16)} for record in records]
  held_out = hold_out(foreign, ['semantics', 'caption'], encoder=lookup.encoder)
  images = np.stack([record['image'] for record in records])
  expected = lookup.encoder.embed_images(images)
  np.testing.assert_allclose(held_out.asked['semantics'], expected, atol=1e-3)
  words, sentence = lookup.encoder.embed_captions([r['text'] for r in records])
  np.testing.assert_allclose(held_out.asked['caption'][:, -1], sentence, atol=1e-3)
  np.testing.assert_allclose(held_out.asked['caption'][:, :-1], words, atol=1e-3)


def test_what_is_drawn_depends_on_the_seed_and_differs_between_images(records):
  drawn = [c.name for c in conditions.ALL if not c.stored]
  first = hold_out(records, drawn, seed=1)
  again = hold_out(records, drawn, seed=1)
  other = hold_out(records, drawn, seed=2)
  for name in drawn:
    np.testing.assert_array_equal(first.asked[name], again.asked[name])
    assert (first.asked[name] != other.asked[name]).any()
  visible = first.asked['mask'][..., 3]
  assert len(np.unique(visible, axis=0)) > len(records) // 2
  for image, mask in zip(first.images, first.asked['mask'], strict=True):
    np.testing.assert_array_equal(mask[..., :3], np.where(mask[..., 3:], image, 0))


def test_one_image_is_too_few(records):
  with pytest.raises(ValueError, match='1 held-out images, expected at least 2'):
    hold_out(records[:1], ['palette'])


def test_a_record_without_a_condition_is_refused(records):
  broken = [*records[:3], {k: v for k, v in records[3].items() if k != 'sketch'}]
  with pytest.raises(ValueError, match="Record 3 has no 'sketch'"):
    hold_out(broken, ['palette', 'sketch'])


@pytest.mark.parametrize('name', ['caption', 'semantics'])
def test_embedded_conditions_need_an_encoder(records, name):
  with pytest.raises(ValueError, match=f'{name} .*encoder'):
    hold_out(records, ['palette', name])


def test_an_unknown_condition_is_refused(records):
  with pytest.raises(ValueError, match="'smell'.*palette"):
    hold_out(records, ['smell'])


def test_the_palette_is_judged_by_cosine_and_by_optimal_transport(held_out):
  images, compose = darker(held_out)
  outcome = measure(held_out, compose, ['palette'])
  others = derangement(len(held_out), held_out.seed)
  wished = np.stack([palette.smooth(palette.histogram(i)) for i in held_out.images])
  found = np.stack([palette.smooth(palette.histogram(i)) for i in images])
  cosine = values_of(outcome, 'palette', 'cosine')
  np.testing.assert_allclose(cosine['asked'], cosines(wished, found))
  np.testing.assert_allclose(cosine['shuffled'], cosines(wished[others], found))
  np.testing.assert_allclose(cosine['ceiling'], 1)

  distance = values_of(outcome, 'palette', 'earth_movers_lab')
  assert distance['asked'][7] == pytest.approx(transport(wished[7], found[7]), rel=1e-6)
  expected = transport(wished[others[7]], found[7])
  assert distance['shuffled'][7] == pytest.approx(expected, rel=1e-6)
  np.testing.assert_allclose(distance['ceiling'], 0, atol=1e-9)


def transport(p, q):
  """The cost of turning one palette into another, as a linear programme."""
  i, j = np.flatnonzero(p), np.flatnonzero(q)
  p, q = (x[x > 0].astype(np.float64) for x in (p, q))
  rows = np.kron(np.eye(len(i)), np.ones(len(j)))
  columns = np.kron(np.ones(len(i)), np.eye(len(j)))
  return optimize.linprog(
    palette.distances()[np.ix_(i, j)].ravel(),
    A_eq=np.concatenate([rows, columns[:-1]]),  # The last follows from the others.
    b_eq=np.concatenate([p / p.sum(), q[:-1] / q.sum()]),
  ).fun


def test_the_given_part_is_judged_by_the_psnr_of_its_pixels(held_out):
  images, compose = darker(held_out)
  outcome = measure(held_out, compose, ['mask'])
  others = derangement(len(held_out), held_out.seed)

  def psnr(wish, image, visible):
    difference = (wish.astype(float) - image)[visible]
    return 10 * np.log10(255**2 / np.mean(difference**2))

  visible = held_out.asked['mask'][..., 3] > 0
  found = values_of(outcome, 'mask', 'psnr')
  originals = held_out.images
  own = [psnr(originals[i], images[i], visible[i]) for i in range(len(images))]
  np.testing.assert_allclose(found['asked'], own)
  # The result is seen through the mask of the image whose wish it is held against.
  other = [psnr(originals[j], images[i], visible[j]) for i, j in enumerate(others)]
  np.testing.assert_allclose(found['shuffled'], other)
  np.testing.assert_allclose(found['ceiling'], 60)


def test_brightness_is_judged_with_the_channel_weights_it_was_asked_with(held_out):
  images, compose = darker(held_out)
  outcome = measure(held_out, compose, ['intensity'])

  def gray(image, weights):
    return np.round(image @ np.array(weights, np.float32)).astype(float)

  expected, used = [], set()
  for original, wish, image in zip(
    held_out.images, held_out.asked['intensity'][..., 0], images, strict=True
  ):
    errors = [np.abs(gray(original, weights) - wish).max() for weights in WEIGHTS]
    assert min(errors) == 0
    weights = WEIGHTS[int(np.argmin(errors))]
    used.add(weights)
    expected.append(np.corrcoef(wish.ravel(), gray(image, weights).ravel())[0, 1])
  assert len(used) > 1
  found = values_of(outcome, 'intensity', 'correlation')
  np.testing.assert_allclose(found['asked'], expected)
  np.testing.assert_allclose(found['ceiling'], 1)


def test_embedded_conditions_are_judged_by_the_embedding_of_the_image(held_out, lookup):
  images, compose = darker(held_out)
  outcome = measure(held_out, compose, ['semantics', 'caption'])
  others = derangement(len(held_out), held_out.seed)
  seen = lookup.encoder.embed_images(images)
  original = lookup.encoder.embed_images(held_out.images)
  _, said = lookup.encoder.embed_captions(list(held_out.captions))
  for name, metric, wish in (
    ('semantics', 'cosine', original),
    ('caption', 'clip_score', said),
  ):
    found = values_of(outcome, name, metric)
    # Wishes are stored as float16.
    np.testing.assert_allclose(found['asked'], cosines(wish, seen), atol=2e-3)
    expected = cosines(wish[others], seen)
    np.testing.assert_allclose(found['shuffled'], expected, atol=2e-3)
    np.testing.assert_allclose(found['ceiling'], cosines(wish, original), atol=2e-3)


@pytest.mark.parametrize('name', MEASURED_IN_PIXELS)
def test_a_perfect_composer_reaches_the_ceiling(held_out, name):
  outcome = measure(held_out, lambda *_, seeds: held_out.images, [name])
  for metric in outcome.fidelities[name].metrics:
    np.testing.assert_array_equal(metric.asked.values, metric.ceiling.values)


@pytest.mark.parametrize('name', [n for n in NAMES if n != 'caption'])
def test_a_composer_that_follows_one_condition_stands_apart(held_out, lookup, name):
  # Not so the caption: this encoder sees nothing in common in texts and colours.
  outcome = measure(held_out, lookup.compose, [name])
  assert outcome.fidelities[name].headline.apart


def test_all_conditions_can_be_asked_for_together(held_out, lookup):
  outcome = measure(held_out, lookup.compose, reversed(NAMES))
  assert outcome.given == NAMES
  assert tuple(outcome.fidelities) == NAMES
  np.testing.assert_array_equal(outcome.images, held_out.images)


@pytest.mark.parametrize('seed', range(4))
def test_a_composer_that_ignores_the_conditions_is_not_apart(records, lookup, seed):
  held_out = hold_out(records, NAMES, encoder=lookup.encoder, seed=seed)

  def compose(stored, kept, *, seeds):
    rng = np.random.default_rng(seed)
    return held_out.images[rng.integers(len(held_out), size=len(seeds))]

  outcome = measure(held_out, compose, NAMES)
  assert tuple(outcome.fidelities) == NAMES
  apart = [n for n, one in outcome.fidelities.items() if one.headline.apart]
  assert apart == []


def test_images_that_lack_a_condition_are_composed_without_it_and_left_out(
  records, lookup
):
  silent = {2, 3, 9}
  some = [r | {'text': ''} if i in silent else r for i, r in enumerate(records)]
  del some[9]['text']
  held_out = hold_out(some, ['caption', 'palette'], encoder=lookup.encoder)
  spoken = [i for i in range(len(records)) if i not in silent]
  asked = {}

  def compose(stored, kept, *, seeds):
    asked.update(kept)
    return lookup.compose(stored, kept, seeds=seeds)

  outcome = measure(held_out, compose, ['caption', 'palette'])
  np.testing.assert_array_equal(np.flatnonzero(asked['caption']), spoken)
  assert asked['palette'].all()
  caption, palettes = (outcome.fidelities[n] for n in ('caption', 'palette'))
  assert caption.left_out == 3
  assert palettes.left_out == 0
  np.testing.assert_array_equal(caption.indices, spoken)
  np.testing.assert_array_equal(palettes.indices, range(len(records)))
  seen = lookup.encoder.embed_images(outcome.images[spoken])
  _, said = lookup.encoder.embed_captions([records[i]['text'] for i in spoken])
  found = caption.headline
  np.testing.assert_allclose(found.asked.values, cosines(said, seen), atol=2e-3)
  others = derangement(len(spoken), held_out.seed)
  expected = cosines(said[others], seen)
  np.testing.assert_allclose(found.shuffled.values, expected, atol=2e-3)


def test_a_condition_that_a_single_image_has_is_not_judged(records, lookup):
  some = [r | {'text': ''} for r in records[1:]]
  held_out = hold_out(
    [records[0], *some], ['caption', 'palette'], encoder=lookup.encoder
  )
  outcome = measure(held_out, lookup.compose, ['caption', 'palette'])
  assert tuple(outcome.fidelities) == ('palette',)
  assert outcome.given == ('caption', 'palette')
  assert len(outcome.images) == len(records)


def test_each_image_is_composed_with_a_seed_of_its_own(held_out, lookup):
  given = []

  def compose(stored, kept, *, seeds):
    given.append(seeds)
    return lookup.compose(stored, kept, seeds=seeds)

  measure(held_out, compose, ['palette'])
  (seeds,) = given
  np.testing.assert_array_equal(seeds, 5 + np.arange(len(held_out)))


def test_figures_are_means_with_intervals_and_the_gain_is_paired(held_out):
  _, compose = darker(held_out)
  (metric, *_) = measure(held_out, compose, ['palette']).fidelities['palette'].metrics
  for kind in ('asked', 'shuffled', 'ceiling'):
    one = getattr(metric, kind)
    assert one.mean == pytest.approx(np.mean(one.values))
    assert (one.low, one.high) == interval(one.values)
  expected = paired(metric.asked.values, metric.shuffled.values)
  np.testing.assert_array_equal(metric.gain.values, expected.values)
  assert (metric.gain.low, metric.gain.high) == (expected.low, expected.high)


def test_larger_images_are_judged_at_the_size_of_the_maps(held_out):
  large = held_out.images.repeat(2, axis=1).repeat(2, axis=2)
  outcome = measure(held_out, lambda *_, seeds: large, MEASURED_IN_PIXELS)
  np.testing.assert_array_equal(outcome.images, large)
  assert tuple(outcome.fidelities) == MEASURED_IN_PIXELS
  for one in outcome.fidelities.values():
    for metric in one.metrics:
      np.testing.assert_array_equal(metric.asked.values, metric.ceiling.values)


@pytest.mark.parametrize(
  'spoil', [lambda x: x[1:], lambda x: x / 255], ids=['too few', 'floats']
)
def test_what_is_no_image_for_each_is_refused(held_out, spoil):
  with pytest.raises(ValueError, match='expected 12 uint8 images'):
    measure(held_out, lambda *_, seeds: spoil(held_out.images), ['palette'])


def test_apart_means_better_without_overlap():
  def metric(asked, shuffled, higher):
    of = [estimate(np.array(values)) for values in (asked, shuffled)]
    return Metric('x', higher, *of, ceiling=of[0], gain=of[0])

  low, high, wide = [0.1, 0.2, 0.1], [0.8, 0.9, 0.9], [0.0, 1.0, 0.5]
  assert metric(high, low, True).apart
  assert not metric(low, high, True).apart  # Worse than chance.
  assert metric(low, high, False).apart
  assert not metric(high, low, False).apart
  for higher in (True, False):
    assert not metric(high, wide, higher).apart
    assert not metric(low, wide, higher).apart
    assert not metric(low, low, higher).apart
