from __future__ import annotations

import json

import jax
import numpy as np
import pytest

from composer_jax import conditions
from composer_jax.conditions import ALL, GlobalFeatures, by_name
from composer_jax.images import Picture

SIZE = 48
# The best that each metric can be, by its definition.
BEST = {
  'bhattacharyya': 1,
  'clip_score': 1,
  'cosine': 1,
  'correlation': 1,
  'earth_movers_lab': 0,
  'f1': 1,
  'mean_iou': 1,
  'psnr': 60,
  'rank_correlation': 1,
  'rmse': 0,
}

every = pytest.mark.parametrize('condition', ALL, ids=lambda c: c.name)
measured = pytest.mark.parametrize(
  'condition', [c for c in ALL if not c.embedded], ids=lambda c: c.name
)


def measure(condition, picture, encoder, seed=0):
  """The stored value of one picture, whichever way it is made."""
  if condition.embedded:
    caption = f'the picture that begins with {picture.pixels[30, 30:34].tolist()}'
    return condition.embed(encoder, picture.pixels[None], [caption])[0]
  return condition.extract(picture, np.random.default_rng(seed))


def batch_of(condition, pictures, encoder):
  return np.stack([measure(condition, picture, encoder) for picture in pictures])


def assert_keeps(spec, stored):
  assert stored.shape == spec.shape
  assert stored.dtype == spec.dtype
  assert np.isfinite(stored).all()
  assert spec.low <= stored.min() and stored.max() <= spec.high


def test_the_eight_of_the_paper_are_there_with_its_ways_in_and_drop_rates():
  assert {c.name: c.local for c in ALL} == {
    'caption': False,
    'semantics': False,
    'palette': False,
    'sketch': True,
    'instances': True,
    'depth': True,
    'intensity': True,
    'mask': True,
  }
  assert {c.name: c.drop_rate for c in ALL if c.drop_rate != 0.5} == {'intensity': 0.7}
  assert sum(c.extra_tokens for c in ALL) == 8


@every
def test_values_keep_the_promises_of_the_spec(condition, pictures, encoder):
  spec = condition.spec(SIZE)
  for picture in pictures:
    assert_keeps(spec, measure(condition, picture, encoder))


@measured
def test_the_spec_follows_the_size_of_the_picture(condition, encoder):
  noise = np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)
  assert_keeps(condition.spec(20), measure(condition, Picture(noise), encoder))


@every
def test_the_spec_can_be_written_to_a_file_and_names_its_unit_and_source(condition):
  spec = condition.spec(SIZE)
  again = json.loads(json.dumps(spec.to_json()))
  assert tuple(again.pop('shape')) == spec.shape
  assert again['dtype'] == spec.dtype
  assert (again['low'], again['high'], again['null']) == (spec.low, spec.high, 0)
  assert again['unit'] and again['source']
  assert spec.low <= spec.null <= spec.high


@measured
def test_extraction_leaves_the_picture_alone(condition, pictures):
  picture = Picture(pictures[3].pixels.copy(), pictures[3].alpha.copy())
  condition.extract(picture, np.random.default_rng(0))
  np.testing.assert_array_equal(picture.pixels, pictures[3].pixels)
  np.testing.assert_array_equal(picture.alpha, pictures[3].alpha)


@measured
def test_only_what_is_not_stored_depends_on_the_random_generator(
  condition, photographs
):
  values = [
    condition.extract(photographs[0], np.random.default_rng(seed))
    for seed in [*range(8), 0]
  ]
  np.testing.assert_array_equal(values[0], values[-1])
  same = all(np.array_equal(values[0], value) for value in values)
  assert same == condition.stored


@measured
def test_different_photographs_differ(condition, photographs, encoder):
  first, second, third = batch_of(condition, photographs, encoder)
  assert (first != second).any() and (second != third).any()


@every
def test_drawings_are_colour_pictures_that_show_the_value(
  condition, photographs, pictures, encoder
):
  for picture in pictures:
    drawn = condition.draw(measure(condition, picture, encoder))
    assert drawn.dtype == np.uint8
    assert drawn.ndim == 3 and drawn.shape[2] == 3
    if condition.local:
      assert drawn.shape[:2] == (SIZE, SIZE)
  first, second, _ = (
    condition.draw(x) for x in batch_of(condition, photographs, encoder)
  )
  assert (first != second).mean() > 0.01


@every
def test_features_are_finite_and_of_order_one(condition, pictures, encoder):
  stored = batch_of(condition, pictures, encoder)
  features = condition.features(stored)
  if condition.local:
    assert features.shape[:3] == stored.shape[:3]
    assert features.dtype == np.float32
    assert np.isfinite(features).all()
    assert np.abs(features).max() <= 1
    # Both halves of the range are used.
    assert features.min() < -0.5 and features.max() >= 0
    return
  assert isinstance(features, GlobalFeatures)
  assert features.vector.ndim == 2 and len(features.vector) == len(stored)
  for part in features:
    if part is not None:
      assert part.dtype == np.float32
      assert np.isfinite(part).all()
  size = np.sqrt(np.mean(np.square(features.vector), axis=1))
  assert (size > 0.8).all() and (size < 1.25).all()


@every
def test_features_tell_the_photographs_apart(condition, photographs, encoder):
  stored = batch_of(condition, photographs, encoder)
  for part in jax.tree.leaves(condition.features(stored)):
    first, second, third = np.asarray(part)
    spread = 0.1 * min(1, np.abs(second).max())
    assert np.abs(first - second).max() > spread
    assert np.abs(second - third).max() > spread


@every
def test_compiled_features_equal_eager_ones(condition, pictures, encoder):
  stored = batch_of(condition, pictures, encoder)
  eager = jax.tree.leaves(condition.features(stored))
  compiled = jax.tree.leaves(jax.jit(condition.features)(stored))
  assert len(eager) == len(compiled)
  for a, b in zip(eager, compiled, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


@every
def test_the_null_value_has_finite_features_and_counts_as_absent_if_embedded(
  condition, photographs, encoder
):
  spec = condition.spec(SIZE)
  null = np.full(spec.shape, spec.null, spec.dtype)
  stored = np.stack([null, measure(condition, photographs[0], encoder)])
  for part in jax.tree.leaves(condition.features(stored)):
    assert np.isfinite(part).all()
  present = jax.jit(condition.present)(stored)
  assert present.dtype == bool
  assert present.tolist() == [not condition.embedded, True]


@every
def test_no_other_value_is_as_faithful_as_the_value_itself(
  condition, photographs, encoder
):
  first, *others = batch_of(condition, photographs, encoder)
  # The semantics of a generated image are what a caption is compared with.
  is_caption = condition.name == 'caption'
  first_again = first[-1] if is_caption else first
  own = condition.fidelity(first, first_again)
  assert list(own) == list(condition.higher_is_better)
  for name, value in own.items():
    assert type(value) is float
    assert value == pytest.approx(BEST[name], abs=1e-6)
  for other in others:
    again = condition.fidelity(first, other[-1] if is_caption else other)
    assert list(again) == list(condition.higher_is_better)
    for name, value in again.items():
      better = condition.higher_is_better[name]
      assert value < own[name] - 0.01 if better else value > own[name] + 0.01


def test_embedded_conditions_refuse_pixels_and_measured_ones_an_encoder(encoder):
  picture = Picture(np.zeros((8, 8, 3), np.uint8))
  for condition in ALL:
    if condition.embedded:
      with pytest.raises(NotImplementedError, match=f'{condition.name} needs'):
        condition.extract(picture, np.random.default_rng(0))
    else:
      with pytest.raises(NotImplementedError, match=f'{condition.name} is not made'):
        condition.embed(encoder, picture.pixels[None], [''])


def test_names_find_their_conditions_in_the_order_of_the_list():
  found = by_name(['mask', 'palette', 'caption'])
  assert [c.name for c in found] == ['caption', 'palette', 'mask']
  assert by_name(c.name for c in reversed(ALL)) == ALL
  assert by_name([]) == ()


def test_an_unknown_name_is_refused_with_the_known_ones():
  with pytest.raises(ValueError, match="'colour'.*caption.*palette.*mask"):
    by_name(['palette', 'colour'])


def test_a_condition_without_its_parts_cannot_be_made():
  class Nameless(conditions.Condition):
    pass

  with pytest.raises(TypeError, match='draw.*features.*fidelity.*spec'):
    Nameless()
