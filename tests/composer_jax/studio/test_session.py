from __future__ import annotations

import numpy as np
import pytest
import skimage.data

from composer_jax.composer import REVERSIBLE
from composer_jax.conditions.palette import codebook
from composer_jax.images import Picture, encode_png
from composer_jax.recipe import Recipe, make
from composer_jax.studio.engine import Engine
from composer_jax.studio.limits import Limits
from composer_jax.studio.panel import Panel
from composer_jax.studio.pictures import data_uri
from composer_jax.studio.presets import PRESETS
from composer_jax.studio.session import FIRST, OWN, RECIPE, WAY, Choice, Session
from composer_jax.tasks.interpolation import interpolation
from tests.composer_jax.tiny import SIZE, composer_of

ASTRONAUT = Picture(skimage.data.astronaut())
CAT = Picture(skimage.data.chelsea())


@pytest.fixture(scope='module')
def engine():
  return Engine(composer_of(), Limits(images=2))


@pytest.fixture
def session(engine):
  session = Session()
  session.add(engine, ASTRONAUT, 'a.png')
  session.add(engine, CAT, 'b.png')
  return session


def drawing(value=0):
  return data_uri(encode_png(np.full((SIZE, SIZE, 3), value, np.uint8)))


def test_no_more_images_than_allowed_are_opened_and_keys_are_not_used_twice(
  engine, session
):
  with pytest.raises(ValueError, match='2 images are open, as many as may be'):
    session.add(engine, CAT, 'c.png')
  session.remove('1')
  assert session.add(engine, CAT, 'c.png') == '3'


def test_conditions_come_from_the_images_they_are_chosen_from(engine, session):
  session.choose(
    {
      'sketch': {'source': '1', 'strength': 0.5},
      'palette': {'source': '2', 'start': 0.25, 'end': 0.75},
      'depth': {'source': ''},
    },
    engine,
  )
  panel = session.panel(seed=3)
  assert panel.values.keys() == {'sketch', 'palette'}
  np.testing.assert_array_equal(
    panel.values['palette'], session.sources['2'].found['palette']
  )
  assert panel.strengths == {'sketch': 0.5} and panel.seed == 3
  assert panel.windows == {'palette': (0.25, 0.75)}


def test_a_removed_image_is_not_used(engine, session):
  session.choose({'sketch': {'source': '1'}, 'palette': {'source': '2'}}, engine)
  session.remove('1')
  assert session.panel().values.keys() == {'palette'}
  # The page may still say so.
  session.choose({'sketch': {'source': '1'}}, engine)
  assert not session.panel().values


@pytest.mark.parametrize('source', ['2', OWN])
def test_a_page_is_told_that_its_session_has_ended(engine, session, source):
  session.own['sketch'] = session.sources['2'].found['sketch']
  asked = {'sketch': {'source': source}}
  session.choose(asked, engine)
  assert session.panel().values
  with pytest.raises(ValueError, match='session has ended: load the page again'):
    Session().choose(asked, engine)


@pytest.mark.parametrize(
  ('asked', 'message'),
  [
    ([], 'damaged'),
    ({'sketch': 1}, 'The choice of sketch is damaged'),
    ({'smell': {}}, "Unknown condition 'smell'"),
    ({'sketch': {'source': ['/etc/passwd']}}, 'expected an image'),
    ({'sketch': {'strength': float('nan')}}, 'The strength of sketch is nan'),
    ({'sketch': {'start': -1}}, 'The start of sketch is -1'),
    ({'sketch': {'end': None}}, 'The end of sketch is None'),
  ],
)
def test_nonsense_is_refused_and_changes_nothing(engine, session, asked, message):
  session.choose({'sketch': {'source': '1'}}, engine)
  with pytest.raises(ValueError, match=message):
    session.choose(asked, engine)
  assert session.choices == {'sketch': Choice('1')}


def test_what_is_drawn_is_chosen(engine, session):
  name = session.edit(engine, {'name': 'sketch', 'layer': drawing(), 'source': '1'})
  assert name == 'sketch' and session.choices['sketch'].source == OWN
  assert session.panel().values['sketch'].min() == 255
  session.edit(
    engine, {'name': 'palette', 'colours': [{'colour': '#ff0000', 'weight': 1}]}
  )
  most = session.panel().values['palette'].argmax()
  np.testing.assert_array_equal(codebook()[most], [255, 0, 0])


def test_pixels_that_a_mask_leaves_stay_unless_it_is_weakened(engine, session):
  layer = np.zeros((SIZE, SIZE, 4), np.uint8)
  layer[:, : SIZE // 2, 3] = 255  # Painted: it may change.
  uri = data_uri(encode_png(layer))
  session.edit(engine, {'name': 'mask', 'layer': uri, 'source': '2'})
  panel = session.panel()
  kept, pixels = panel.kept, session.sources['2'].pixels
  half = SIZE // 2
  assert not kept[:, :half].any() and kept[:, half:, 3].min() == 255
  np.testing.assert_array_equal(kept[:, half:, :3], pixels[:, half:])
  (recipe,) = panel.recipes(engine.composer)
  made = make(engine.composer, recipe)
  np.testing.assert_array_equal(made[:, half:], pixels[:, half:])
  other = Session()
  other.restore(Panel.from_recipe(recipe))
  np.testing.assert_array_equal(other.panel().kept, kept)
  session.choose({'mask': {'source': OWN, 'strength': 0.5}}, engine)
  assert session.panel().kept is None
  session.choose({}, engine)
  assert session.panel().kept is None


@pytest.mark.parametrize(
  ('edited', 'message'),
  [
    (None, 'damaged'),
    ({'name': 'semantics'}, "'semantics' cannot be drawn"),
    ({'name': '../../x', 'layer': drawing()}, 'cannot be drawn'),
    ({'name': 'sketch', 'layer': 'x'}, 'no form'),
    ({'name': 'palette', 'colours': None}, 'colours'),
  ],
)
def test_what_is_no_drawing_is_refused(engine, session, edited, message):
  with pytest.raises(ValueError, match=message):
    session.edit(engine, edited)


def test_a_canvas_begins_with_what_is_chosen(engine, session):
  session.choose({'sketch': {'source': '1'}}, engine)
  chosen = session.canvas('sketch', SIZE)
  session.choose({'sketch': {'source': '2'}}, engine)
  other = session.canvas('sketch', SIZE)
  assert chosen['behind'] and chosen['behind'] != other['behind']
  assert Session().canvas('sketch', SIZE)['behind'] == ''
  assert Session().canvas('palette', SIZE)['colours']
  with pytest.raises(ValueError, match='semantics cannot be drawn'):
    session.canvas('semantics', SIZE)


def test_a_panel_is_restored(engine, session):
  session.choose({'sketch': {'source': '1', 'strength': 0.5}}, engine)
  panel = session.panel(seed=4)
  other = Session()
  other.restore(panel)
  again = other.panel(seed=4)
  assert again.strengths == panel.strengths
  np.testing.assert_array_equal(again.values['sketch'], panel.values['sketch'])


@pytest.mark.parametrize('name', [*PRESETS])
def test_a_task_chooses_what_it_takes(engine, session, name):
  preset = PRESETS[name]
  session.preset(preset, SIZE)
  # The tiny model cannot make embeddings.
  assert session.panel().values.keys() == preset.take.keys() - {'semantics'}
  if preset.edit == 'mask':
    assert session.panel().values['mask'][..., 3].min() == 255
  session.panel().check(engine.composer, engine.limits)


def test_a_task_says_which_images_it_lacks():
  with pytest.raises(ValueError, match='It needs 2 images; add them first'):
    Session().preset(PRESETS['style transfer'], SIZE)
  with pytest.raises(ValueError, match='It needs one image'):
    Session().preset(PRESETS['variation'], SIZE)
  Session().preset(PRESETS['text to image'], SIZE)


def test_choosing_a_task_forgets_what_was_restored(session):
  session.restore(Panel(away={'palette': np.zeros(180, np.float32)}))
  session.preset(PRESETS['variation'], SIZE)
  assert not session.panel().away


def recipes(engine, session, *words, **more):
  settings = {'sampling': {'steps': 2}, 'prior': False}
  return session.panel(*words, **settings, **more).recipes(engine.composer)


def test_an_image_starts_from_the_noise_behind_another_and_its_recipe_has_it(
  engine, session
):
  session.choose({'sketch': {'source': '1'}, 'palette': {'source': '2'}}, engine)
  (recipe,) = recipes(engine, session, FIRST)
  own = {n: session.sources['1'].found[n][None] for n in ('sketch', 'palette')}
  pixels = session.sources['1'].pixels[None]
  noise = engine.composer.invert(pixels, own, sampling={'steps': 2} | REVERSIBLE)
  np.testing.assert_array_equal(recipe.start, noise[0])
  assert recipe.sampling == {'steps': 2} | REVERSIBLE
  again = Recipe.from_json(recipe.to_json(), 'recipe')
  np.testing.assert_array_equal(
    make(engine.composer, again), make(engine.composer, recipe)
  )
  other = Session()
  other.restore(Panel.from_recipe(again))
  (restored,) = recipes(engine, other, RECIPE)
  assert restored.to_json() == recipe.to_json()


def test_the_way_between_two_images_is_that_of_interpolation(engine, session):
  session.choose({'palette': {'source': '1'}}, engine)
  made = [
    make(engine.composer, recipe) for recipe in recipes(engine, session, WAY, count=3)
  ]
  first, second = (np.stack([session.sources[key].pixels] * 3) for key in ('1', '2'))
  wanted = interpolation(
    engine.composer,
    first,
    second,
    np.linspace(0, 1, 3),
    names=['palette'],
    sampling={'steps': 2},
  )
  assert np.abs(np.stack(made).astype(int) - wanted).max() <= 2


def test_what_is_not_there_is_nothing_to_start_from(engine, session):
  with pytest.raises(ValueError, match='There is no .noise of the recipe'):
    session.panel(RECIPE)
  with pytest.raises(ValueError, match="There is no '../x'"):
    session.panel('../x')
  with pytest.raises(ValueError, match='takes 2 images; add them first'):
    Session().panel(WAY)


def test_an_expression_takes_images_by_number(engine, session):
  text = 'sketch:1 & !0.5*palette:2 & palette:#ff0000,#000000'
  expression = session.expression(engine, text)
  (recipe,) = recipes(engine, session, expression=expression)
  first, second = recipe.terms
  assert first.values.keys() == {'sketch', 'palette'} and second.weight == -0.5
  found = session.sources['2'].found['palette']
  np.testing.assert_array_equal(second.values['palette'], found)
  again = Panel.from_recipe(Recipe.from_json(recipe.to_json(), 'recipe'), {})
  assert again.recipes(engine.composer)[0].terms[1].weight == -0.5


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('sketch:3', 'is no image; expected 1 to 2'),
    ('sketch:../../etc/passwd', 'is no image'),
    ('sketch:0', 'is no image'),
    ('palette:#ff', 'is no colour'),
    ('sketch', 'The expression'),
    ('smell:1', "Unknown condition 'smell'"),
    ("caption:'a cat'", 'needs a model with a dual encoder'),
  ],
)
def test_what_is_no_expression_is_refused(engine, session, text, message):
  with pytest.raises(ValueError, match=message):
    session.expression(engine, text)


def test_an_expression_of_many_terms_is_refused(engine, session):
  expression = session.expression(engine, ' & '.join(['!palette:1'] * 8))
  with pytest.raises(ValueError, match='more than 6 terms'):
    recipes(engine, session, expression=expression)
