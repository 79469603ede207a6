from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest

from composer_jax.checkpoints import Checkpoints
from composer_jax.config import MeshConfig
from composer_jax.sampling.guidance import Branch, Wish
from composer_jax.trained import INPUTS, load_diffusion
from tests.composer_jax.tiny import denoising
from tests.virtual_devices import run_on_devices

SIZE = 64


@pytest.fixture(scope='module')
def upsampler(tmp_path_factory):
  """The folder of a small one of the last upsampler's kind, to be split in four."""
  stage = denoising(
    names=('sketch',),
    model={
      'image_size': SIZE,
      'low_res_size': SIZE // 4,
      'fold': 1,
      'multipliers': (1, 2),
      'attention': (False, False),
      'learned_variance': True,
      'groups': 4,
    },
    diffusion={'prediction': 'v', 'low_res_degradation': 'blur'},
    maps=SIZE,
    low_res_level=250,
    guidance=1.0,
  )
  config = dataclasses.replace(stage.config, mesh=MeshConfig(spatial=4))
  folder = tmp_path_factory.mktemp('upsampler')
  (folder / 'config.json').write_text(config.to_json())
  shapes = {name: list(shape) for name, shape in stage.condition_shapes.items()}
  (folder / INPUTS).write_text(json.dumps({'condition_shapes': shapes}))
  checkpoints = Checkpoints(folder, keep=1)
  checkpoints.save(1, {'step': np.ones(())}, stage.weights, {})
  checkpoints.close()
  return folder


def arguments():
  """What two images are made from."""
  rng = np.random.default_rng(0)
  sketch = (rng.random((2, SIZE, SIZE, 1)) < 0.3).astype(np.uint8) * 255
  branch = Branch({'sketch': sketch}, {'sketch': np.ones(2, bool)})
  keys = jax.random.split(jax.random.key(0), 2)
  low_res = rng.uniform(-1, 1, (2, SIZE // 4, SIZE // 4, 3)).astype(np.float32)
  return Wish((branch,), np.ones((1, 2), np.float32)), keys, low_res


def test_images_split_over_devices_as_the_config_says_are_those_of_one_device(
  upsampler,
):
  found = run_on_devices(
    4,
    """
    import json, pathlib, sys
    import numpy as np
    from composer_jax.trained import load_diffusion
    from tests.composer_jax.test_trained import arguments

    folder = pathlib.Path(sys.argv[1])
    stage = load_diffusion(folder)
    images = stage(*arguments())
    np.save(folder / 'images.npy', images)
    program = stage.lower(*arguments()).compile()
    print(json.dumps({
      'parts': [part.data.shape for part in images.addressable_shards],
      'exchanges': program.as_text().count(' collective-permute('),
      'bytes': program.memory_analysis().temp_size_in_bytes,
    }))
    """,
    upsampler,
  )
  alone = load_diffusion(upsampler, spatial=1)
  program = alone.lower(*arguments()).compile()
  images = np.load(upsampler / 'images.npy')
  np.testing.assert_allclose(images, alone(*arguments()), atol=1e-4)
  assert np.abs(images).mean() > 0.1
  assert np.abs(images).mean() < 0.9
  # Each device has a quarter of the rows, and asks its neighbours for those beyond.
  assert found['parts'] == [[2, SIZE // 4, SIZE, 3]] * 4
  assert found['exchanges'] > 10
  assert found['bytes'] < 0.5 * program.memory_analysis().temp_size_in_bytes


def test_devices_that_cannot_share_the_rows_are_refused(upsampler):
  count = jax.device_count()
  with pytest.raises(
    ValueError, match=f'spatial 4; expected sizes whose product is {count}, '
  ):
    load_diffusion(upsampler)
  with pytest.raises(
    ValueError, match='spatial is 64; expected a divisor of 32, the r'
  ):
    load_diffusion(upsampler, spatial=64)
  with pytest.raises(ValueError, match='config.mesh.spatial is 0; .* at least 1'):
    load_diffusion(upsampler, spatial=0)
