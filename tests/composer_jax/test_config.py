from __future__ import annotations

import json
import os
import pathlib

import pytest

from composer_jax import config as config_lib
from composer_jax import config_files
from composer_jax.models.clip import ClipConfig
from composer_jax.models.prior import PriorConfig
from composer_jax.models.unet import UNetConfig

ROOT = pathlib.Path(__file__).parents[2]
DEMO = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob('configs/*/*.py'))
DEMO = [name for name in DEMO if not name.endswith('__init__.py')]
DEMO = [name for name in DEMO if not name.startswith('configs/sweeps/')]


@pytest.mark.parametrize('name', DEMO)
def test_every_config_that_comes_along_is_valid_and_short(name):
  config = config_files.parse([f'--config={name}'])
  kinds = {'dual_encoder': ClipConfig, 'prior': PriorConfig, 'diffusion': UNetConfig}
  assert isinstance(config.model, kinds[config.stage])
  lines = (ROOT / name).read_text().splitlines()
  assert len(lines) < 80
  assert any('composer-jax train' in line for line in lines)


def test_fields_are_set_on_the_command_line():
  config = config_files.parse(
    [
      '--config',
      'configs/demo/base.py',
      '--config.optimizer.learning_rate=0.5',
      '--config.model.channels=32',
      "--config.model.conditions=('palette','mask')",
      '--config.data.flip=False',
    ]
  )
  assert config.optimizer.learning_rate == 0.5
  assert config.unet.channels == 32
  assert config.unet.conditions == ('palette', 'mask')
  assert config.data.flip is False


def test_a_field_that_the_file_leaves_out_can_be_set():
  config = config_files.parse(
    ['--config=configs/demo/base.py', '--config.optimizer.accumulate=2']
  )
  assert config.optimizer.accumulate == 2


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('def get_config(:', 'cannot be read; SyntaxError: .*line 1'),
    ('import no_such', "cannot be read; ModuleNotFoundError: .*'no_such'"),
    ('def get_config(): pass', r'is no training config, .* get_config\(\) gives None'),
    (
      "def get_config(): return {'a.b': 1}",
      r"is no training config.*gives \{'a.b': 1\}",
    ),
  ],
)
def test_a_file_that_is_no_config_is_one_clear_error(text, message, tmp_path):
  file = tmp_path / 'own.py'
  file.write_text(text)
  with pytest.raises(ValueError, match=f'own.py {message}'):
    config_files.parse([f'--config={file}'])


def test_a_config_file_can_take_an_argument(tmp_path):
  file = tmp_path / 'sized.py'
  file.write_text(
    'from ml_collections import config_dict\n'
    'def get_config(size):\n'
    '  return config_dict.ConfigDict(\n'
    "    {'stage': 'diffusion', 'model': {'image_size': int(size)}}\n"
    '  )\n'
  )
  assert config_files.parse([f'--config={file}:128']).unet.image_size == 128


def test_a_config_survives_its_json(tmp_path):
  config = config_files.parse(['--config=configs/demo/upsampler.py'])
  path = tmp_path / 'config.json'
  path.write_text(config.to_json())
  assert config_files.load(path) == config


def test_configs_are_found_from_any_folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert config_files.parse(['--config=configs/demo/base.py']).stage == 'diffusion'


def test_an_own_config_file_is_preferred(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  os.makedirs('configs/demo')
  own = (
    (ROOT / 'configs/demo/base.py').read_text().replace("'steps': 3000", "'steps': 7")
  )
  pathlib.Path('configs/demo/base.py').write_text(own)
  assert config_files.parse(['--config=configs/demo/base.py']).train.steps == 7


@pytest.mark.parametrize(
  ('argument', 'message'),
  [
    ('--config.model.chanels=3', 'config.model.chanels is not a .* config.model.chan'),
    ('--config.optimizer.lr=3', 'config.optimizer.lr is not .* any of .*learning_rate'),
    ('--config.stage.of=3', "config.stage has no fields; its value is 'diffusion'"),
    ('--config.train.steps=many', 'many'),
    ('--config.diffusion.prediction=w', r"config.diffusion.prediction is 'w'.*'eps'"),
    ('--config.model.multipliers=(1,)', r'model.attention has 3 .*model.multipliers 1'),
    ('--nonsense=1', 'nonsense'),
    ('nonsense', "'nonsense' is not a flag"),
    ('--config.model.fold=0', 'model.fold is 0; expected at least 1'),
    ('--config.train.log_every=0', 'config.train.log_every is 0; .* at least 1'),
    ('--config.optimizer.ema=2.0', 'config.optimizer.ema is 2.0; .* at most 1'),
    ('--config.optimizer.learning_rate=nan', 'learning_rate is nan'),
    ('--config.diffusion.low_res_level=1000', 'low_res_level is 1000; .* at most 999'),
    ('--config.diffusion.crop=12', 'diffusion.crop is 12; expected a multiple of 8 '),
    ('--config.diffusion.crop=40', 'diffusion.crop is 40; .* up to .*image_size, 32'),
    ('--config.diffusion.given_spread=-1.0', 'given_spread is -1.0; .* at least 0'),
    (
      '--config.diffusion.low_res_details=True',
      'low_res_details is True and .*low_res_spread 0; expected a spread above 0',
    ),
    (
      '--config.diffusion.low_res_details=True --config.diffusion.low_res_spread=0.2'
      ' --config.model.palette_map=False --config.model.low_res_size=64',
      'image_size is 32 and .*low_res_details True; .*low_res_size, 64',
    ),
    ('--config.optimizer.muon_iterations=0', 'muon_iterations is 0; .* at least 1'),
    (
      '--config.diffusion.low_res_spread=0.2',
      'low_res_spread is 0.2 and .*a base model',
    ),
    (
      '--config.sample.tile=128',
      'sample.tile is 128, .*; expected tile 0 .*a base model',
    ),
    ('--config.mesh.spatial=3', 'mesh.spatial is 3; expected a divisor of 4, the rows'),
    ('--config.optimizer.name=sgd', "optimizer.name is 'sgd'.*'adamw'.*'muon'"),
  ],
)
def test_a_wrong_override_is_one_error_that_names_it(argument, message):
  with pytest.raises(ValueError, match=message):
    config_files.parse(['--config=configs/demo/base.py', *argument.split()])


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'stage': 'priors'}, "config.stage is 'priors'"),
    ({'train': {'step': 3}}, r'config.train.step is not a field.*steps'),
    ({'train': {'steps': True}}, 'config.train.steps is True of type bool'),
    ({'train': {'steps': 1.5}}, 'config.train.steps is 1.5 of type float'),
    ({'optimizers': {}}, 'config.optimizers is not a field'),
    ({'model': {'multipliers': 3}}, r'config.model.multipliers is 3; expected a seq'),
    ({'model': {'multipliers': ['a']}}, r"config.model.multipliers\[0\] is 'a'"),
  ],
)
def test_a_wrong_field_is_one_error_that_names_it(change, message):
  values = json.loads(config_files.parse(['--config=configs/demo/base.py']).to_json())
  with pytest.raises(ValueError, match=message):
    config_lib.from_dict({**values, **change})


def test_an_incomplete_dual_encoder_names_what_is_missing():
  with pytest.raises(ValueError, match=r'config.model is incomplete.*patch_size'):
    config_lib.from_dict({'stage': 'dual_encoder', 'model': {'image_size': 32}})


def test_no_config_and_a_missing_one_are_clear_errors():
  with pytest.raises(ValueError, match='--config FILE is missing'):
    config_files.parse([])
  with pytest.raises(FileNotFoundError, match=r'no such file.*configs/demo/base.py'):
    config_files.parse(['--config=configs/demo/nothing.py'])


def test_the_model_of_the_other_kind_is_refused():
  base = config_files.parse(['--config=configs/demo/base.py'])
  encoder = config_files.parse(['--config=configs/demo/dual_encoder.py'])
  with pytest.raises(TypeError, match='diffusion stage has no dual encoder'):
    _ = base.clip
  with pytest.raises(TypeError, match='dual_encoder stage has no U-Net'):
    _ = encoder.unet
