from __future__ import annotations

import numpy as np
import pytest
import skimage.data

from composer_jax.conditions.palette import codebook
from composer_jax.images import Picture, encode_png
from composer_jax.studio.engine import Engine
from composer_jax.studio.limits import Limits
from composer_jax.studio.panel import Panel
from composer_jax.studio.pictures import data_uri
from composer_jax.studio.presets import PRESETS
from composer_jax.studio.session import OWN, Choice, Session
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
