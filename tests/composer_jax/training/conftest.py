"""Parts of photographs, prepared at 16 pixels, and a config that is small enough."""

from __future__ import annotations

import pathlib

import pytest
import skimage.data
from PIL import Image

from composer_jax import config as config_lib
from composer_jax.training.stages import Diffusion
from data_pipelines.loader import batches, load_dataset
from data_pipelines.prepare import prepare

NAMES = ('palette', 'intensity', 'mask')


@pytest.fixture(scope='session')
def data(tmp_path_factory) -> pathlib.Path:
  folder = tmp_path_factory.mktemp('photographs')
  for name in ('astronaut', 'chelsea', 'coffee', 'rocket'):
    photograph = getattr(skimage.data, name)()
    for part in range(6):
      top, left = 40 * (part // 3), 60 * (part % 3)
      image = Image.fromarray(photograph[top : top + 160, left : left + 160])
      image.save(folder / f'{name}-{part}.png')
  out = tmp_path_factory.mktemp('data') / 'prepared'
  prepare(f'folder:{folder}', out, size=16, progress=False, test_fraction=0.1)
  return out


def small_config(data: pathlib.Path, **parts) -> config_lib.Config:
  """A base model of 8 x 8 pixels; `parts` are fields of the parts of the config."""
  values = {
    'stage': 'diffusion',
    'model': {
      'image_size': 8,
      'fold': 2,
      'channels': 16,
      'multipliers': (1,),
      'blocks': 1,
      'attention': (True,),
      'head_width': 8,
      'dropout': 0.0,
      'conditions': NAMES,
      'context_width': 16,
      'local_hidden': 8,
      'local_width': 8,
      'dtype': 'float32',
    },
    'data': {'path': str(data), 'batch_size': 8},
    'diffusion': {'prediction': 'v'},
    'optimizer': {'learning_rate': 1e-3, 'warmup_steps': 2, 'ema': 0.9},
    'train': {'steps': 6, 'log_every': 2, 'save_every': 2},
    'mesh': {},
    'sample': {'steps': 3},
  }
  for part, fields in parts.items():
    values[part] = values[part] | fields
  return config_lib.from_dict(values)


@pytest.fixture(scope='session')
def make_config(data):
  return lambda **parts: small_config(data, **parts)


@pytest.fixture(scope='session')
def source_of():
  """From a config to its stage and its batches."""

  def build(config: config_lib.Config):
    source = batches(
      load_dataset(config.data.path, 'train'),
      batch_size=config.data.batch_size,
      seed=config.train.seed,
      conditions=config.unet.conditions,
    )
    begin = source.get_state()
    first = next(source)
    source.set_state(begin)
    shapes = {name: first[name].shape[1:] for name in config.unet.conditions}
    return Diffusion(config, shapes), source

  return build
