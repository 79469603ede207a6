from __future__ import annotations

import dataclasses
import functools
import json
import math

import jax
import numpy as np
import pytest
import torch
from diffusers import PriorTransformer
from flax import nnx
from jax import numpy as jnp

from composer_jax.conditions.statistics import (
  EmbeddingStatistics,
  embedding_statistics,
)
from composer_jax.models.prior import (
  EXTRA_TOKENS,
  Prior,
  PriorConfig,
  PriorLayer,
)
from composer_jax.models.scan import stack_layers, unstack_layers
from composer_jax.safetensors_files import open_weights
from composer_jax.weights.karlo_prior import prior_config, sources
from composer_jax.weights.mapping import take
from tests.composer_jax.models.public_weights import (
  assert_near,
  randomised,
  with_random_weights,
)

SMALL = PriorConfig(
  width=32,
  layers=2,
  heads=2,
  head_width=16,
  embed_width=12,
  num_tokens=7,
  dtype='float32',
)
BATCH = 4
T = np.array([0, 17, 400, 999])
KEPT = np.ones(BATCH, bool)

# Compiled whole: one by one, the operations of a model take longer to compile.
run = nnx.jit(lambda model, *inputs: model(*inputs))
new_prior = nnx.jit(
  lambda config, statistics=None: Prior(config, statistics, rngs=nnx.Rngs(0)),
  static_argnums=0,
)


def some_inputs(config, seed=0):
  """x_t, words, sentence, and masks of several lengths, one with a gap."""
  rng = np.random.default_rng(seed)
  tokens, embed = config.num_tokens, config.embed_width
  x_t, sentence = rng.normal(size=(2, BATCH, embed)).astype(np.float32)
  words = rng.normal(size=(BATCH, tokens, embed)).astype(np.float32)
  lengths = np.array([1, tokens // 2, tokens, tokens])
  word_mask = np.arange(tokens) < lengths[:, None]
  word_mask[3, [0, 2]] = False
  return x_t, words, sentence, word_mask


@functools.cache
def random_prior(config):
  model = with_random_weights(lambda: Prior(config, rngs=nnx.Rngs(0)))
  embed = config.embed_width
  nnx.update(model, {'mean': jnp.zeros(embed), 'std': jnp.ones(embed)})
  return model


def params_of(model):
  return nnx.to_pure_dict(nnx.state(model, nnx.Param))


@functools.cache
def unrolled_and_scanned(config):
  """The same random weights in both forms."""
  scanned = random_prior(dataclasses.replace(config, scan=True))
  other = dataclasses.replace(config, scan=False)
  unrolled = nnx.eval_shape(lambda: Prior(other, rngs=nnx.Rngs(0)))
  state = nnx.to_pure_dict(nnx.state(scanned))
  nnx.update(unrolled, unstack_layers(state, 'layers'))
  return unrolled, scanned


def diffusers_prior(faint=False, **sizes) -> PriorTransformer:
  """With random weights; the tokens of a faint one are near epsilon of the norms."""
  theirs = randomised(PriorTransformer(**sizes))
  generator = torch.Generator().manual_seed(1)
  for name in ('positional_embedding', 'prd_embedding', 'clip_mean', 'clip_std'):
    value = getattr(theirs, name)
    value.copy_(torch.randn(value.shape, generator=generator))
  if faint:
    for name, value in theirs.named_parameters():
      if not name.startswith(('transformer', 'norm_out', 'proj_to', 'clip')):
        value.mul_(0.05)
  return theirs


def prior_from(folder, **options) -> Prior:
  fields = json.loads((folder / 'config.json').read_text())
  config = dataclasses.replace(prior_config(fields), dtype='float32', **options)
  graph, shapes = nnx.split(nnx.eval_shape(lambda: Prior(config, rngs=nnx.Rngs(0))))
  return nnx.merge(graph, take(open_weights(folder), sources(config), shapes))


@pytest.mark.parametrize(
  ('sizes', 'scan'),
  [
    (dict(layers=2, heads=2, head=16, embed=12, tokens=7), True),
    (dict(layers=2, heads=2, head=16, embed=12, tokens=7), False),
    (dict(layers=3, heads=5, head=8, embed=20, tokens=4), True),
    (dict(layers=1, heads=1, head=24, embed=8, tokens=11, faint=True), False),
  ],
  ids=['scanned', 'unrolled', 'deeper', 'faint'],
)
def test_predictions_agree_with_diffusers_from_a_saved_folder(tmp_path, sizes, scan):
  theirs = diffusers_prior(
    num_layers=sizes['layers'],
    num_attention_heads=sizes['heads'],
    attention_head_dim=sizes['head'],
    embedding_dim=sizes['embed'],
    num_embeddings=sizes['tokens'],
    faint=sizes.get('faint', False),
  )
  theirs.save_pretrained(tmp_path, safe_serialization=True)
  ours = prior_from(tmp_path, scan=scan)
  x_t, words, sentence, word_mask = some_inputs(ours.config)
  for mask in (word_mask, np.ones_like(word_mask)):
    wanted = theirs(
      *map(torch.from_numpy, (x_t, T, sentence, words, mask))
    ).predicted_image_embedding
    predicted = run(ours, x_t, T, words, sentence, mask, KEPT)
    assert predicted.dtype == jnp.float32
    assert_near(predicted, wanted, 1e-4)
  wanted = theirs.post_process_latents(torch.from_numpy(x_t))
  assert_near(ours.denormalise(x_t), wanted)


@nnx.jit
@nnx.value_and_grad
def loss_and_gradients(model):
  x_t, words, sentence, word_mask = some_inputs(SMALL)
  # Every word is read by some sample.
  predicted = model(x_t, T, words, sentence, word_mask, KEPT)
  return jnp.mean((predicted - x_t[::-1]) ** 2)


def test_scanned_and_unrolled_layers_give_the_same_loss_and_gradients():
  losses, gradients = zip(
    *map(loss_and_gradients, unrolled_and_scanned(SMALL)), strict=True
  )
  np.testing.assert_allclose(*losses, rtol=1e-5)
  unrolled, scanned = map(nnx.to_pure_dict, gradients)
  largest = max(np.abs(x).max() for x in jax.tree.leaves(unrolled))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * largest),
    stack_layers(unrolled, 'layers'),
    scanned,
  )


def test_new_priors_have_the_same_weights_scanned_or_not_and_back():
  scanned = params_of(new_prior(SMALL))
  unrolled = params_of(new_prior(dataclasses.replace(SMALL, scan=False)))
  jax.tree.map(
    np.testing.assert_array_equal, unstack_layers(scanned, 'layers'), unrolled
  )
  jax.tree.map(np.testing.assert_array_equal, stack_layers(unrolled, 'layers'), scanned)


def test_the_gradient_reaches_every_parameter_of_every_layer():
  unrolled, _ = unrolled_and_scanned(SMALL)
  _, gradients = loss_and_gradients(unrolled)
  for path, leaf in nnx.to_flat_state(gradients):
    sizes = np.abs(leaf[...])
    if path[-2:] == ('k', 'bias'):
      # It adds the same to all logits of a query, which softmax does not see.
      assert sizes.max() < 1e-6, path
    elif path == ('positions',):
      assert sizes.max(axis=1).min() > 1e-5, path
    else:
      assert sizes.max() > 1e-5, path


@pytest.fixture(scope='module')
def predict():
  inputs = some_inputs(SMALL)
  model = random_prior(SMALL)

  def call(words=None, sentence=None, word_mask=None, kept=KEPT, t=T):
    x_t, *text = inputs
    given = (words, sentence, word_mask)
    text = [a if b is None else b for a, b in zip(text, given, strict=True)]
    return np.asarray(run(model, x_t, t, *text, kept))

  return call


def test_a_dropped_text_leaves_no_trace_and_a_kept_one_does(predict):
  kept = np.array([True, False, True, False])
  _, words, sentence, word_mask = some_inputs(SMALL, seed=9)
  first, other = predict(kept=kept), predict(words, sentence, word_mask, kept)
  np.testing.assert_array_equal(first[~kept], other[~kept])
  assert np.abs(first - other)[kept].max(axis=1).min() > 0.01
  np.testing.assert_allclose(first[kept], predict()[kept], atol=1e-5)
  nothing = np.full_like(words, np.nan), np.full_like(sentence, np.nan)
  missing = predict(*nothing, word_mask, np.zeros(BATCH, bool))
  np.testing.assert_allclose(missing[~kept], first[~kept], atol=1e-5)


def test_a_dropped_text_still_leaves_step_and_noised_embedding(predict):
  dropped = np.zeros(BATCH, bool)
  first = predict(kept=dropped)
  assert np.abs(first - predict(kept=dropped, t=T[::-1])).max(axis=1).min() > 1e-3
  # All samples have the same text then; what differs is x_t.
  same_step = predict(kept=dropped, t=np.full(BATCH, 7))
  assert np.ptp(same_step, axis=0).max() > 0.01


def test_words_behind_the_mask_do_not_matter_and_the_others_do(predict):
  _, words, _, word_mask = some_inputs(SMALL)
  garbled = np.where(word_mask[:, :, None], words, np.nan)
  np.testing.assert_allclose(predict(garbled), predict(), atol=1e-5)
  changed = np.where(word_mask[:, :, None], words[::-1], words)
  assert np.abs(predict(changed) - predict()).max(axis=1).min() > 1e-3


def test_no_mask_means_that_all_are_words(predict):
  x_t, words, sentence, word_mask = some_inputs(SMALL)
  without = run(random_prior(SMALL), x_t, T, words, sentence, None, KEPT)
  whole = predict(word_mask=np.ones_like(word_mask))
  np.testing.assert_allclose(without, whole, atol=1e-5)


def test_each_sample_is_predicted_by_itself(predict):
  order = np.array([2, 0, 3, 1])
  x_t, words, sentence, word_mask = (x[order] for x in some_inputs(SMALL))
  again = run(random_prior(SMALL), x_t, T[order], words, sentence, word_mask, KEPT)
  np.testing.assert_allclose(again, predict()[order], atol=1e-5)


def test_dropout_draws_for_each_layer_from_the_key_alone():
  config = dataclasses.replace(SMALL, dropout=0.3)
  models = unrolled_and_scanned(config)
  x_t, *text = some_inputs(config)

  def predictions(key):
    return [run(model, x_t, T, *text, KEPT, key) for model in models]

  plain, first, again, other = map(
    predictions, (None, jax.random.key(0), jax.random.key(0), jax.random.key(1))
  )
  assert_near(*first, 1e-5)
  assert_near(*plain, 1e-5)
  np.testing.assert_array_equal(first[0], again[0])
  assert np.abs(first[0] - other[0]).max() > 0.01
  assert np.abs(first[0] - plain[0]).max() > 0.01


@pytest.mark.parametrize('branch', ['attention', 'mlp'])
def test_dropout_zeroes_its_share_of_a_branch_and_scales_the_rest(branch):
  config = dataclasses.replace(SMALL, width=64, dropout=0.25)
  layer = with_random_weights(lambda: PriorLayer(config, rngs=nnx.Rngs(0)))
  if branch == 'attention':
    layer.mlp_out.kernel[...] = jnp.zeros((256, 64))
  else:
    # Shows a quarter of the dropped features as they are.
    layer.attention_out.kernel[...] = jnp.zeros((32, 64))
    layer.attention_out.bias[...] = jnp.zeros(64)
    layer.mlp_out.kernel[...] = jnp.eye(256, 64)
  layer.mlp_out.bias[...] = jnp.zeros(64)
  x = np.random.default_rng(0).normal(size=(40, 11, 64)).astype(np.float32)
  mask = np.ones((40, 1, 1, 11), bool)
  whole, dropped = (
    np.asarray(run(layer, x, mask, key)) - x for key in (None, jax.random.key(0))
  )
  clear = np.abs(whole) > 0.05
  ratio = dropped[clear] / whole[clear]
  kept = ratio > 0.5
  np.testing.assert_allclose(ratio[kept], 1 / 0.75, atol=1e-3)
  np.testing.assert_allclose(ratio[~kept], 0, atol=1e-3)
  assert abs(kept.mean() - 0.75) < 5 * (0.75 * 0.25 / kept.size) ** 0.5


def test_fewer_diffusion_steps_span_the_range_of_the_published_ones():
  short = dataclasses.replace(SMALL, num_steps=250)
  model = random_prior(SMALL)
  other = random_prior(short)
  x_t, *text = some_inputs(SMALL)
  t = np.array([0, 1, 100, 249])
  np.testing.assert_array_equal(
    run(other, x_t, t, *text, KEPT), run(model, x_t, 4 * t, *text, KEPT)
  )


def test_bfloat16_stays_close_to_float32_and_keeps_float32_parameters():
  half = random_prior(dataclasses.replace(SMALL, dtype='bfloat16'))
  for leaf in jax.tree.leaves(nnx.state(half, nnx.Param)):
    assert leaf.dtype == jnp.float32
  x_t, *text = some_inputs(SMALL)
  exact, rounded = (
    run(model, x_t, T, *text, KEPT) for model in (random_prior(SMALL), half)
  )
  assert rounded.dtype == jnp.float32
  assert 0 < np.abs(exact - rounded).max() / np.abs(exact).max() < 0.03


def test_first_predictions_of_a_new_prior_are_of_order_one():
  model = new_prior(SMALL)
  x_t, *text = some_inputs(SMALL)
  assert 0.3 < np.std(run(model, x_t, T, *text, KEPT)) < 3


def test_the_defaults_are_those_of_diffusers_with_one_billion_parameters():
  model = nnx.eval_shape(lambda: Prior(PriorConfig(), rngs=nnx.Rngs(0)))
  leaves = jax.tree.leaves(nnx.state(model, nnx.Param))
  count = sum(math.prod(leaf.shape) for leaf in leaves)
  with torch.device('meta'):
    theirs = PriorTransformer()
  wanted = dict(theirs.named_parameters())
  del wanted['clip_mean'], wanted['clip_std']
  assert count == sum(value.numel() for value in wanted.values())
  assert abs(count / 1e9 - 1) < 0.03


def test_normalising_gives_zero_mean_and_unit_variance_and_can_be_undone():
  rng = np.random.default_rng(0)
  embeddings = rng.normal(3, rng.uniform(0.1, 5, 12), (500, 12)).astype(np.float32)
  model = new_prior(SMALL, embedding_statistics([embeddings]))
  x_0 = model.normalise_embedding(embeddings)
  np.testing.assert_allclose(x_0.mean(axis=0), 0, atol=1e-4)
  np.testing.assert_allclose(x_0.std(axis=0), 1, atol=1e-4)
  np.testing.assert_allclose(model.denormalise(x_0), embeddings, atol=1e-4)


def test_statistics_are_stored_with_the_model_but_not_trained():
  statistics = EmbeddingStatistics(np.full(12, 0.5), np.full(12, 2.0))
  model = new_prior(SMALL, statistics)
  graph, state = nnx.split(model)
  assert not {'mean', 'std'} & set(params_of(model))
  again = nnx.merge(graph, state)
  np.testing.assert_array_equal(again.denormalise(jnp.ones(12)), 2.5)

  def loss(state):
    return jnp.sum(nnx.merge(graph, state).denormalise(jnp.ones(12)) ** 2)

  grads = nnx.to_pure_dict(jax.grad(loss)(state))
  assert not grads['mean'].any() and not grads['std'].any()


@pytest.mark.parametrize('splits', [[300], [1, 2, 297], [100, 0, 150, 50]])
def test_statistics_in_one_pass_are_those_of_all_embeddings_together(splits):
  rng = np.random.default_rng(0)
  # Summed squares would lose the deviation to the mean's rounding.
  embeddings = rng.normal([0, 1e5, -3e7], [1, 1e-2, 1], (300, 3))
  batches = np.split(embeddings, np.cumsum(splits)[:-1])
  mean, std = embedding_statistics(iter(batches))
  assert mean.dtype == std.dtype == np.float32
  np.testing.assert_allclose(mean, embeddings.mean(axis=0), rtol=1e-6, atol=1e-7)
  np.testing.assert_allclose(std, embeddings.std(axis=0), rtol=1e-5)


def test_a_coordinate_that_never_varies_is_normalised_to_zero():
  # Sums of 0.1 round.
  embeddings = np.array([[0.1, 0, 1], [0.1, 0, 2]] * 50)
  mean, std = embedding_statistics(np.split(embeddings, [7, 33]))
  np.testing.assert_array_equal(std, [1, 1, 0.5])
  np.testing.assert_allclose(mean, embeddings[:2].mean(axis=0), rtol=1e-6)


@pytest.mark.parametrize(
  ('batches', 'message'),
  [
    ([], 'no embeddings'),
    ([np.zeros((0, 3))], 'no embeddings'),
    ([np.ones(3)], r'shape \(3,\); expected \(B, D\)'),
    ([np.ones((2, 3)), np.ones((2, 4))], r'shape \(2, 4\); expected \(B, 3\)'),
    ([np.array([[1, np.nan], [1, 2]])], '1 of 2 embeddings of a batch are not finite'),
  ],
  ids=['none', 'empty', 'vector', 'widths', 'nan'],
)
def test_what_has_no_statistics_is_refused(batches, message):
  with pytest.raises(ValueError, match=message):
    embedding_statistics(batches)


@pytest.mark.parametrize(
  ('index', 'value', 'message'),
  [
    (
      0,
      np.zeros((BATCH, 11), np.float32),
      r'x_t has shape \(4, 11\); expected \(4, 12\)',
    ),
    (1, T[:2], r't has shape \(2,\); expected \(4,\)'),
    (2, np.zeros((BATCH, 5, 12), np.float32), r'words .* expected \(4, 7, 12\)'),
    (3, np.zeros((1, 12), np.float32), r'sentence .* expected \(4, 12\)'),
    (4, np.ones((BATCH, 7 + EXTRA_TOKENS), bool), r'word_mask .* expected \(4, 7\)'),
    (5, np.ones((), bool), r'kept has shape \(\); expected \(4,\)'),
  ],
  ids=['x_t', 't', 'words', 'sentence', 'word_mask', 'kept'],
)
def test_inputs_of_another_shape_are_refused_by_name(index, value, message):
  x_t, *text = some_inputs(SMALL)
  inputs = [x_t, T, *text, KEPT]
  inputs[index] = value
  with pytest.raises(ValueError, match=message):
    random_prior(SMALL)(*inputs)


def test_statistics_of_another_width_are_refused():
  statistics = EmbeddingStatistics(np.zeros(5), np.ones(5))
  with pytest.raises(ValueError, match=r'mean .* shape \(5,\); expected \(12,\)'):
    Prior(SMALL, statistics, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
  ('field', 'value'),
  [
    ('layers', 0),
    ('heads', -1),
    ('num_tokens', 0),
    ('num_steps', 0),
    ('width', 33),
    ('dropout', 1.0),
    ('dtype', 'float16'),
  ],
)
def test_a_config_that_makes_no_prior_is_refused(field, value):
  with pytest.raises(ValueError, match=f'model.{field} (is )?{value}'):
    dataclasses.replace(SMALL, **{field: value})
