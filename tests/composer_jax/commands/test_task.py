"""Every task on the shipped model, as a user would call it."""

from __future__ import annotations

import functools
import json
import shlex

import numpy as np
import pytest
import resvg_py
from PIL import Image

from composer_jax import cli
from composer_jax.commands.task import TASKS
from composer_jax.commands.task_inputs import sketch_of
from composer_jax.composer import Composer
from composer_jax.images import png_text
from composer_jax.shipped import model_folder

STEPS = ['--steps', '2']
MORE = {
  'text-to-image': ['--caption', 'red apple'],
  'variation': ['--image', 'a.png'],
  'interpolation': ['--image', 'a.png', '--to', 'b.png', '--frames', '2'],
  'reconfiguration': ['--image', 'a.png', '--palette', '#203050,#e0c080'],
  'region-editing': ['--image', 'a.png', '--box', '0.5,0,1,1'],
  'colorization': ['--image', 'a.png', '--palette', '#203050,#e0c080'],
  'style-transfer': ['--image', 'a.png', '--style', 'b.png', '--strength', '0.5'],
  'translation': ['--image', 'a.png', '--caption', 'green frog'],
  'pose-transfer': ['--image', 'a.png', '--pose', 'b.png'],
  'try-on': ['--image', 'a.png', '--garment', 'b.png', '--region', 'region.png'],
  'composition': ['--use', 'sketch=a.png', '--use', 'palette=b.png'],
  'boolean': ['--expression', 'sketch:a.png & (palette:b.png | palette:#aa3322)'],
}

DRAWING = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 64 64">
<rect width="64" height="64" fill="{}"/>
<circle cx="32" cy="32" r="20" fill="{}"/>
</svg>"""

load = functools.cache(Composer.load)  # Traced and compiled once for all tests.


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(Composer, 'load', load)
  for name, colours in {'a': ('#88aacc', '#dd3333'), 'b': ('#228844', 'gold')}.items():
    png = resvg_py.svg_to_bytes(svg_string=DRAWING.format(*colours), width=128)
    (tmp_path / f'{name}.png').write_bytes(png)
  region = np.zeros((64, 64), np.uint8)
  region[16:40, 16:40] = 255
  Image.fromarray(region).save('region.png')
  return tmp_path


def run(name, *words):
  return cli.main(['task', name, *MORE[name], *words])


def pixels(path):
  return np.asarray(Image.open(path)).astype(int)


def test_all_tasks_are_tried():
  assert MORE.keys() == TASKS.keys()


@pytest.mark.parametrize('name', [*TASKS])
def test_each_draws_an_image(name):
  assert run(name, '--out', 'out.png', *STEPS) == 0
  made = pixels('out.png')
  frames = 2 if name == 'interpolation' else 1
  assert made.shape == (128, frames * 128, 3)
  assert made.std() > 5


def test_a_picture_says_what_made_it():
  run('colorization', '--out', 'out.png', *STEPS)
  about = json.loads(png_text('out.png')['composer_jax_task'])
  assert about['model'] == load(model_folder('demo')).fingerprint
  program, verb, *words = shlex.split(about['command'])
  made = pixels('out.png')
  assert (program, cli.main([verb, *words])) == ('composer-jax', 0)
  np.testing.assert_array_equal(pixels('out.png'), made)


@pytest.mark.parametrize('name', ['region-editing', 'try-on'])
def test_what_lies_outside_a_region_is_the_original(name):
  noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)
  Image.fromarray(noise).save('a.png')
  run(name, '--out', 'out.png', *STEPS)
  inside = np.zeros((128, 128), bool)
  if name == 'try-on':
    inside[32:80, 32:80] = True
  else:
    inside[:, 64:] = True
  change = np.abs(pixels('out.png') - noise)
  assert change[~inside].max() == 0
  assert change[inside].mean() > 5


def test_a_transparent_mask_is_a_region_where_it_is_opaque(folder):
  mask = np.zeros((64, 64, 4), np.uint8)
  mask[:16] = 255
  Image.fromarray(mask).save('region.png')
  run('try-on', '--out', 'out.png', *STEPS)
  change = np.abs(pixels('out.png') - pixels('a.png')[..., :3]).sum(-1)
  assert change[32:].max() == 0
  assert change[:32].max() > 0


def test_a_colorization_keeps_light_and_shade_and_takes_the_colours():
  words = ['--image', 'a.png', '--steps', '10', '--out', 'out.png', '--palette']
  blue = {}
  for palette in ('#203050,#8090e0', '#502020,#e08060'):
    assert cli.main(['task', 'colorization', *words, palette]) == 0
    made, before = pixels('out.png'), pixels('a.png')[..., :3]
    gray = made.mean(-1).ravel(), before.mean(-1).ravel()
    assert np.corrcoef(*gray)[0, 1] > 0.8
    blue[palette] = (made[..., 2] - made[..., 0]).mean()
  first, second = blue.values()
  assert first > 10 > -10 > second


def test_the_strength_of_a_style_moves_the_colours():
  words = ['--image', 'a.png', '--style', 'b.png', '--steps', '10', '--out', 'out.png']
  green = []
  for strength in ('0', '1'):
    cli.main(['task', 'style-transfer', *words, '--strength', strength])
    made = pixels('out.png')
    green.append((made[..., 1] - made[..., 2]).mean())  # b.png is green and gold.
  assert green[1] > green[0] + 10


@pytest.mark.parametrize('dark', [True, False])
def test_a_drawn_sketch_is_read_whatever_its_polarity(dark):
  ground, line = (255, 0) if dark else (0, 255)
  drawing = np.full((512, 512), ground, np.uint8)
  drawing[100:102] = line  # Two pixels of 512 wide: far less than one of 64.
  Image.fromarray(drawing).save('lines.png')
  sketch = sketch_of('lines.png', 64)
  assert sketch.shape == (64, 64, 1)
  assert sketch[12, 8:-8].min() == 255
  assert np.delete(sketch, 12, axis=0).max() == 0


def test_an_image_that_is_not_edited_comes_back():
  words = ['--image', 'a.png', '--steps', '10', '--out', 'out.png']
  assert cli.main(['task', 'reconfiguration', *words]) == 0
  made, before = pixels('out.png'), pixels('a.png')[..., :3]
  assert 10 * np.log10(255**2 / ((made - before) ** 2).mean()) > 20


@pytest.mark.parametrize(
  ('words', 'message'),
  [
    (['variation', '--image', 'c.png'], 'c.png'),
    (['variation', '--image', 'a.png', '--keep', 'mask'], 'mask cannot be taken'),
    (['composition', '--use', 'caption=a.png'], 'caption cannot be taken'),
    (['interpolation', '--image', 'a.png', '--to', 'b.png', '--move', 'depth'],
     'Nothing lies between two values of depth'),
    (['try-on', '--image', 'a.png', '--garment', 'b.png', '--region', 'wide.png'],
     'wide.png is 2.00 times as wide as high'),
    (['reconfiguration', '--image', 'a.png', '--sketch', 'full.png'], 'is drawn on'),
  ],
)  # fmt: skip
def test_what_is_wrong_is_said(words, message, capsys):
  Image.new('L', (64, 32), 255).save('wide.png')
  Image.new('L', (64, 64), 255).save('full.png')
  assert cli.main(['task', *words, '--out', 'out.png']) == 1
  assert message in capsys.readouterr().err


@pytest.mark.parametrize(
  ('words', 'message'),
  [
    (['--box', '0.5,0,0.4,1'], 'expected 0 <= L < R <= 1'),
    (['--box', '0,0,1,1', '--palette', 'red'], 'expected colours like #aa3322'),
    (['--box', '0,0,1,1', '--n', '0'], '--n is 0; expected 1 to 64'),
    (['--box', '0,0,1,1', '--caption', ''], '--caption is empty'),
    (['--box', '0,0,1,1', '--out', 'o.jpg'], 'expected a name in .png'),
    ([], 'expected either --region IMAGE or --box L,T,R,B'),
    (['--box', '0,0,1,1', '--region', 'region.png'], 'expected either --region'),
  ],
)
def test_what_cannot_be_read_is_said(words, message, capsys):
  with pytest.raises(SystemExit):
    cli.main(['task', 'region-editing', '--image', 'a.png', '--out', 'o.png', *words])
  assert message in capsys.readouterr().err


def test_another_name_is_refused_with_those_there_are(capsys):
  with pytest.raises(SystemExit):
    cli.main(['task', 'nothing'])
  assert "'nothing' (choose from " in capsys.readouterr().err


def test_an_animation_goes_there_and_back():
  assert run('interpolation', '--frames', '3', '--out', 'way.gif', *STEPS) == 0
  assert Image.open('way.gif').n_frames == 4
