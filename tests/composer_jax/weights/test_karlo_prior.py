from __future__ import annotations

import jax
import numpy as np
import pytest
import torch
from diffusers import PriorTransformer
from flax import nnx

from composer_jax import cli
from composer_jax.checkpoints import newest, read_average
from composer_jax.models.prior import PriorConfig
from composer_jax.trained import load_prior
from composer_jax.training.stages import PriorDiffusion
from composer_jax.weights.karlo_prior import prior_config, sources

# Parity with diffusers through this table: tests/composer_jax/models/test_prior.py.


def test_a_config_without_fields_has_the_defaults_of_diffusers():
  assert prior_config({}) == PriorConfig()


def test_a_config_as_diffusers_writes_it_is_understood():
  theirs = PriorTransformer(
    num_attention_heads=2,
    attention_head_dim=6,
    num_layers=3,
    embedding_dim=10,
    num_embeddings=5,
    dropout=0.1,
    time_embed_dim=12,
    clip_embed_dim=10,
  )
  assert prior_config(dict(theirs.config)) == PriorConfig(
    width=12,
    layers=3,
    heads=2,
    head_width=6,
    embed_width=10,
    num_tokens=5,
    dropout=0.1,
  )


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (
      {'_class_name': 'UNet2DModel'},
      "_class_name .* 'UNet2DModel'; only a PriorTransformer",
    ),
    ({'num_layers': 0}, 'num_layers .* is 0; only .* a positive integer'),
    ({'embedding_dim': None}, 'embedding_dim .* is None; only'),
    (
      {'norm_in_type': 'layer'},
      "norm_in_type .* is 'layer'; only a PriorTransformer with None",
    ),
    ({'additional_embeddings': 3}, 'additional_embeddings .* is 3; only .* 4'),
    ({'added_emb_type': None}, "added_emb_type .* is None; only .* 'prd'"),
    ({'encoder_hid_proj_type': None}, 'encoder_hid_proj_type'),
    ({'embedding_proj_norm_type': 'layer'}, 'embedding_proj_norm_type'),
    ({'time_embed_act_fn': 'gelu'}, 'time_embed_act_fn'),
    ({'clip_embed_dim': 1024}, 'clip_embed_dim .* is 1024; only .* None or 768'),
    ({'embedding_proj_dim': 1024}, 'embedding_proj_dim'),
    ({'time_embed_dim': 64}, 'time_embed_dim .* is 64; only .* None or 2048'),
  ],
)
def test_what_this_prior_cannot_be_is_refused_by_field_and_value(fields, message):
  with pytest.raises(ValueError, match=message):
    prior_config(fields)


def test_an_imported_folder_opens_as_a_prior_with_equal_outputs(tmp_path):
  theirs = PriorTransformer(
    num_attention_heads=2,
    attention_head_dim=8,
    num_layers=2,
    embedding_dim=6,
    num_embeddings=4,
  )
  for parameter in theirs.parameters():
    parameter.requires_grad_(False).copy_(torch.randn(parameter.shape))
  theirs.save_pretrained(tmp_path / 'prior', safe_serialization=True)
  source, out = tmp_path / 'prior', tmp_path / 'model'
  words = ['import', '--kind', 'karlo-prior', '--from', str(source), '--out', str(out)]
  assert cli.main(words) == 0
  imagine = load_prior(out)
  prior = PriorDiffusion(imagine.config).init(jax.random.key(0))
  shapes = nnx.state(prior)
  nnx.update(prior, read_average(out, newest(out), shapes))
  rng = np.random.default_rng(0)
  x_t, sentence = rng.normal(size=(2, 3, 6)).astype(np.float32)
  text = rng.normal(size=(3, 4, 6)).astype(np.float32)
  t = np.array([0, 500, 999])
  mask = np.ones((3, 4), bool)
  given = map(torch.from_numpy, (x_t, t, sentence, text, mask))
  wanted = theirs(*given).predicted_image_embedding.numpy()
  made = prior(x_t, t, text, sentence, mask, np.ones(3, bool))
  assert np.abs(made - wanted).max() < 0.05 * np.abs(wanted).max()  # In bfloat16.
  captions = np.concatenate([text, sentence[:, None]], axis=1).astype(np.float16)
  semantics = imagine(captions, np.arange(3))
  assert semantics.shape == (3, 6)
  assert np.isfinite(semantics).all()


def test_a_stack_names_the_arrays_of_its_layers_in_order():
  source = sources(PriorConfig(layers=12))['layers', 'q', 'kernel']
  assert source.names == tuple(
    f'transformer_blocks.{i}.attn1.to_q.weight' for i in range(12)
  )
