from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from safetensors import safe_open

import composer_jax
from composer_jax import cli
from composer_jax.checkpoints import Checkpoints
from composer_jax.composer import Composer
from composer_jax.config import OptimizerConfig
from composer_jax.files import write_json
from composer_jax.safetensors_files import open_weights
from composer_jax.trained import read_config
from composer_jax.training.stages import Diffusion
from composer_jax.training.step import initial_state
from composer_jax.weights.export import export_model, write_tensors
from tests.composer_jax.tiny import SIZE, denoising
from tests.virtual_devices import run_on_devices

NAMES = ('palette', 'sketch')
LICENCE = 'https://creativecommons.org/licenses/by/4.0/'


def write_run(folder, stage):
  """A run's folder as training leaves it, with the weights of a stage as averages."""
  config = dataclasses.replace(stage.config, optimizer=OptimizerConfig())
  diffusion = Diffusion(config, stage.condition_shapes)
  _, state = initial_state(diffusion, config)
  rest, _ = state.split()
  folder.mkdir(parents=True)
  checkpoints = Checkpoints(folder, 1)
  checkpoints.save(7, rest, stage.weights, {})
  checkpoints.close()
  (folder / 'config.json').write_text(config.to_json())
  inputs = {
    'condition_shapes': {n: list(s) for n, s in stage.condition_shapes.items()},
    'data': {'source': 'folder:/home/me/photos', 'licence': LICENCE, 'credit': 'me'},
    'digest': 'abc',
    'encoders': {},
    'command': 'composer-jax train --workdir /home/me/r --config.data.path=/home/me/d',
  }
  write_json(folder / 'inputs.json', inputs)
  return rest['params']


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  """A model folder with a base model and an upsampler; the base's last weights."""
  folder = tmp_path_factory.mktemp('model')
  small = {'image_size': 2 * SIZE, 'low_res_size': SIZE}
  base = denoising(names=NAMES, eta=0.0)
  last = write_run(folder / 'base', base)
  write_run(folder / 'upsampler', denoising(1, ('sketch',), small, guidance=1.0))
  return folder, last


def wish(count=2):
  rng = np.random.default_rng(0)
  return {
    'palette': rng.random((count, 180)).astype(np.float32),
    'sketch': rng.integers(0, 2, (count, SIZE, SIZE, 1)).astype(np.uint8) * 255,
  }


def test_an_exported_model_makes_the_same_images(model, tmp_path, capsys):
  folder, _ = model
  out = tmp_path / 'out'
  assert cli.main(['export', '--workdir', str(folder), '--out', str(out)]) == 0
  assert capsys.readouterr().out == f'base, upsampler in {out}\n'
  ours, theirs = Composer.load(folder), composer_jax.load(out)
  assert theirs.fingerprint == ours.fingerprint
  seeds = np.array([1, 2])
  np.testing.assert_array_equal(
    theirs.compose(wish(), seeds=seeds), ours.compose(wish(), seeds=seeds)
  )


def test_it_says_what_it_is_and_names_no_folder_of_the_machine(model, tmp_path):
  folder, _ = model
  about = export_model(folder, tmp_path / 'out')
  assert about == json.loads((tmp_path / 'out' / 'model.json').read_text())
  base = about['stages']['base']
  assert base['step'] == 7
  assert base['data'] == {
    'source': 'folder:photos',
    'licence': LICENCE,
    'credit': 'me',
  }
  assert base['schedule']['prediction'] == 'eps'
  assert about['conditions']['palette']['shape'] == [180]
  for path in (tmp_path / 'out').rglob('*.json'):
    assert '/home' not in path.read_text(), path
  assert set(about['digests']) == {
    f'{stage}/{name}'
    for stage in ('base', 'upsampler')
    for name in ('config.json', 'inputs.json', 'model.safetensors')
  }


def test_half_precision_is_half_the_size_and_opens_as_float32(model, tmp_path):
  folder, _ = model
  export_model(folder, tmp_path / 'half', dtype='bfloat16')
  path = tmp_path / 'half' / 'base' / 'model.safetensors'
  with safe_open(path, 'np') as file:
    assert {file.get_slice(name).get_dtype() for name in file.keys()} == {'BF16'}
  whole, half = Composer.load(folder), composer_jax.load(tmp_path / 'half')
  for a, b in zip(
    jax.tree.leaves(whole.stages[0].weights),
    jax.tree.leaves(half.stages[0].weights),
    strict=True,
  ):
    assert b.dtype == np.float32
    np.testing.assert_allclose(a, b, rtol=2**-8)


def test_the_last_weights_are_others_than_the_averaged_ones(model, tmp_path):
  folder, last = model
  export_model(folder / 'base', tmp_path / 'out', ema=False)
  files = open_weights(tmp_path / 'out' / 'base')
  kernel = files.read('conv_in.kernel')
  np.testing.assert_array_equal(kernel, last['conv_in']['kernel'][...])
  opened = composer_jax.load(tmp_path / 'out')
  np.testing.assert_array_equal(opened.stages[0].weights['conv_in']['kernel'], kernel)


def test_large_weights_are_split_and_open_through_their_index(tmp_path):
  tensors = {f'{i}.kernel': np.full((10, 10), i, np.float32) for i in range(5)}
  write_tensors(tmp_path, tensors, limit=900)
  names = sorted(path.name for path in tmp_path.iterdir())
  assert names == [
    *(f'model-0000{i}-of-00003.safetensors' for i in (1, 2, 3)),
    'model.safetensors.index.json',
  ]
  files = open_weights(tmp_path)
  for name, tensor in tensors.items():
    np.testing.assert_array_equal(files.read(name), tensor)


def test_damaged_weights_are_named(model, tmp_path):
  folder, _ = model
  export_model(folder, tmp_path / 'out')
  path = tmp_path / 'out' / 'base' / 'model.safetensors'
  tensors = {'conv_in.kernel': np.zeros((3, 3)), 'other': np.zeros(1)}
  path.unlink()
  write_tensors(path.parent, tensors)
  with pytest.raises(ValueError, match=r'conv_in.bias \(8,\), .*other is unknown'):
    composer_jax.load(tmp_path / 'out')


def test_nothing_is_written_over(model, tmp_path):
  folder, _ = model
  (tmp_path / 'mine').write_text('')
  with pytest.raises(FileExistsError, match='holds something already'):
    export_model(folder, tmp_path)
  with pytest.raises(FileNotFoundError, match='holds no trained model'):
    export_model(tmp_path, tmp_path / 'out')


SCRIPT = """
import json, sys
import jax, jax.export
import numpy as np
from safetensors.numpy import load_file
folder = sys.argv[1]
program = open(f'{folder}/sampler.stablehlo', 'rb').read()
sampler = jax.export.deserialize(bytearray(program))
weights = {name: load_file(f'{folder}/{name}/model.safetensors')
           for name in ('base', 'upsampler')}
given = dict(np.load(f'{folder}/given.npz'))
kept = {name: np.ones(2, np.float32) for name in given}
seeds, guidance = np.array([1, 2], np.uint32), np.float32(2.5)
images = sampler.call(weights, given, kept, seeds, guidance)
assert not {'composer_jax', 'flax'} & set(sys.modules)
np.save(f'{folder}/images.npy', images)
"""


def test_the_exported_sampler_runs_without_this_code(model, tmp_path):
  folder, _ = model
  out = tmp_path / 'out'
  words = ['export', '--workdir', str(folder), '--out', str(out), '--sampler', '2']
  assert cli.main(words) == 0
  about = json.loads((out / 'sampler.json').read_text())
  assert about['arguments']['stored']['palette'] == 'float32[2, 180]'
  np.savez(out / 'given.npz', **wish())
  environment = {**os.environ, 'JAX_PLATFORMS': 'cpu'}
  command = [sys.executable, '-c', SCRIPT, str(out)]
  subprocess.run(command, check=True, env=environment, cwd=tmp_path)
  made = np.load(out / 'images.npy')
  wanted = Composer.load(folder).compose(
    wish(), seeds=np.array([1, 2]), sampling={'guidance': 2.5}
  )
  assert made.shape == (2, 2 * SIZE, 2 * SIZE, 3)
  # Sums in another order round differently, by a gray level at most.
  assert np.abs(made.astype(int) - wanted).max() <= 1


def test_what_it_computes_in_can_be_chosen(model, tmp_path):
  folder, _ = model
  export_model(folder, tmp_path / 'out', compute='bfloat16')
  config = read_config(tmp_path / 'out' / 'base')
  assert config.model.dtype == 'bfloat16'


def test_weights_can_be_read_by_whom_other_files_can(model, tmp_path):
  folder, _ = model
  export_model(folder, tmp_path / 'out')
  modes = {path.stat().st_mode for path in (tmp_path / 'out').rglob('*.*')}
  assert len(modes) == 1


def test_an_exported_model_opens_on_several_devices(model, tmp_path):
  folder, _ = model
  export_model(folder, tmp_path / 'out')
  code = """
  import json, sys
  import jax
  import numpy as np
  import composer_jax
  from tests.composer_jax.weights.test_export import wish
  images = composer_jax.load(sys.argv[1]).compose(wish(), seeds=np.array([1, 2]))
  print(json.dumps([jax.device_count(), images.tolist()]))
  """
  devices, images = run_on_devices(4, code, tmp_path / 'out')
  assert devices == 4
  here = composer_jax.load(tmp_path / 'out').compose(wish(), seeds=np.array([1, 2]))
  assert np.abs(np.asarray(images) - here).max() <= 1
