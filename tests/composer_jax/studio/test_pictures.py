from __future__ import annotations

import numpy as np
import pytest
import skimage.data

from composer_jax.composer import decompose
from composer_jax.conditions import by_name
from composer_jax.conditions.palette import from_colours
from composer_jax.images import Picture, encode_png, resize_square
from composer_jax.studio import pictures
from composer_jax.studio.pictures import CANVASES, data_uri, from_data_uri

SIDE = 32
IMAGE = resize_square(Picture(skimage.data.astronaut()), SIDE).pixels
FOUND = decompose(Picture(IMAGE), SIDE)


@pytest.mark.parametrize('name', [*CANVASES])
def test_what_is_not_drawn_on_stays_as_it_is(name):
  canvas, value = CANVASES[name], FOUND[name]
  layer = from_data_uri(data_uri(encode_png(canvas.layer(value))), SIDE)
  again = canvas.value(layer, IMAGE)
  assert again.dtype == value.dtype and again.shape == value.shape
  # Depth goes through 256 grays.
  atol = 0.025 if name == 'depth' else 0
  np.testing.assert_allclose(again.astype(float), value.astype(float), atol=atol)


@pytest.mark.parametrize('name', [*CANVASES])
def test_paints_are_values_and_an_empty_drawing_is_one(name):
  canvas = CANVASES[name]
  (condition,) = by_name([name])
  spec = condition.spec(SIDE)
  assert len(canvas.paints) > 1
  for _, colour in canvas.paints:
    layer = np.zeros((SIDE, SIDE, 4), np.uint8)
    if colour != 'transparent':
      layer[:] = [*(int(colour[i : i + 2], 16) for i in (1, 3, 5)), 255]
    value = canvas.value(from_data_uri(data_uri(encode_png(layer)), SIDE), IMAGE)
    assert value.shape == spec.shape
    assert spec.low <= value.min() and value.max() <= spec.high
  empty = canvas.empty(SIDE)
  assert (empty.shape, empty.dtype) == (spec.shape, spec.dtype)


def test_each_paint_of_instances_is_an_instance_of_its_own():
  paints = CANVASES['instances'].paints
  colours = [[int(c[i : i + 2], 16) for i in (1, 3, 5)] for _, c in paints]
  row = np.array([colours], np.uint8)
  ids = CANVASES['instances'].value(Picture(row), row).ravel()
  assert sorted(ids) == list(range(16))
  assert ids[0] == 1 and ids[1] == 0


def test_what_is_painted_of_a_mask_is_hidden_and_the_rest_the_image():
  layer = np.zeros((SIDE, SIDE, 4), np.uint8)
  layer[:10] = 255
  value = CANVASES['mask'].value(Picture(layer[..., :3], layer[..., 3]), IMAGE)
  assert value[:10].max() == 0
  np.testing.assert_array_equal(value[10:, :, :3], IMAGE[10:])
  assert value[10:, :, 3].min() == 255


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    (None, 'no form that the studio knows'),
    ('data:image/svg+xml,<svg>', 'no form that the studio knows'),
    ('data:image/png;base64,#', 'damaged'),
    ('data:image/png;base64,AAAA', 'expected an image'),
    ('data:image/png;base64,' + 'A' * 10**6, 'too many for 32 pixels'),
    (data_uri(encode_png(IMAGE[:16, :16])), '16 x 16 pixels; expected 32 a side'),
    (data_uri(encode_png(np.zeros((8, 8192), np.uint8))), 'expected'),
  ],
)
def test_what_is_no_drawing_is_refused(text, message):
  with pytest.raises(ValueError, match=message):
    from_data_uri(text, SIDE)


def test_colours_of_a_palette_are_those_it_was_made_from():
  palette = from_colours(np.array([[255, 0, 0], [0, 0, 0]], np.uint8), np.array([3, 1]))
  first, second = pictures.colours_of(palette)[:2]
  assert first['colour'] == '#ff0000' and second['colour'] == '#000000'
  assert first['weight'] > second['weight']
  again = pictures.palette_of([first, second])
  assert again @ palette / np.linalg.norm(again) / np.linalg.norm(palette) > 0.98


@pytest.mark.parametrize(
  ('colours', 'message'),
  [
    ([], '1 to 12 colours'),
    ('#aa3322', '1 to 12 colours'),
    (['#aa3322'] * 13, '1 to 12 colours'),
    ([{'colour': 'red', 'weight': 1}], "'red' is no colour"),
    ([{'colour': '#aa3322', 'weight': float('nan')}], 'The weight of #aa3322 is nan'),
    ([{'colour': '#aa3322', 'weight': 0}], 'The weight of #aa3322 is 0'),
    ([{'weight': 1}], 'None is no colour'),
    ([3], '3 is no colour'),
  ],
)
def test_what_is_no_palette_is_refused(colours, message):
  with pytest.raises(ValueError, match=message):
    pictures.palette_of(colours)


def test_every_condition_but_embeddings_can_be_edited():
  drawn = {c.name for c in by_name(FOUND) if not c.embedded}
  assert drawn == {'palette', *CANVASES}
