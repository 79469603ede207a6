from __future__ import annotations

import copy
import dataclasses
import json
import shutil
import tracemalloc

import jax
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from safetensors.numpy import load_file, save_file

from composer_jax import config_files
from composer_jax.checkpoints import newest, read_average
from composer_jax.models.clip import Clip, ClipConfig
from composer_jax.models.tokenizer import Tokenizer
from composer_jax.safetensors_files import open_weights
from composer_jax.weights.clip_weights import (
  check_preprocessing,
  clip_config,
  read_clip,
  sources,
)
from composer_jax.weights.mapping import take
from composer_jax.weights.model_folder import Kind, import_model
from tests.composer_jax.models.test_clip import (
  OTHER,
  assert_close,
  image_embedding,
  reference_config,
  some_images,
  some_tokens,
  text_embedding,
)
from tests.composer_jax.weights.clip_folder import (
  TINY,
  VOCABULARY,
  change_json,
  with_vocabulary,
  write_clip_folder,
)

VOCABULARY_FILES = ('vocab.json', 'merges.txt')

CONFIGS = {
  'quick_gelu': TINY,
  'gelu': with_vocabulary(OTHER),
  # One layer, one head, one patch, and ids that the tokenizer does not use.
  'least': ClipConfig(
    image_size=4,
    patch_size=4,
    vision_width=8,
    vision_layers=1,
    vision_heads=1,
    text_width=12,
    text_layers=1,
    text_heads=1,
    vocab_size=VOCABULARY + 9,
    context_length=3,
    end_token=VOCABULARY - 1,
    embed_width=6,
    mlp_ratio=1,
  ),
}


@pytest.fixture(scope='module')
def published(tmp_path_factory):
  """A folder as published, and its model. Not to be changed."""
  folder = tmp_path_factory.mktemp('published') / 'clip'
  return folder, write_clip_folder(folder)


@pytest.fixture
def folder(published, tmp_path):
  """A copy of it to change."""
  return shutil.copytree(published[0], tmp_path / 'clip')


@pytest.fixture(scope='module')
def tokenizer(published):
  return Tokenizer.from_clip(*(published[0] / name for name in VOCABULARY_FILES))


def read(folder):
  return read_clip(folder, open_weights(folder))


def abstract(config):
  return nnx.eval_shape(lambda: Clip(config, rngs=nnx.Rngs(0)))


def imported(folder, out):
  """The model that an import leaves, with its config."""
  import_model('clip', Kind(read_clip), folder, out)
  config = config_files.load(out / 'config.json').clip
  model = abstract(config)
  nnx.update(model, read_average(out, newest(out), nnx.state(model)))
  return model, config


def assert_same_embeddings(ours, theirs, config, tokens):
  images = some_images(config)
  expected = theirs.get_image_features(torch.from_numpy(images).permute(0, 3, 1, 2))
  assert_close(image_embedding(ours, images), expected.pooler_output)
  words, sentences = text_embedding(ours, tokens)
  expected = theirs.get_text_features(torch.from_numpy(tokens).long())
  assert_close(words, expected.last_hidden_state)
  assert_close(sentences, expected.pooler_output)


@pytest.mark.parametrize(
  ('name', 'saving'),
  [
    ('quick_gelu', {}),
    ('quick_gelu', {'max_shard_size': '50KB'}),
    ('gelu', {}),
    ('least', {}),
  ],
)
def test_an_imported_clip_embeds_as_transformers_does(tmp_path, name, saving):
  theirs = write_clip_folder(tmp_path / 'clip', CONFIGS[name], **saving)
  shards = len(list((tmp_path / 'clip').glob('*.safetensors')))
  assert shards > 3 if saving else shards == 1
  ours, config = imported(tmp_path / 'clip', tmp_path / 'out')
  assert config == CONFIGS[name]
  tokens = some_tokens(config, config.context_length)
  assert_same_embeddings(ours, theirs, config, tokens)
  assert float(ours.logit_scale[...]) == theirs.logit_scale.item()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_becomes_the_same_numbers_in_float32(
  published, folder, tmp_path, dtype
):
  theirs = copy.deepcopy(published[1]).to(dtype)
  theirs.save_pretrained(folder)
  ours, config = imported(folder, tmp_path / 'out')
  assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(ours))} == {np.dtype('f4')}
  tokens = some_tokens(config, config.context_length)
  assert_same_embeddings(ours, theirs.float(), config, tokens)


def test_the_end_token_of_older_configs_reads_the_highest_id(folder, tmp_path):
  change_json(folder / 'config.json', 'text_config', eos_token_id=2)
  theirs = transformers.CLIPModel.from_pretrained(folder).eval()
  assert theirs.config.text_config.eos_token_id == 2
  ours, config = imported(folder, tmp_path / 'out')
  assert config.end_token == VOCABULARY - 1
  tokens = some_tokens(config, config.context_length)
  tokens[0, 0] = 2  # Not where the sentence is read.
  assert_same_embeddings(ours, theirs, config, tokens)


def test_configs_of_the_first_release_are_read_as_transformers_reads_them(
  folder, tokenizer
):
  fields = json.loads((folder / 'config.json').read_text())
  text, vision = fields['text_config'], fields['vision_config']
  # There, the second object counts, and what it lacks has its default.
  fields |= {'text_config_dict': text, 'vision_config_dict': {**vision}}
  fields['text_config'] = {**text, 'hidden_size': 7, 'num_hidden_layers': 9}
  del fields['vision_config'], fields['vision_config_dict']['patch_size']
  (folder / 'config.json').write_text(json.dumps(fields))
  theirs = transformers.CLIPConfig.from_pretrained(folder)
  assert theirs.text_config.hidden_size == TINY.text_width
  with pytest.raises(ValueError, match=r'image_size \(24\) .* patch_size \(32\)'):
    clip_config(fields, tokenizer)
  fields['vision_config_dict']['image_size'] = theirs.vision_config.patch_size
  assert clip_config(fields, tokenizer) == dataclasses.replace(
    TINY, image_size=32, patch_size=32
  )


def test_missing_fields_have_the_defaults_of_transformers(tokenizer):
  theirs = transformers.CLIPConfig()
  expected = ClipConfig(
    image_size=theirs.vision_config.image_size,
    patch_size=theirs.vision_config.patch_size,
    vision_width=theirs.vision_config.hidden_size,
    vision_layers=theirs.vision_config.num_hidden_layers,
    vision_heads=theirs.vision_config.num_attention_heads,
    text_width=theirs.text_config.hidden_size,
    text_layers=theirs.text_config.num_hidden_layers,
    text_heads=theirs.text_config.num_attention_heads,
    vocab_size=theirs.text_config.vocab_size,
    context_length=theirs.text_config.max_position_embeddings,
    end_token=VOCABULARY - 1,
    embed_width=theirs.projection_dim,
    activation=theirs.text_config.hidden_act,
  )
  fields = {'text_config': {'eos_token_id': 2}, 'vision_config': {}}
  assert clip_config(fields, tokenizer) == expected
  fields = {'text_config': {}}
  with pytest.raises(
    ValueError, match=f'is {theirs.text_config.eos_token_id}, so that'
  ):
    clip_config(fields, tokenizer)


@pytest.mark.parametrize(
  ('part', 'changes', 'message'),
  [
    (None, {'model_type': 'siglip'}, "model_type .* is 'siglip'; only .* 'clip'"),
    (
      None,
      {'architectures': ['CLIPTextModel']},
      r"architectures .*\['CLIPTextModel'\]",
    ),
    (None, {'projection_dim': 0}, 'embed_width is 0; give an integer'),
    ('text_config', {'hidden_act': 'relu'}, "text_config.hidden_act .* is 'relu'"),
    ('text_config', {'hidden_act': 'gelu'}, "'gelu'; only .* 'quick_gelu', as vision"),
    (
      'vision_config',
      {'layer_norm_eps': 1e-6},
      'vision_config.layer_norm_eps .* 1e-06',
    ),
    ('vision_config', {'num_channels': 4}, 'num_channels .* is 4; only .* 3'),
    ('vision_config', {'image_size': [24, 24]}, r'image_size is \[24, 24\]; give an'),
    ('vision_config', {'intermediate_size': 100}, 'is 100; only .* 128, 4 times'),
    ('text_config', {'intermediate_size': 100}, 'text_config.intermediate_size .* 100'),
    ('text_config', {'hidden_size': 0}, 'text_config.hidden_size .* is 0'),
    (
      'text_config',
      {'num_attention_heads': 5},
      r'text_width \(24\) must be a multiple',
    ),
    (
      'text_config',
      {'eos_token_id': 7},
      'is read at id 7, and the end token .* is 534',
    ),
    ('text_config', {'eos_token_id': [534]}, r'eos_token_id is \[534\]'),
    ('text_config', {'vocab_size': 500}, 'tokenizer has 535 ids and .* is 500'),
  ],
)
def test_what_is_not_supported_is_refused_by_field_and_value(
  folder, part, changes, message
):
  change_json(folder / 'config.json', part, **changes)
  with pytest.raises(ValueError, match=message):
    read(folder)


def test_one_error_lists_all_tensors_that_do_not_fit(folder):
  path = folder / 'model.safetensors'
  tensors = load_file(path)
  del tensors['logit_scale'], tensors['text_model.encoder.layers.2.mlp.fc1.bias']
  tensors['lora.down'] = np.zeros((3, 2), np.float32)
  tensors['visual_projection.weight'] = np.zeros((24, 31), np.float32)
  tensors['vision_model.embeddings.patch_embedding.weight'] = np.zeros((32, 3, 4, 4))
  save_file(tensors, path)
  with pytest.raises(ValueError, match='does not hold the model') as caught:
    read(folder)
  for part in (
    'missing: ',
    'logit_scale for logit_scale ()',
    'layers.2.mlp.fc1.bias for text_model/layers/2/mlp/fc1/bias (96,)',
    'unknown: lora.down (3, 2);',
    'visual_projection.weight (24, 31) float32 for visual_projection/kernel (32, 24)',
    'patch_embedding.weight (32, 3, 4, 4) float64 for vision_model/patch_embedding',
  ):
    assert part in str(caught.value)


def test_numbers_of_positions_in_older_files_are_passed_over(folder):
  path = folder / 'model.safetensors'
  expected = jax.tree.leaves(read(folder).weights)
  numbers = {
    f'{tower}_model.embeddings.position_ids': np.arange(count)[None]
    for tower, count in (('text', 12), ('vision', 10))
  }
  save_file(load_file(path) | numbers, path)
  again = jax.tree.leaves(read(folder).weights)
  for a, b in zip(again, expected, strict=True):
    np.testing.assert_array_equal(a, b)


def test_every_parameter_has_one_source_and_every_public_tensor_is_used():
  # Numbers of layers with two digits, a different one in each tower.
  config = dataclasses.replace(TINY, vision_layers=12, text_layers=11)
  table = sources(config)
  assert set(table) == set(dict(nnx.to_flat_state(nnx.state(abstract(config)))))
  with torch.device('meta'):
    theirs = transformers.CLIPModel(reference_config(config)).state_dict()
  names = [source.names for source in table.values()]
  assert len(names) == len(set(names))
  assert set(names) == set(theirs)


def test_reading_takes_little_more_memory_than_the_weights(tmp_path):
  config = dataclasses.replace(
    TINY, vision_width=320, vision_layers=2, text_width=320, text_layers=2
  )
  write_clip_folder(tmp_path / 'clip', config)
  files = open_weights(tmp_path / 'clip')
  shapes = nnx.state(abstract(config))
  size = sum(4 * leaf.size for leaf in jax.tree.leaves(shapes))
  tracemalloc.start()
  weights = take(files, sources(config), shapes)
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert size > 20e6
  assert sum(leaf.nbytes for leaf in jax.tree.leaves(weights)) == size
  assert size < peak < 1.2 * size


def test_either_form_of_the_tokenizer_is_read(folder):
  captions = ['A red fox, and the dog!', 'café 🦊 12', '']
  first = read(folder).tokenizer.encode(captions)
  theirs = transformers.CLIPTokenizer.from_pretrained(folder)
  for name in VOCABULARY_FILES:
    (folder / name).unlink()
  with pytest.raises(
    FileNotFoundError, match='holds no tokenizer; expected vocab.json'
  ):
    read(folder)
  theirs.save_pretrained(folder)
  second = read(folder).tokenizer.encode(captions)
  expected = theirs(captions, padding='max_length', truncation=True, max_length=12)
  assert first.tolist() == second.tolist() == expected['input_ids']


def test_preprocessing_as_the_public_processor_writes_it_is_accepted(tmp_path):
  for size in ({'shortest_edge': 24}, {'height': 24, 'width': 24}):
    processor = transformers.CLIPImageProcessorPil(
      size=size, crop_size={'height': 24, 'width': 24}
    )
    processor.save_pretrained(tmp_path)
    fields = json.loads((tmp_path / 'preprocessor_config.json').read_text())
    assert {'image_mean', 'size', 'resample'} <= set(fields)
    check_preprocessing(fields, TINY)
  # As of the first release: sizes are numbers, and all else is there.
  check_preprocessing({'crop_size': 24, 'size': 24, 'resample': 3}, TINY)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (
      {'image_mean': [0.5, 0.5, 0.5]},
      r'image_mean .* is \[0.5, 0.5, 0.5\]; only .*0.48',
    ),
    ({'image_std': [0.5, 0.5, 0.5]}, 'image_std .* only models with .*0.268'),
    ({'size': {'shortest_edge': 32}}, 'size .* 32}; only models with 24 can'),
    ({'crop_size': 20}, 'crop_size .* is 20'),
    ({'resample': 2}, 'resample .* is 2; only models with 3'),
    ({'do_normalize': False}, 'do_normalize .* is False; only models with True'),
  ],
)
def test_other_preprocessing_is_refused_by_field_and_value(folder, changes, message):
  path = folder / 'preprocessor_config.json'
  path.write_text(json.dumps({'size': 24, 'crop_size': 24} | changes))
  with pytest.raises(ValueError, match=message):
    read(folder)
