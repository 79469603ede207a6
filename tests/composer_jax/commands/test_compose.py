from __future__ import annotations

import re

import numpy as np
import pytest
import skimage.data
from PIL import Image

from composer_jax import cli
from composer_jax.commands.compose import (
  parse_palette,
  parse_strength,
  parse_window,
)
from composer_jax.conditions.palette import Palette
from composer_jax.images import Picture


def palette_of(*stripes):
  """The palette of an image of vertical stripes: (colour, pixels wide) each."""
  colours, widths = zip(*stripes, strict=True)
  row = np.repeat(np.array(colours, np.uint8), widths, axis=0)
  picture = Picture(np.broadcast_to(row, (12, *row.shape)))
  return Palette().extract(picture, np.random.default_rng(0))


@pytest.mark.parametrize(
  ('text', 'stripes'),
  [
    ('#aa3322', [((170, 51, 34), 12)]),
    ('#AA3322', [((170, 51, 34), 12)]),
    ('aa3322', [((170, 51, 34), 12)]),
    ('#fff', [((255, 255, 255), 12)]),
    ('#1af', [((17, 170, 255), 12)]),
    ('#f00,#00f', [((255, 0, 0), 6), ((0, 0, 255), 6)]),
    (' #f00 , 00f ', [((255, 0, 0), 6), ((0, 0, 255), 6)]),
    ('#f00:1,#00f:3', [((255, 0, 0), 3), ((0, 0, 255), 9)]),
    ('#f00:0.5,#00f,#0f0:0.5', [((255, 0, 0), 3), ((0, 0, 255), 6), ((0, 255, 0), 3)]),
    ('#f00,#f00,#00f', [((255, 0, 0), 8), ((0, 0, 255), 4)]),
    ('#f00:9', [((255, 0, 0), 12)]),
  ],
)
def test_colours_give_the_palette_of_an_image_with_them(text, stripes):
  found = parse_palette(text)
  expected = palette_of(*stripes)
  assert found.shape == expected.shape
  assert found.dtype == expected.dtype
  np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(
  'bad',
  [
    '',
    ' ',
    'red',
    '#',
    '#12',
    '#12345',
    '#1234567',
    '##fff',
    '#ggg',
    '#fff:',
    '#fff:0',
    '#fff:0.0',
    '#fff:-1',
    '#fff:x',
    '#fff:nan',
    '#fff:inf',
    '#fff:1e3',
    '#fff:1:2',
    '#fff #000',
    'rgb(1;2;3)',
    '#fff:' + '9' * 400,
  ],
  ids=lambda bad: repr(bad[:12]),
)
@pytest.mark.parametrize('among', ['{}', '#fff,{}', '{},#fff'])
def test_what_is_no_colour_is_refused_and_shown(bad, among):
  with pytest.raises(ValueError, match='is no colour') as error:
    parse_palette(among.format(bad))
  assert repr(bad) in str(error.value)
  assert 'expected colours like #aa3322' in str(error.value)


def test_proportions_alone_matter():
  one, two = parse_palette('#f00:1,#00f:3'), parse_palette('#f00:5,#00f:15')
  np.testing.assert_allclose(one, two, rtol=1e-6)


def test_windows_and_strengths_are_numbers_in_their_ranges():
  assert parse_window('0:0.6') == (0.0, 0.6)
  assert parse_window('0.25:0.25') == (0.25, 0.25)
  assert parse_strength('0.5') == 0.5
  assert parse_strength('2') == 2.0
  for bad in ('', '1', '0:1:2', '0.6:0.2', '-1:1', '0:1.1', 'nan:1', 'a:b'):
    with pytest.raises(ValueError, match=r'expected (START:END|0 <= START)'):
      parse_window(bad)
  for bad in ('', '-1', 'nan', 'inf', '1e9', 'much'):
    with pytest.raises(ValueError, match='expected a number from 0 up'):
      parse_strength(bad)


def compose(tmp_path, *flags):
  model, out = tmp_path / 'model', tmp_path / 'x.png'
  return cli.main(['compose', '--model', str(model), '--out', str(out), *flags])


ASK = ['--from', 'a.png', '--use', 'palette']


@pytest.mark.parametrize(
  ('flags', 'said'),
  [
    (['--from', 'a.png'], 'each --from IMAGE needs a --use'),
    (['--use', 'sketch'], 'each --from IMAGE needs a --use'),
    (
      ['--from', 'a.png', '--from', 'b.png', '--use', 'sketch'],
      'each --from IMAGE needs a --use',
    ),
    (
      ['--again', 'a.png', '--from', 'b.png', '--use', 'sketch'],
      '--again takes everything from the PNG',
    ),
    (['--again', 'a.png', '--palette', '#fff'], '--again takes everything'),
    (['--again', 'a.png', '--caption', 'a cat'], '--again takes everything'),
    (['--seed', '-1'], '--seed is -1; expected 0 to 4294967295'),
    (['--seed', '4294967296'], '--seed is 4294967296; expected 0 to 4294967295'),
    (['--seed', 'lucky'], "'lucky'"),
    (['--guidance', 'nan'], '--guidance is nan; expected a finite number'),
    (['--guidance', '-inf'], '--guidance'),
    (['--steps', 'many'], "'many'"),
    (['--colour', 'red'], '--colour'),
    (['--ste', '1'], '--ste'),
    (['--caption', ' '], '--caption is empty'),
    (['--palette', '#fff', *ASK], 'palette is asked for twice'),
    ([*ASK, *ASK], 'palette is asked for twice'),
    (['--out', 'x.jpg'], '--out is x.jpg; expected the name of a file in .png'),
  ],
)
def test_flags_that_make_no_sense_are_refused(capsys, tmp_path, flags, said):
  with pytest.raises(SystemExit) as stop:
    compose(tmp_path, *flags)
  assert stop.value.code == 2
  output = capsys.readouterr()
  assert output.out == ''
  assert said in output.err.splitlines()[-1]
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('missing', ['--model', '--out'])
def test_model_and_result_must_be_named(capsys, tmp_path, missing):
  flags = {'--model': str(tmp_path), '--out': str(tmp_path / 'x.png')}
  del flags[missing]
  with pytest.raises(SystemExit) as stop:
    cli.main(['compose', *(word for pair in flags.items() for word in pair)])
  assert stop.value.code == 2
  last = capsys.readouterr().err.splitlines()[-1]
  assert last.endswith(f'the following arguments are required: {missing}')


@pytest.mark.parametrize('name', ['smell', '', 'sketch;palette', 'Sketch'])
def test_an_unknown_condition_is_refused_with_those_that_there_are(
  capsys, tmp_path, name
):
  Image.fromarray(skimage.data.astronaut()).save(tmp_path / 'a.png')
  flags = ['--from', str(tmp_path / 'a.png'), '--use', f'sketch,{name}']
  assert compose(tmp_path, *flags) == 1
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith(f'composer-jax compose: Unknown condition {name!r}')
  assert 'palette' in line
  assert not (tmp_path / 'x.png').exists()


@pytest.mark.parametrize(
  ('flags', 'said'),
  [
    (['--strength', 'sketch'], "--strength is 'sketch'; expected NAME=VALUE"),
    (['--palette', ''], "'' is no colour"),
    (['--strength', 'smell=1'], "Unknown condition 'smell'"),
    (['--window', 'sketch=1:0'], "'1:0' is no window"),
    (['--interval', 'all'], "'all' is no window"),
    (['--expression', 'sketch:'], "expression 'sketch:' is wrong at 'sketch:'"),
    (['--base', '(sketch:a'], r"expression '\(sketch:a' is wrong at its end"),
    (['--rescale', '2'], r'rescale is 2.0; expected .* at most 1'),
    (['--steps', '0'], 'steps is 0; expected at least 1'),
    (['--tile', '64', '--overlap', '64'], 'overlap is 64; expected less than .*, 64'),
  ],
)
def test_a_wrong_wish_is_refused_before_anything_is_loaded(
  capsys, tmp_path, flags, said
):
  assert compose(tmp_path, *flags) == 1
  (line,) = capsys.readouterr().err.splitlines()
  assert re.search(said, line)


def test_a_missing_model_is_named(capsys, tmp_path):
  assert compose(tmp_path, '--palette', '#fff') == 1
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith(f'composer-jax compose: {tmp_path / "model"} holds no base/')
  assert not (tmp_path / 'x.png').exists()
