from __future__ import annotations

import pathlib

import numpy as np
import pytest

import composer_jax
from composer_jax.shipped import model_folder

PATH = pathlib.Path(__file__).parents[2] / 'assets' / 'demo'


def test_a_path_stays_as_it_is():
  assert model_folder('models/mine') == pathlib.Path('models/mine')
  # Also where it has been through this before.
  assert model_folder(model_folder('./demo')) == pathlib.Path('demo')
  assert model_folder('demo/') == model_folder(pathlib.Path('demo')) != PATH


def test_demo_is_the_shipped_model_wherever_one_is(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'demo' / 'base').mkdir(parents=True)
  assert model_folder('demo') == PATH


def test_it_is_as_large_as_promised():
  assert sum(path.stat().st_size for path in PATH.rglob('*')) < 30_000_000


@pytest.fixture(scope='module')
def composer():
  return composer_jax.load('demo')


def test_it_draws_128_pixels_from_all_eight_conditions(composer):
  assert composer.sizes == (32, 64, 128)
  assert len(composer.names) == 8
  assert composer.prior is not None


def test_a_sketch_and_a_palette_are_followed(composer):
  """A disc in two colours: what is asked for is found in what comes out."""
  y, x = np.indices((64, 64)) - 31.5
  edge = np.abs(np.hypot(x, y) - 20) < 0.8
  sketch = np.where(edge, 255, 0).astype(np.uint8)[None, ..., None]
  inside = np.hypot(x, y) < 16
  intensity = np.where(np.hypot(x, y) < 20, 200, 60).astype(np.uint8)[None, ..., None]
  made = composer.compose(
    {'sketch': sketch, 'intensity': intensity}, seeds=np.zeros(1, int), size=64
  )[0].mean(-1)
  assert made.shape == (64, 64)
  assert made[inside].mean() - made[np.hypot(x, y) > 24].mean() > 100
