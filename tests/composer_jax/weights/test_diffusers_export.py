from __future__ import annotations

import dataclasses
import json

import diffusers
import numpy as np
import pytest
import torch
from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel
from flax import nnx

from composer_jax import cli
from composer_jax.config import Config, DiffusionConfig
from composer_jax.models.prior import PriorConfig
from composer_jax.models.unet import UNet, UNetConfig
from composer_jax.weights import karlo_decoder
from composer_jax.weights.diffusers_export import export_diffusers
from composer_jax.weights.model_folder import Kind, Model, import_model
from tests.composer_jax.models.public_weights import (
  assert_near,
  randomised,
  to_numpy,
  to_torch,
  with_random_weights,
)
from tests.composer_jax.weights.diffusers_folders import (
  SHAPES,
  upsampler,
  write_decoder,
)


@pytest.fixture(scope='module')
def pipeline(tmp_path_factory):
  """Their models in a folder, and a model folder of ours with the same weights."""
  theirs = tmp_path_factory.mktemp('karlo')
  (theirs / 'README.md').write_text('---\nlicense: openrail-m\n---\n')
  write_decoder(theirs)
  upsampler().save_pretrained(theirs / 'super_res_first')
  prior = diffusers.PriorTransformer(
    num_attention_heads=2,
    attention_head_dim=8,
    num_layers=2,
    embedding_dim=12,
    num_embeddings=5,
  )
  randomised(prior).save_pretrained(theirs / 'prior')
  ours = tmp_path_factory.mktemp('ours')
  names = {'karlo-prior': 'prior', 'karlo-decoder': 'base', 'karlo-sr': 'upsampler'}
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(karlo_decoder, 'TOKENS', SHAPES['caption'][0] - 1)
    for kind, stage in names.items():
      out = str(ours / stage)
      assert (
        cli.main(['import', '--kind', kind, '--from', str(theirs), '--out', out]) == 0
      )
  return theirs, ours


CLASSES = {
  'prior': diffusers.PriorTransformer,
  'decoder': diffusers.UNet2DConditionModel,
  'text_proj': UnCLIPTextProjModel,
  'super_res_first': diffusers.UNet2DModel,
}


def test_what_was_imported_comes_back_bit_for_bit(pipeline, tmp_path, capsys):
  theirs, ours = pipeline
  words = ['export', '--format', 'diffusers', '--workdir', str(ours)]
  assert cli.main([*words, '--out', str(tmp_path / 'out')]) == 0
  names = sorted(CLASSES)
  assert capsys.readouterr().out.startswith(', '.join(names))
  assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == sorted(
    [*names, 'model.json']
  )
  about = json.loads((tmp_path / 'out' / 'model.json').read_text())
  assert sorted(about['stages']) == names
  assert about['stages']['decoder']['imported']['licence'] == 'openrail-m'
  for name, kind in CLASSES.items():
    before = kind.from_pretrained(theirs / name).state_dict()
    after = kind.from_pretrained(tmp_path / 'out' / name).state_dict()
    assert before.keys() == after.keys()
    for key, value in before.items():
      torch.testing.assert_close(after[key], value, rtol=0, atol=0)


def test_a_scanned_model_of_ours_gives_equal_outputs_in_diffusers(tmp_path):
  model = UNetConfig(
    image_size=8,
    low_res_size=2,
    channels=16,
    multipliers=(1, 2),
    blocks=2,
    attention=(False, False),
    dropout=0.0,
    groups=8,
    level_embedding=False,
    scan=True,
    dtype='float32',
  )
  ours = with_random_weights(lambda: UNet(model, {}, rngs=nnx.Rngs(0)))
  upsampler().save_pretrained(tmp_path / 'any')
  made = Model(Config('diffusion', model), nnx.state(ours))
  import_model('test', Kind(lambda *_: made), tmp_path / 'any', tmp_path / 'run')
  assert export_diffusers(tmp_path / 'run', tmp_path / 'out') == ['super_res_first']
  theirs = diffusers.UNet2DModel.from_pretrained(tmp_path / 'out' / 'super_res_first')
  rng = np.random.default_rng(0)
  x_t, low_res = rng.normal(size=(2, 3, 8, 8, 3)).astype(np.float32)
  t = np.array([0, 370, 999])
  given = torch.cat([to_torch(x_t), to_torch(low_res)], dim=1)
  with torch.no_grad():
    wanted = to_numpy(theirs(given, torch.from_numpy(t)).sample)
  output = nnx.jit(lambda m, *a: m(*a[:2], {}, {}, low_res=a[2]))(ours, x_t, t, low_res)
  assert_near(output, wanted, 1e-4)


@pytest.mark.parametrize(
  ('model', 'message'),
  [
    (UNetConfig(conditions=('sketch',)), r"base: .* model.conditions is \('sketch',\)"),
    (UNetConfig(conditions=('caption', 'semantics')), "conditioning is 'composer'"),
    (
      UNetConfig(low_res_size=16, attention=(False,) * 4),
      'upsampler: .*level_embedding is True, expected False',
    ),
  ],
)
def test_what_diffusers_has_no_class_for_is_refused_by_field(model, message):
  from composer_jax.weights.diffusers_export import _models

  name = 'upsampler' if model.low_res_size else 'base'
  with pytest.raises(ValueError, match=message):
    _models(name, Config('diffusion', model), nnx.State({}), {})


def test_a_prior_of_other_steps_is_refused():
  from composer_jax.weights.diffusers_export import _models

  model = PriorConfig(num_steps=500)
  diffusion = DiffusionConfig(prediction='x0', num_steps=500)
  config = dataclasses.replace(
    Config('prior', PriorConfig(), diffusion=DiffusionConfig(prediction='x0')),
    model=model,
    diffusion=diffusion,
  )
  with pytest.raises(ValueError, match='model.num_steps is 500, expected 1000'):
    _models('prior', config, nnx.State({}), {})


def test_an_out_with_something_in_it_is_left_alone(pipeline, tmp_path):
  (tmp_path / 'note.txt').write_text('mine')
  with pytest.raises(FileExistsError, match='holds something already'):
    export_diffusers(pipeline[1], tmp_path)
  assert [path.name for path in tmp_path.iterdir()] == ['note.txt']
