from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest
from PIL import Image

from composer_jax import cli, config_files
from composer_jax.commands import train
from data_pipelines.loader import load_dataset
from data_pipelines.prepare import prepare
from tests.held import held


@pytest.fixture(scope='module')
def uncaptioned(tmp_path_factory):
  """Six images without captions, and a setting that would store few conditions."""
  folder = tmp_path_factory.mktemp('images')
  rng = np.random.default_rng(0)
  for i in range(6):
    pixels = np.full((20, 20, 3), rng.integers(0, 256, 3), np.uint8)
    pixels[5:12, 4 + i : 12 + i] = rng.integers(0, 256, 3)
    Image.fromarray(pixels).save(folder / f'{i}.png')
  out = tmp_path_factory.mktemp('data') / 'prepared'
  prepare(
    f'folder:{folder}', out, size=16, conditions=['palette', 'sketch'], progress=False
  )
  return out


def base(*overrides):
  return config_files.parse(['--config=configs/demo/base.py', *overrides])


def test_conditions_that_the_data_lack_are_left_out_and_named(uncaptioned, capsys):
  config = train._without_missing(base(), load_dataset(uncaptioned))
  assert config.unet.conditions == ('palette', 'sketch', 'intensity', 'mask')
  said = capsys.readouterr().out
  assert 'has no caption, semantics, instances, depth; this model' in said


def test_nothing_is_said_where_nothing_is_missing(uncaptioned, capsys):
  config = base("--config.model.conditions=('palette','mask')")
  assert train._without_missing(config, load_dataset(uncaptioned)) == config
  assert capsys.readouterr().out == ''


def test_a_dual_encoder_needs_captions(uncaptioned, tmp_path, capsys):
  status = cli.main(
    [
      'train',
      '--config=configs/demo/dual_encoder.py',
      f'--workdir={tmp_path}',
      f'--config.data.path={uncaptioned}',
      '--config.data.batch_size=2',
    ]
  )
  assert status == 1
  assert 'has no captions' in capsys.readouterr().err
  assert not (tmp_path / 'tokenizer').exists()


def test_the_data_must_be_named(tmp_path, capsys):
  status = cli.main(['train', '--config=configs/demo/base.py', f'--workdir={tmp_path}'])
  assert status == 1
  assert 'config.data.path is empty' in capsys.readouterr().err


def test_a_folder_takes_one_model_and_names_what_differs(tmp_path):
  config = base()
  train.keep_config(config, tmp_path)
  longer = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=9))
  train.keep_config(longer, tmp_path)
  assert json.loads((tmp_path / 'config.json').read_text())['train']['steps'] == 9
  other = base('--config.model.channels=96', '--config.diffusion.schedule=linear')
  with pytest.raises(ValueError, match=r'model.channels: 64 there, 96 asked') as error:
    train.keep_config(other, tmp_path)
  assert "diffusion.schedule: 'cosine' there, 'linear' asked" in str(error.value)


def test_a_second_training_in_a_folder_is_refused(uncaptioned, tmp_path, capsys):
  given = ['train', '--config=configs/demo/base.py', f'--workdir={tmp_path}']
  with held(tmp_path):
    assert cli.main([*given, f'--config.data.path={uncaptioned}']) == 1
  assert f'a training runs in {tmp_path} already;' in capsys.readouterr().err
  assert not (tmp_path / 'config.json').exists()


def test_compiled_programs_are_kept_for_the_next_start(tmp_path, monkeypatch):
  before = jax.config.jax_compilation_cache_dir
  monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR')
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  try:
    train._keep_programs()
    kept_in = jax.config.jax_compilation_cache_dir
  finally:
    jax.config.update('jax_compilation_cache_dir', before)
  assert kept_in == str(tmp_path / 'composer_jax' / 'programs')
