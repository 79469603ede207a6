from __future__ import annotations

import dataclasses
import math

import jax
import numpy as np
import PIL.Image
import pytest
import torch
import transformers
from flax import nnx
from jax import numpy as jnp

from composer_jax.models import clip

SMALL = clip.ClipConfig(
  image_size=24,
  patch_size=8,
  vision_width=32,
  vision_layers=2,
  vision_heads=4,
  text_width=24,
  text_layers=3,
  text_heads=2,
  vocab_size=50,
  context_length=12,
  end_token=49,
  embed_width=20,
)
OTHER = clip.ClipConfig(
  image_size=20,
  patch_size=5,
  vision_width=48,
  vision_layers=3,
  vision_heads=3,
  text_width=32,
  text_layers=2,
  text_heads=4,
  vocab_size=40,
  context_length=9,
  end_token=7,
  embed_width=16,
  mlp_ratio=3,
  activation='gelu',
)


# Compiled whole: one by one, the operations of a model take longer to compile.
new_clip = nnx.jit(lambda config: clip.Clip(config, rngs=nnx.Rngs(0)), static_argnums=0)
image_embedding = nnx.jit(lambda model, images: model.image_embedding(images))
text_embedding = nnx.jit(lambda model, tokens: model.text_embedding(tokens))
contrastive_grads = jax.jit(jax.value_and_grad(clip.contrastive_loss, (0, 1, 2)))


def reference_config(config: clip.ClipConfig) -> transformers.CLIPConfig:
  return transformers.CLIPConfig(
    text_config={
      'vocab_size': config.vocab_size,
      'hidden_size': config.text_width,
      'intermediate_size': config.text_width * config.mlp_ratio,
      'num_hidden_layers': config.text_layers,
      'num_attention_heads': config.text_heads,
      'max_position_embeddings': config.context_length,
      'hidden_act': config.activation,
      'eos_token_id': config.end_token,
      'bos_token_id': 0,
      'pad_token_id': config.end_token,
    },
    vision_config={
      'hidden_size': config.vision_width,
      'intermediate_size': config.vision_width * config.mlp_ratio,
      'num_hidden_layers': config.vision_layers,
      'num_attention_heads': config.vision_heads,
      'image_size': config.image_size,
      'patch_size': config.patch_size,
      'hidden_act': config.activation,
    },
    projection_dim=config.embed_width,
  )


def reference_model(config: clip.ClipConfig) -> transformers.CLIPModel:
  """A public CLIP whose every weight, biases and norms included, is random."""
  torch.manual_seed(0)
  model = transformers.CLIPModel(reference_config(config)).eval()
  with torch.no_grad():
    for name, value in model.named_parameters():
      centre = 1.0 if 'norm' in name and name.endswith('weight') else 0.0
      if name != 'logit_scale':
        value.copy_(centre + torch.randn_like(value) * 0.15)
  return model


def ours_with_weights_of(
  theirs: transformers.CLIPModel, config: clip.ClipConfig
) -> clip.Clip:
  """Moves every tensor of the public state dict to the parameter of its name."""
  ours = nnx.eval_shape(lambda: clip.Clip(config, rngs=nnx.Rngs(0)))
  params = nnx.to_pure_dict(nnx.state(ours, nnx.Param))
  filled = set()
  for name, tensor in theirs.state_dict().items():
    value = tensor.numpy()
    *path, leaf = name.replace('pre_layrnorm', 'pre_layernorm').split('.')
    path = [part for part in path if part not in ('embeddings', 'encoder')]
    if leaf == 'weight':
      if path[-1] == 'patch_embedding':
        leaf, value = 'kernel', value.transpose(2, 3, 1, 0).reshape(-1, value.shape[0])
      elif path[-1].endswith('_embedding'):
        leaf = 'embedding'
      elif 'norm' in path[-1]:
        leaf = 'scale'
      else:
        leaf, value = 'kernel', value.T
    node = params
    for part in path:
      node = node[int(part) if part.isdigit() else part]
    assert node[leaf].shape == value.shape, name
    node[leaf] = jnp.asarray(value)
    filled.add((*path, leaf))
  assert len(filled) == len(jax.tree.leaves(params))
  nnx.update(ours, params)
  return ours


def some_tokens(config: clip.ClipConfig, length: int) -> np.ndarray:
  """Captions of several lengths, padded with the end token as by `Tokenizer`."""
  rng = np.random.default_rng(3)
  words = [i for i in range(config.vocab_size) if i != config.end_token]
  tokens = rng.choice(words, (4, length)).astype(np.int32)
  for row, end in enumerate((1, length // 2, length - 2, length - 1)):
    tokens[row, end:] = config.end_token
  return tokens


def some_images(config: clip.ClipConfig) -> np.ndarray:
  shape = (3, config.image_size, config.image_size, 3)
  return np.random.default_rng(4).normal(size=shape).astype(np.float32)


def assert_close(ours: jax.Array, theirs: torch.Tensor, tolerance: float = 1e-4):
  ours, theirs = np.asarray(ours), theirs.detach().numpy()
  assert ours.shape == theirs.shape
  assert ours.dtype == np.float32
  assert np.abs(ours - theirs).max() < tolerance * np.abs(theirs).max()


@pytest.mark.parametrize('config', [SMALL, OTHER], ids=['small', 'other'])
def test_both_towers_agree_with_transformers(config):
  theirs = reference_model(config)
  ours = ours_with_weights_of(theirs, config)
  images = some_images(config)
  expected = theirs.get_image_features(torch.from_numpy(images).permute(0, 3, 1, 2))
  assert_close(image_embedding(ours, images), expected.pooler_output)
  for length in (config.context_length, config.context_length - 3):
    tokens = some_tokens(config, length)
    words, sentences = text_embedding(ours, tokens)
    expected = theirs.get_text_features(torch.from_numpy(tokens).long())
    assert_close(words, expected.last_hidden_state)
    assert_close(sentences, expected.pooler_output)


def test_whole_training_loss_and_gradients_agree_with_transformers():
  theirs = reference_model(SMALL)
  ours = ours_with_weights_of(theirs, SMALL)
  images, tokens = some_images(SMALL), some_tokens(SMALL, 12)[:3]
  expected = theirs(
    input_ids=torch.from_numpy(tokens).long(),
    pixel_values=torch.from_numpy(images).permute(0, 3, 1, 2),
    return_loss=True,
  )
  expected.loss.backward()

  @nnx.jit
  @nnx.value_and_grad
  def loss_and_grads(model):
    return clip.contrastive_loss(
      model.image_embedding(images),
      model.text_embedding(tokens)[1],
      model.logit_scale[...],
    )

  loss, grads = loss_and_grads(ours)
  np.testing.assert_allclose(loss, expected.loss.item(), rtol=1e-5)
  vision, text = theirs.vision_model, theirs.text_model
  for got, wanted in (
    (grads['logit_scale'], theirs.logit_scale),
    (grads['vision_model']['class_embedding'], vision.embeddings.class_embedding),
    (
      grads['text_model']['token_embedding']['embedding'],
      text.embeddings.token_embedding.weight,
    ),
  ):
    assert_close(got[...], wanted.grad, 1e-3)


def test_bfloat16_stays_close_to_float32_and_keeps_float32_parameters():
  theirs = reference_model(SMALL)
  exact = ours_with_weights_of(theirs, SMALL)
  half_config = dataclasses.replace(SMALL, dtype='bfloat16')
  half = ours_with_weights_of(theirs, half_config)
  for leaf in jax.tree.leaves(nnx.state(half, nnx.Param)):
    assert leaf.dtype == jnp.float32
  images, tokens = some_images(SMALL), some_tokens(SMALL, 12)
  pairs = [
    (image_embedding(exact, images), image_embedding(half, images)),
    *zip(text_embedding(exact, tokens), text_embedding(half, tokens), strict=True),
  ]
  for a, b in pairs:
    assert b.dtype == jnp.float32
    difference = np.abs(a - b).max() / np.abs(a).max()
    assert 0 < difference < 0.03


def test_vit_l14_at_336_has_the_published_number_of_parameters():
  config = clip.ClipConfig.vit_l14()
  model = nnx.eval_shape(lambda: clip.Clip(config, rngs=nnx.Rngs(0)))
  count = sum(math.prod(x.shape) for x in jax.tree.leaves(nnx.state(model, nnx.Param)))
  with torch.device('meta'):
    theirs = transformers.CLIPModel(reference_config(config))
  assert count == sum(value.numel() for value in theirs.parameters())
  assert round(count / 1e6, 1) == 427.9


def test_first_activations_of_a_new_model_are_of_order_one():
  model = new_clip(SMALL)
  embeddings = image_embedding(model, some_images(SMALL))
  words, sentences = text_embedding(model, some_tokens(SMALL, 12))
  for x in (embeddings, words, sentences):
    assert 0.3 < np.std(x) < 3
  assert model.logit_scale[...] == pytest.approx(2.6592, abs=1e-4)


def test_normalise_agrees_with_the_public_processor_on_whole_size_images():
  images = np.random.default_rng(0).integers(0, 256, (2, 24, 24, 3), np.uint8)
  processor = transformers.CLIPImageProcessor(
    size={'shortest_edge': 24}, crop_size={'height': 24, 'width': 24}
  )
  expected = processor(list(images), return_tensors='pt')['pixel_values']
  got = clip.normalise(images, 24)
  assert_close(got, expected.permute(0, 2, 3, 1))


@pytest.mark.parametrize('size', [12, 17, 64])
def test_normalise_resizes_as_pillow_does(size):
  # Hard edges, where an unfiltered or overshooting resize would show.
  images = np.random.default_rng(0).choice([0, 255], (2, 40, 40, 3)).astype(np.uint8)
  expected = np.empty((2, size, size, 3))
  for image, channel in np.ndindex(2, 3):
    # As floats: Pillow rounds and clips bytes between its two passes.
    plane = PIL.Image.fromarray(images[image, :, :, channel].astype(np.float32))
    resized = plane.resize((size, size), PIL.Image.Resampling.BICUBIC)
    expected[image, :, :, channel] = np.clip(resized, 0, 255)
  got = np.asarray(clip.normalise(images, size))
  again = (got * clip.PIXEL_STD + clip.PIXEL_MEAN) * 255
  np.testing.assert_allclose(again, expected, atol=0.01)


def test_contrastive_loss_and_gradients_agree_with_cross_entropy():
  rng = np.random.default_rng(0)
  images, texts = rng.normal(size=(2, 6, 8)).astype(np.float32)
  scale = np.float32(2.3)
  loss, grads = contrastive_grads(images, texts, scale)
  expected, wanted = cross_entropy_loss(images, texts, scale)
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  for got, want in zip(grads, wanted, strict=True):
    np.testing.assert_allclose(got, want, atol=1e-6)


def cross_entropy_loss(images, texts, scale) -> tuple[float, list[np.ndarray]]:
  """CLIP's figure 3 in PyTorch, with gradients."""
  inputs = [torch.tensor(x, requires_grad=True) for x in (images, texts, scale)]
  i, t, s = inputs
  i, t = (torch.nn.functional.normalize(x, dim=-1) for x in (i, t))
  logits = s.exp() * i @ t.T
  labels = torch.arange(len(logits))
  cross_entropy = torch.nn.functional.cross_entropy
  loss = (cross_entropy(logits, labels) + cross_entropy(logits.T, labels)) / 2
  loss.backward()
  return loss.item(), [x.grad.numpy() for x in inputs]


def test_samples_without_caption_leave_both_directions():
  rng = np.random.default_rng(1)
  images, texts = rng.normal(size=(2, 7, 8)).astype(np.float32)
  texts[[1, 4]] = 0  # What a missing caption's embedding may well be.
  weights = np.ones(7, np.float32)
  weights[[1, 4]] = 0
  scale = np.float32(3)
  loss, grads = contrastive_grads(images, texts, scale, weights)
  kept = weights > 0
  expected, wanted = cross_entropy_loss(images[kept], texts[kept], scale)
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  for got, want in zip(grads[:2], wanted[:2], strict=True):
    np.testing.assert_allclose(got[kept], want, atol=1e-6)
    np.testing.assert_array_equal(got[~kept], 0)
  np.testing.assert_allclose(grads[2], wanted[2], atol=1e-6)


def test_a_batch_without_captions_gives_zero_loss_and_gradients():
  images, texts = np.random.default_rng(1).normal(size=(2, 3, 8)).astype(np.float32)
  loss, grads = contrastive_grads(images, texts, jnp.array(2.0), jnp.zeros(3, bool))
  assert loss == 0
  for grad in grads:
    np.testing.assert_array_equal(grad, 0)


def test_weights_average_the_samples():
  images, texts = np.random.default_rng(2).normal(size=(2, 3, 8)).astype(np.float32)

  @jax.jit
  def loss_with(*weights: float) -> jax.Array:
    return clip.contrastive_loss(images, texts, jnp.array(1.0), jnp.array(weights))

  # Sample by sample: a weight so small that the others hardly count, but are
  # still offered as answers.
  alone = [loss_with(*(1.0 if i == j else 1e-8 for j in range(3))) for i in range(3)]
  np.testing.assert_allclose(
    loss_with(1.0, 2.0, 5.0), np.dot([1, 2, 5], alone) / 8, rtol=1e-5
  )


def test_logit_scale_stops_at_one_hundred_but_can_come_back():
  images, texts = np.random.default_rng(2).normal(size=(2, 4, 8)).astype(np.float32)
  loss_and_grad = jax.jit(jax.value_and_grad(clip.contrastive_loss, 2))
  cap = jnp.float32(math.log(100))
  at_cap, lowers = loss_and_grad(images, texts, cap)
  beyond, still_lowers = loss_and_grad(images, texts, cap + 0.5)
  assert at_cap == beyond
  # Wrong pairs want a smaller scale; right ones that are hard to tell apart want
  # a greater one.
  assert lowers > 0
  assert still_lowers > 0
  alike = images[:1] + 0.2 * texts
  assert loss_and_grad(alike, alike, cap - 0.1)[1] < 0
  assert loss_and_grad(alike, alike, cap)[1] == 0
  assert loss_and_grad(alike, alike, cap + 0.5)[1] == 0


def test_unit_length_of_zeros_is_zero_with_zero_gradient():
  x = jnp.array([[3.0, 4.0], [0.0, 0.0]])
  np.testing.assert_allclose(clip.unit_length(x), [[0.6, 0.8], [0, 0]], rtol=1e-6)
  grad = jax.grad(lambda x: clip.unit_length(x).sum())(x)
  np.testing.assert_allclose(grad, [[0.032, -0.024], [0, 0]], atol=1e-6)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'image_size': 25}, r'image_size \(25\) must be a multiple of patch_size'),
    ({'vision_heads': 5}, r'vision_width \(32\) must be a multiple'),
    ({'text_heads': 7}, r'text_width \(24\) must be a multiple'),
    ({'text_layers': 0}, 'text_layers is 0; give an integer of at least 1'),
    ({'embed_width': 1.5}, 'embed_width is 1.5; give an integer'),
    ({'end_token': 50}, r'end_token \(50\) is beyond vocab_size'),
    ({'end_token': -1}, 'end_token is -1; give an integer of at least 0'),
    ({'activation': 'relu'}, "activation is 'relu'; choose from"),
    ({'dtype': 'float16'}, "dtype is 'float16'; choose"),
  ],
)
def test_config_refuses_what_makes_no_model(changes, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(SMALL, **changes)


def test_inputs_of_the_wrong_kind_are_refused():
  model = nnx.eval_shape(lambda: clip.Clip(SMALL, rngs=nnx.Rngs(0)))
  pixels = np.zeros((2, 24, 24, 3), np.uint8)
  tokens = np.zeros((2, 13), np.int32)
  with pytest.raises(TypeError, match='uint8; pass them through `normalise`'):
    model.image_embedding(pixels)
  with pytest.raises(ValueError, match=r'\(B, 24, 24, 3\)'):
    model.image_embedding(np.zeros((2, 3, 24, 24), np.float32))
  with pytest.raises(TypeError, match='tokens are float32'):
    model.text_embedding(tokens.astype(np.float32))
  with pytest.raises(ValueError, match='T from 1 to 12'):
    model.text_embedding(tokens)
  with pytest.raises(TypeError, match='images are float32'):
    clip.normalise(pixels.astype(np.float32), 24)
  with pytest.raises(ValueError, match='images have shape'):
    clip.normalise(pixels[:, :20], 24)
  with pytest.raises(ValueError, match=r'must both be \(B, D\)'):
    clip.contrastive_loss(jnp.zeros((2, 3)), jnp.zeros((3, 3)), jnp.array(1.0))
  with pytest.raises(ValueError, match='weights have shape'):
    clip.contrastive_loss(
      jnp.zeros((2, 3)), jnp.zeros((2, 3)), jnp.array(1.0), jnp.ones((2, 1))
    )
