from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from flax import nnx

from composer_jax import cli
from composer_jax.models.unet import UNet
from composer_jax.trained import load_diffusion
from composer_jax.weights.karlo_upsampler import upsampler_config
from tests.composer_jax.models.public_weights import assert_near, to_numpy, to_torch
from tests.composer_jax.weights.diffusers_folders import upsampler

DEEPER = {
  'down_block_types': ['ResnetDownsampleBlock2D'] * 3,
  'up_block_types': ['ResnetUpsampleBlock2D'] * 3,
  'block_out_channels': [32, 64, 64],
  'layers_per_block': 2,
  'out_channels': 6,
}
WIDER = {'block_out_channels': [48, 144], 'layers_per_block': 3, 'norm_num_groups': 16}


@pytest.mark.parametrize('changes', [{}, DEEPER, WIDER], ids=['small', 'deep', 'wide'])
def test_an_imported_folder_opens_as_an_upsampler_with_equal_outputs(tmp_path, changes):
  theirs = upsampler(**changes)
  theirs.save_pretrained(tmp_path / 'super_res_first', safe_serialization=True)
  words = ['import', '--kind', 'karlo-sr', '--from', str(tmp_path)]
  assert cli.main([*words, '--out', str(tmp_path / 'out')]) == 0
  opened = load_diffusion(tmp_path / 'out')
  config = opened.config.unet
  assert (config.image_size, config.low_res_size) == (16, 4)
  config = dataclasses.replace(config, dtype='float32')
  ours = nnx.eval_shape(lambda: UNet(config, {}, rngs=nnx.Rngs(0)))
  nnx.update(ours, opened.weights)
  rng = np.random.default_rng(0)
  x_t, low_res = rng.normal(size=(2, 3, 16, 16, 3)).astype(np.float32)
  t = np.array([0, 370, 999])
  output = nnx.jit(lambda m, *a: m(*a[:2], {}, {}, low_res=a[2]))(ours, x_t, t, low_res)
  given = torch.cat([to_torch(x_t), to_torch(low_res)], dim=1)
  assert_near(output, to_numpy(theirs(given, torch.from_numpy(t)).sample), 1e-4)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'_class_name': 'PriorTransformer'}, "_class_name .* is 'PriorTransformer'"),
    ({'add_attention': True}, 'add_attention .* is True; .* False'),
    ({'in_channels': 3}, 'in_channels .* is 3; .* 6'),
    ({'sample_size': 18}, 'sample_size .* is 18; .* a multiple of 4'),
    ({'class_embed_type': 'timestep'}, 'class_embed_type'),
    ({'down_block_types': ['DownBlock2D'] * 2}, 'down_block_types .* types among'),
    ({'time_embedding_type': 'fourier'}, 'time_embedding_type'),
  ],
)
def test_what_our_unet_cannot_be_is_refused_by_field_and_value(fields, message):
  good = dict(upsampler().config)
  assert upsampler_config(good).channels == 32
  with pytest.raises(ValueError, match=message):
    upsampler_config(good | fields)
