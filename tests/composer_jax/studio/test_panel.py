from __future__ import annotations

import base64
import dataclasses
import io
import json
import math

import numpy as np
import pytest

from composer_jax.composer import Composer
from composer_jax.recipe import FIELD, Recipe, make
from composer_jax.sampling.expression import Term
from composer_jax.studio import panel as panels
from composer_jax.studio.limits import Limits
from composer_jax.studio.panel import Panel
from tests.composer_jax.tiny import SIZE, composer_of

LIMITS = Limits()


@pytest.fixture(scope='module')
def composer():
  return composer_of()


@pytest.fixture(scope='module')
def demo():
  return Composer.load('demo')


def values():
  rng = np.random.default_rng(0)
  return {
    'palette': rng.dirichlet(np.ones(180)).astype(np.float32),
    'sketch': (rng.random((SIZE, SIZE, 1)) < 0.3).astype(np.uint8) * 255,
  }


def panel():
  return Panel(
    values(),
    {'sketch': 0.5},
    {'palette': (0.0, 0.6)},
    seed=7,
    count=2,
    sampling={'steps': 2, 'guidance': 3.0},
  )


def same(a, b):
  assert dataclasses.asdict(a).keys() == dataclasses.asdict(b).keys()
  for name in ('strengths', 'windows', 'caption', 'negative', 'prior', 'seed'):
    assert getattr(a, name) == getattr(b, name)
  assert a.values.keys() == b.values.keys()
  for name in a.values:
    np.testing.assert_array_equal(a.values[name], b.values[name])


def test_each_image_has_a_recipe_with_a_seed_of_its_own(composer):
  first, second = panel().recipes(composer)
  assert (first.seed, second.seed) == (7, 8)
  assert first.terms[0].values.keys() == {'palette', 'sketch'}
  assert first.strengths == {'sketch': 0.5}
  last = dataclasses.replace(panel(), seed=2**32 - 1).recipes(composer)
  assert [recipe.seed for recipe in last] == [2**32 - 1, 0]


def test_a_panel_survives_sharing_and_the_png(composer):
  before = dataclasses.replace(panel(), prior=False)
  recipe = before.recipes(composer)[0]
  same(panels.restore(panels.share(recipe, before), 'recipe'), before)
  image = np.zeros((4, 4, 3), np.uint8)
  same(panels.from_png(panels.to_png(image, recipe, before), 'a.png'), before)


def test_the_image_of_a_restored_panel_is_the_same(composer):
  recipe = panel().recipes(composer)[0]
  again = panels.restore(recipe.to_json(), 'recipe').recipes(composer)[0]
  np.testing.assert_array_equal(make(composer, recipe), make(composer, again))


def test_words_are_restored_as_words_and_say_the_same(demo):
  before = Panel(caption='red apple', negative='blue car', seed=3)
  recipe = before.recipes(demo)[0]
  assert {'caption', 'semantics'} <= recipe.terms[0].values.keys()
  assert 'caption' in recipe.base
  after = panels.restore(panels.share(recipe, before), 'recipe')
  assert (after.caption, after.negative, after.values) == ('red apple', 'blue car', {})
  again = after.recipes(demo)[0]
  assert again.to_json() == recipe.to_json()


def test_without_notes_embeddings_are_kept(demo):
  recipe = Panel(caption='red apple', negative='blue car').recipes(demo)[0]
  after = panels.restore(recipe.to_json(), 'recipe')
  assert after.values.keys() == recipe.terms[0].values.keys()
  assert after.recipes(demo)[0].to_json() == recipe.to_json()


def test_terms_that_the_panel_cannot_show_are_kept(composer):
  other = {'palette': values()['palette'][::-1].copy()}
  recipe = Recipe(
    composer.fingerprint, 1, (Term(1.0, values()), Term(-0.5, other)), sampling={}
  )
  again = panels.restore(recipe.to_json(), 'recipe').recipes(composer)[0]
  assert again.to_json() == recipe.to_json()


def test_what_is_chosen_counts_more_than_what_a_text_says(demo):
  own = np.ones(demo.condition_shapes['semantics'], np.float16)
  recipe = Panel({'semantics': own}, caption='red apple').recipes(demo)[0]
  np.testing.assert_array_equal(recipe.terms[0].values['semantics'], own)


def changed(**fields):
  plain = json.loads(panel().recipes(composer_of())[0].to_json())
  return json.dumps(plain | fields)


def conditions(**arrays):
  buffer = io.BytesIO()
  np.savez_compressed(buffer, **arrays)
  return base64.b64encode(buffer.getvalue()).decode()


@pytest.mark.parametrize(
  'text',
  [
    '[1, 2]',
    'no JSON',
    '[' * 100_000,
    '{}',
    changed(seed=math.nan),
    changed(strengths={'sketch': math.nan}),
    changed(strengths={'../../etc/passwd': 1.0}),
    changed(windows={'sketch': [0, math.inf]}),
    changed(sampling={'guidance': math.nan}),
    changed(sampling={'steps': 10**9, 'colour': 1}),
    changed(conditions='AAAA'),
    changed(conditions=conditions(**{'0.sketch': np.zeros(2**28 + 1, np.uint8)})),
    changed(studio=[1]),
    changed(studio={'caption': 7}),
    changed(studio={'prior': 'yes'}),
  ],
)
def test_a_damaged_recipe_is_refused(text):
  with pytest.raises(ValueError, match='recipe'):
    panels.restore(text, 'The recipe')


def test_a_png_without_a_recipe_is_none_and_a_damaged_one_is_refused():
  from composer_jax.images import encode_png

  image = np.zeros((4, 4, 3), np.uint8)
  assert panels.from_png(encode_png(image), 'a.png') is None
  with pytest.raises(ValueError, match='a.png holds a damaged recipe'):
    panels.from_png(encode_png(image, text={FIELD: '{}'}), 'a.png')


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'seed': -1}, 'The seed is -1; expected 0 to'),
    ({'count': 9}, 'The number of images is 9; expected 1 to 8'),
    ({'strengths': {'sketch': math.nan}}, 'The strength of sketch is nan'),
    ({'windows': {'sketch': (0.5, 0.2)}}, 'ends at 0.2, before 0.5'),
    ({'sampling': {'steps': 101}}, 'Steps is 101; expected 1 to 100'),
    ({'sampling': {'guidance': math.inf}}, 'Guidance is inf'),
    ({'caption': 'x' * 501}, '501 characters'),
    ({'values': {'sketch': np.zeros((3, 3, 1), np.uint8)}}, r'shape \(3, 3, 1\)'),
    ({'values': {'palette': np.full(180, np.nan, np.float32)}}, 'no numbers'),
    ({'values': {'palette': np.full(180, 7.0, np.float32)}}, 'holds 7 to 7'),
    ({'values': {'palette': np.full(180, 'x')}}, 'no numbers'),
    ({'away': {'palette': np.full(180, np.inf)}}, 'no numbers'),
    ({'more': (Term(1.0, {'depth': np.zeros(3)}),)}, 'depth has shape'),
    ({'values': {'smell': np.zeros(3)}}, "Unknown condition 'smell'"),
  ],
)  # fmt: skip
def test_what_a_model_cannot_take_is_said(composer, change, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(panel(), **change).check(composer, LIMITS)


def test_a_good_panel_passes(composer):
  panel().check(composer, LIMITS)
