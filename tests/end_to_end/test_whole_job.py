"""From a folder of images to a report, as a user would go, with models too small."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from composer_jax import cli, conditions
from composer_jax.training.processes import ADDRESS, COUNT, INDEX
from tests.end_to_end.conftest import (
  TINY_BASE,
  TINY_UPSAMPLER,
  command,
  environment,
  run,
  run_here,
)


@pytest.fixture(scope='module')
def model(data, tmp_path_factory):
  """Encoder, base model and upsampler, trained for a few steps each."""
  model = tmp_path_factory.mktemp('model')

  def train(stage, workdir, *more):
    run_here(
      'train',
      f'--config=configs/demo/{stage}.py',
      f'--workdir={model / workdir}',
      f'--config.data.path={data}',
      '--config.train.steps=6',
      *more,
    )

  train(
    'dual_encoder',
    'encoder',
    '--config.data.batch_size=16',
    '--config.model.vision_width=32',
    '--config.model.text_width=32',
    '--config.model.embed_width=32',
    '--config.model.vision_layers=1',
    '--config.model.text_layers=1',
  )
  run('prepare', '--onto', data, '--encoder', model / 'encoder')
  train(
    'prior',
    'prior',
    '--config.data.batch_size=16',
    '--config.model.width=32',
    '--config.model.layers=1',
  )
  train('base', 'base', *TINY_BASE, '--config.train.sample_every=6')
  train('upsampler', 'upsampler', *TINY_UPSAMPLER)
  return model


def test_the_prepared_folder_opens_in_tensorflow_datasets(data):
  builder = tfds.builder_from_directory(str(data))
  source = builder.as_data_source('train')
  assert len(source) + len(builder.as_data_source('test')) == 48
  record = source[0]
  assert record['image'].shape == (64, 64, 3)
  # Smoothing does not keep the sum exactly.
  assert record['palette'].sum() == pytest.approx(1, abs=0.2)


def test_training_leaves_pictures_of_samples(model):
  (picture,) = (model / 'base' / 'samples').glob('*.png')
  with Image.open(picture) as image:
    # The original, everything together, and each of eight conditions alone.
    assert image.width == 32 * 10


def test_decompose_with_a_model_writes_all_eight(model, photographs, tmp_path):
  image = photographs / 'coffee 01.png'
  words = ('decompose', image, '--out', tmp_path, '--size', 64, '--model', model)
  run_here(*words, '--caption', 'a cup of coffee')
  arrays = np.load(tmp_path / 'conditions.npz')
  names = {condition.name for condition in conditions.ALL}
  assert set(arrays.files) == names | {'image'}
  assert {path.stem for path in tmp_path.glob('*.png')} == names | {'image'}


def test_an_image_is_composed_and_made_again_bit_for_bit(model, photographs, tmp_path):
  first, again = tmp_path / 'first.png', tmp_path / 'again.png'
  run(
    'compose',
    *('--model', model, '--out', first, '--seed', 3, '--steps', 4, '--eta', 0.5),
    *('--from', photographs / 'coffee 01.png', '--use', 'sketch,mask'),
    *('--from', photographs / 'rocket 02.png', '--use', 'semantics'),
    *('--palette', '#aa3322,#fff:2', '--caption', 'a cup'),
    flags='',
  )
  with Image.open(first) as image:
    assert image.size == (64, 64)
  moved = tmp_path / 'moved'
  shutil.copytree(model, moved)
  words = ('compose', '--model', moved, '--again', first, '--out', again)
  run(*words, flags='')
  assert again.read_bytes() == first.read_bytes()


def test_a_caption_alone_goes_through_the_prior(model, tmp_path):
  with_prior, without, again = (tmp_path / f'{name}.png' for name in 'abc')
  words = ('compose', '--model', model, '--caption', 'a cup', '--steps', 2)
  run_here(*words, '--out', with_prior)
  run_here(*words, '--out', without, '--no-prior')
  assert with_prior.read_bytes() != without.read_bytes()
  run_here('compose', '--model', model, '--again', with_prior, '--out', again)
  assert again.read_bytes() == with_prior.read_bytes()


def test_an_expression_with_everything_is_composed_and_made_again(
  model, photographs, tmp_path
):
  first, again = tmp_path / 'first.png', tmp_path / 'again.png'
  coffee, rocket = photographs / 'coffee 01.png', photographs / 'rocket 02.png'
  run_here(
    'compose',
    *('--model', model, '--out', first, '--sampler', 'dpm_solver', '--steps', 4),
    *('--from', coffee, '--use', 'depth', '--base', f'depth:"{rocket}"'),
    '--expression',
    f'sketch:"{coffee}" & (palette:"{rocket}" | 2*palette:#aa3322) & !caption:snow',
    *('--strength', 'sketch=0.5', '--window', 'depth=0:0.6'),
    *('--interval', '0.1:0.9', '--rescale', 0.3, '--percentile', 0.95),
  )
  run_here('compose', '--model', model, '--again', first, '--out', again)
  assert again.read_bytes() == first.read_bytes()


@pytest.mark.parametrize(
  ('words', 'message'),
  [
    (('--use', 'sketches'), "Unknown condition 'sketches'"),
    (('--use', 'sketch', '--palette', 'red'), "'red' is no colour"),
    (('--use', 'sketch', '--expression', 'a &'), "expression 'a &' is wrong at 'a &'"),
    (('--use', 'sketch', '--window', 'depth=0:1'), '--window names depth, which .* sk'),
    (('--use', 'sketch', '--eta', '2'), r'eta is 2.0; expected .* at most 1'),
    (('--use', 'sketch', '--steps', '5000'), '5000 sampling steps .* 1 to 1000'),
  ],
)
def test_a_wrong_wish_is_one_clear_error(
  model, photographs, tmp_path, capsys, words, message
):
  image = photographs / 'coffee 01.png'
  base = ('compose', '--model', model, '--out', tmp_path / 'x.png', '--from', image)
  assert cli.main([str(word) for word in (*base, *words)]) == 1
  error = capsys.readouterr().err
  assert re.search(message, error)
  assert 'Traceback' not in error
  assert not (tmp_path / 'x.png').exists()


def test_the_report_shows_everything_and_what_was_left_out(model, data, tmp_path):
  words = ('report', '--model', model, '--data', data, '--out', tmp_path)
  words += ('--n', 3, '--show', 2)
  out = run_here(*words)
  assert 'palette' in out
  page = (tmp_path / 'index.html').read_text('utf-8')
  assert 'notes.md' in page
  assert not re.search(r'(?:src|href)="https?:', page)
  report = json.loads((tmp_path / 'report.json').read_text())
  # Of three images held out, fewer than two may have a caption.
  names = {condition.name for condition in conditions.ALL}
  assert {row['condition'] for row in report['alone']} >= names - {'caption'}
  # Run again, it finds everything made and changes nothing.
  run_here(*words)
  assert (tmp_path / 'index.html').read_text('utf-8') == page


def test_two_processes_evaluate_together(model, data, tmp_path):
  base, out = tmp_path / 'model', tmp_path / 'out'
  base.mkdir()
  for stage in ('encoder', 'base'):  # To compile less.
    (base / stage).symlink_to(model / stage)
  words = ('evaluate', '--model', base, '--data', data, '--out', out)
  words += ('--n', 2, '--steps', 2, '--evaluators', 'fidelity')
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    address = f'127.0.0.1:{free.getsockname()[1]}'
  processes = [
    subprocess.Popen(
      command(*words),
      env=environment()
      | {ADDRESS: address, COUNT: '2', INDEX: str(index)}
      | {'JAX_CPU_COLLECTIVES_IMPLEMENTATION': 'gloo'},
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for index in range(2)
  ]
  outputs = [process.communicate(timeout=300)[0] for process in processes]
  assert [p.returncode for p in processes] == [0, 0], '\n'.join(outputs)[-5000:]
  said = [text for text in outputs if 'on 2 held-out images' in text]
  assert len(said) == 1  # The first process judges.
  evaluation = json.loads((out / 'evaluation.json').read_text())
  names = {condition.name for condition in conditions.ALL}
  assert {*evaluation['wishes']} == {*names, 'all'}
  page = (out / 'index.html').read_text('utf-8')
  # One process finds all that they have made.
  made = {path.name for path in (out / 'cache').iterdir()}
  run_here(*words)
  assert {path.name for path in (out / 'cache').iterdir()} == made
  assert (out / 'index.html').read_text('utf-8') == page
