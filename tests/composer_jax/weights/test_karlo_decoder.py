from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from composer_jax import cli
from composer_jax.models.unet import UNet, UNetConfig
from composer_jax.safetensors_files import SafetensorsFiles
from composer_jax.trained import load_diffusion
from composer_jax.weights import karlo_decoder
from composer_jax.weights.mapping import take
from tests.composer_jax.models.public_weights import assert_near, to_numpy, to_torch
from tests.composer_jax.weights.diffusers_folders import EMBED, SHAPES, write_decoder

BATCH = 3
RNG = np.random.default_rng(0)
CAPTION = RNG.normal(size=(BATCH, *SHAPES['caption'])).astype(np.float32)
CAPTION[1, 3:-1] = 0  # Padding.
SEMANTICS = RNG.normal(size=(BATCH, EMBED)).astype(np.float32)
T = np.array([0, 370, 999])

DEEPER = {
  'down_block_types': [
    'SimpleCrossAttnDownBlock2D',
    'ResnetDownsampleBlock2D',
    'SimpleCrossAttnDownBlock2D',
  ],
  'up_block_types': [
    'SimpleCrossAttnUpBlock2D',
    'ResnetUpsampleBlock2D',
    'SimpleCrossAttnUpBlock2D',
  ],
  'block_out_channels': [32, 64, 96],
  'layers_per_block': 2,
  'attention_head_dim': 8,
  'out_channels': 3,
}
WIDER = {
  'block_out_channels': [64, 192],
  'attention_head_dim': [64, 64],
  'cross_attention_dim': 36,
  'layers_per_block': 3,
  'norm_num_groups': 16,
}


def read(folder) -> UNet:
  """Our model out of their files, in float32."""
  fields = karlo_decoder.read_json(folder / 'decoder' / 'config.json', (), '')
  config = karlo_decoder.decoder_config(fields)
  config = dataclasses.replace(config, dtype='float32')
  model = nnx.eval_shape(lambda: UNet(config, SHAPES, rngs=nnx.Rngs(0)))
  files = SafetensorsFiles(folder, sorted(folder.glob('*/*.safetensors')))
  sources = karlo_decoder.decoder_sources(config)
  nnx.update(model, take(files, sources, nnx.state(model)))
  return model


def theirs_says(unet, projection, x_t, caption, semantics):
  """Their output as UnCLIPPipeline asks for it, padding masked."""
  words, sentence = torch.tensor(caption[:, :-1]), torch.tensor(caption[:, -1])
  context, embedding = projection(
    image_embeddings=torch.tensor(semantics),
    prompt_embeds=sentence,
    text_encoder_hidden_states=words,
    do_classifier_free_guidance=False,
  )
  extra = context.shape[1] - words.shape[1]
  mask = torch.nn.functional.pad((words != 0).any(-1), (extra, 0), value=True)
  return to_numpy(
    unet(
      to_torch(x_t),
      torch.from_numpy(T),
      encoder_hidden_states=context,
      class_labels=embedding,
      attention_mask=mask,
    ).sample
  )


@pytest.mark.parametrize('changes', [{}, DEEPER, WIDER], ids=['small', 'deep', 'wide'])
def test_outputs_are_those_of_diffusers(tmp_path, changes):
  unet, projection = write_decoder(tmp_path, **changes)
  ours = read(tmp_path)
  x_t = RNG.normal(size=(BATCH, 8, 8, 3)).astype(np.float32)
  stored = {'caption': CAPTION, 'semantics': SEMANTICS}
  kept = {name: jnp.array([True, True, True]) for name in stored}
  output = nnx.jit(lambda m, *a: m(*a))(ours, x_t, T, stored, kept)
  wanted = theirs_says(unet, projection, x_t, CAPTION, SEMANTICS)
  assert output.shape[-1] == unet.config.out_channels
  assert_near(output, wanted, 1e-4)


def test_dropped_semantics_are_the_learned_embedding_of_diffusers(tmp_path):
  unet, projection = write_decoder(tmp_path)
  ours = read(tmp_path)
  x_t = RNG.normal(size=(BATCH, 8, 8, 3)).astype(np.float32)
  stored = {'caption': CAPTION, 'semantics': SEMANTICS}
  kept = {'caption': jnp.ones(BATCH), 'semantics': jnp.array([1.0, 0.0, 0.5])}
  output = nnx.jit(lambda m, *a: m(*a))(ours, x_t, T, stored, kept)
  null = projection.learned_classifier_free_guidance_embeddings.numpy()
  asked = np.stack([SEMANTICS[0], null, (SEMANTICS[2] + null) / 2])
  assert_near(output, theirs_says(unet, projection, x_t, CAPTION, asked), 1e-4)


def test_an_imported_pipeline_opens_as_a_base_model(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(karlo_decoder, 'TOKENS', SHAPES['caption'][0] - 1)
  unet, projection = write_decoder(tmp_path / 'karlo')
  card = '---\nlicense: creativeml-openrail-m\n---\n'
  (tmp_path / 'karlo' / 'README.md').write_text(card, 'utf-8')
  out = tmp_path / 'base'
  words = ['import', '--kind', 'karlo-decoder', '--from', str(tmp_path / 'karlo')]
  assert cli.main([*words, '--out', str(out)]) == 0
  assert 'licence: creativeml-openrail-m' in capsys.readouterr().out
  opened = load_diffusion(out)
  assert opened.condition_shapes == SHAPES
  config = opened.config.unet
  assert config == UNetConfig(
    image_size=8,
    channels=32,
    multipliers=(1, 2),
    blocks=1,
    attention=(False, True),
    head_width=16,
    dropout=0.0,
    conditions=('caption', 'semantics'),
    conditioning='unclip',
    context_width=20,
    learned_variance=True,
  )
  model = nnx.eval_shape(lambda: UNet(config, SHAPES, rngs=nnx.Rngs(0)))
  nnx.update(model, opened.weights)
  x_t = RNG.normal(size=(BATCH, 8, 8, 3)).astype(np.float32)
  stored = {'caption': CAPTION, 'semantics': SEMANTICS}
  kept = {name: jnp.ones(BATCH, bool) for name in stored}
  output = nnx.jit(lambda m, *a: m(*a))(model, x_t, T, stored, kept)
  wanted = theirs_says(unet, projection, x_t, CAPTION, SEMANTICS)
  assert np.abs(output - wanted).max() < 0.1 * np.abs(wanted).max()  # In bfloat16.
  digests = karlo_decoder.read_json(out / 'inputs.json', (), '')['imported']['digests']
  assert sorted(digests) == [
    'config.json',
    'diffusion_pytorch_model.safetensors',
    'text_proj/config.json',
    'text_proj/diffusion_pytorch_model.safetensors',
  ]


def test_a_decoder_without_its_text_projection_is_refused_by_name(tmp_path, capsys):
  write_decoder(tmp_path / 'karlo')
  (tmp_path / 'karlo' / 'text_proj').rename(tmp_path / 'elsewhere')
  words = ['import', '--kind', 'karlo-decoder', '--out', str(tmp_path / 'out')]
  assert cli.main([*words, '--from', str(tmp_path / 'karlo')]) == 1
  assert 'text_proj is no folder' in capsys.readouterr().err


def test_a_decoder_and_a_projection_of_different_widths_are_refused():
  config = UNetConfig(channels=32, context_width=20)
  fields = {'time_embed_dim': 256, 'cross_attention_dim': 20}
  with pytest.raises(ValueError, match='time_embed_dim .* is 256; only .* 128'):
    karlo_decoder.condition_shapes(config, fields)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'_class_name': 'UNet2DModel'}, "_class_name .* is 'UNet2DModel'; only"),
    ({'class_embed_type': None}, "class_embed_type .* is None; .* 'identity'"),
    ({'in_channels': 4}, 'in_channels .* is 4; .* 3'),
    ({'out_channels': 4}, 'out_channels .* is 4; .* 3 or 6'),
    ({'act_fn': 'gelu'}, "act_fn .* is 'gelu'"),
    ({'resnet_time_scale_shift': 'default'}, 'resnet_time_scale_shift'),
    ({'block_out_channels': [32, 48]}, 'block_out_channels .* multiples of the first'),
    ({'block_out_channels': [32]}, 'block_out_channels .* one entry for each'),
    ({'block_out_channels': 32}, 'block_out_channels .* positive integers'),
    ({'down_block_types': ['DownBlock2D'] * 2}, 'down_block_types .* types among'),
    ({'up_block_types': ['ResnetUpsampleBlock2D'] * 2}, 'up_block_types .* way down'),
    ({'attention_head_dim': [8, 16]}, 'attention_head_dim .* one width'),
    ({'layers_per_block': [1, 2]}, 'layers_per_block .* a positive integer'),
    ({'mid_block_type': 'UNetMidBlock2D'}, 'mid_block_type'),
    ({'cross_attention_norm': 'layer_norm'}, 'cross_attention_norm'),
  ],
)
def test_what_our_unet_cannot_be_is_refused_by_field_and_value(fields, message):
  good = {
    '_class_name': 'UNet2DConditionModel',
    'sample_size': 8,
    'in_channels': 3,
    'out_channels': 6,
    'down_block_types': ['ResnetDownsampleBlock2D', 'SimpleCrossAttnDownBlock2D'],
    'mid_block_type': 'UNetMidBlock2DSimpleCrossAttn',
    'up_block_types': ['SimpleCrossAttnUpBlock2D', 'ResnetUpsampleBlock2D'],
    'block_out_channels': [32, 64],
    'layers_per_block': 1,
    'attention_head_dim': 16,
    'class_embed_type': 'identity',
    'resnet_time_scale_shift': 'scale_shift',
  }
  assert karlo_decoder.decoder_config(good).channels == 32
  with pytest.raises(ValueError, match=message):
    karlo_decoder.decoder_config(good | fields)


def test_karlo_itself_is_a_unet_of_900_million_parameters():
  # As kakaobrain/karlo-v1-alpha/decoder/config.json has it.
  fields = {
    '_class_name': 'UNet2DConditionModel',
    'attention_head_dim': 64,
    'block_out_channels': [320, 640, 960, 1280],
    'class_embed_type': 'identity',
    'cross_attention_dim': 1536,
    'down_block_types': [
      'ResnetDownsampleBlock2D',
      *['SimpleCrossAttnDownBlock2D'] * 3,
    ],
    'in_channels': 3,
    'layers_per_block': 3,
    'mid_block_type': 'UNetMidBlock2DSimpleCrossAttn',
    'out_channels': 6,
    'resnet_time_scale_shift': 'scale_shift',
    'sample_size': 64,
    'up_block_types': [*['SimpleCrossAttnUpBlock2D'] * 3, 'ResnetUpsampleBlock2D'],
  }
  config = karlo_decoder.decoder_config(fields)
  shapes = {'caption': (78, 768), 'semantics': (768,)}
  model = nnx.eval_shape(lambda: UNet(config, shapes, rngs=nnx.Rngs(0)))
  count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model)))
  assert 0.88e9 < count < 0.96e9
