from __future__ import annotations

import jax
import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnAddedKVProcessor
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.models.resnet import ResnetBlock2D
from flax import nnx
from jax import numpy as jnp
from torch.nn import functional

from composer_jax.models.layers import (
  AttentionBlock,
  Conv3x3,
  Dense,
  GroupNorm,
  ResBlock,
  downsample,
  fold,
  timestep_embedding,
  unfold,
  upsample,
)
from tests.composer_jax.models.public_weights import (
  assert_filled,
  assert_near,
  copy_attention,
  copy_conv,
  copy_dense,
  copy_norm,
  copy_resnet,
  randomised,
  to_numpy,
  to_torch,
  with_random_weights,
)

RNG = np.random.default_rng(0)

# Compiled whole, which is faster than one by one.
run = nnx.jit(lambda module, *inputs: module(*inputs))


def normal(*shape):
  return RNG.normal(size=shape).astype(np.float32)


def abstract(kind, *sizes, **options):
  return nnx.eval_shape(lambda: kind(*sizes, rngs=nnx.Rngs(0), **options))


@pytest.mark.parametrize('width', [2, 64, 320])
def test_timestep_embedding_equals_that_of_diffusers(width):
  t = np.array([0, 1, 17, 500, 999])
  theirs = get_timestep_embedding(
    torch.from_numpy(t), width, flip_sin_to_cos=True, downscale_freq_shift=0
  )
  ours = timestep_embedding(jnp.asarray(t), width)
  assert ours.dtype == jnp.float32
  # An angle of 999 has 6e-5 of rounding in float32.
  np.testing.assert_allclose(ours, theirs, atol=2e-4)


def test_timestep_embedding_of_step_zero_is_one_then_zero_and_steps_differ():
  zero, *others = np.asarray(timestep_embedding(jnp.arange(1000), 64))
  np.testing.assert_array_equal(zero, [1] * 32 + [0] * 32)
  assert min(np.abs(a - zero).max() for a in others) > 0.4


@pytest.mark.parametrize('factor', [1, 2, 3])
def test_fold_is_pixel_unshuffle_with_channels_last(factor):
  x = normal(2, 6, 12, 5)
  theirs = functional.pixel_unshuffle(to_torch(x), factor)
  # PyTorch lists the pixels of each channel; we list the channels of each pixel.
  theirs = theirs.unflatten(1, (5, factor, factor)).permute(0, 4, 5, 2, 3, 1)
  np.testing.assert_array_equal(fold(x, factor), theirs.flatten(3))


@pytest.mark.parametrize('factor', [1, 2, 4])
def test_unfold_undoes_fold_and_is_pixel_shuffle(factor):
  x = normal(2, 8, 4, 3)
  np.testing.assert_array_equal(unfold(fold(x, factor), factor), x)
  y = normal(2, 3, 5, 2 * factor**2)
  theirs = to_torch(y).unflatten(1, (factor, factor, 2)).permute(0, 3, 1, 2, 4, 5)
  theirs = functional.pixel_shuffle(theirs.flatten(1, 3), factor)
  np.testing.assert_array_equal(unfold(y, factor), to_numpy(theirs))


def test_resampling_equals_nearest_and_average_of_pytorch():
  x = normal(2, 4, 6, 3)
  theirs = functional.interpolate(to_torch(x), scale_factor=2, mode='nearest')
  np.testing.assert_array_equal(upsample(x), to_numpy(theirs))
  theirs = functional.avg_pool2d(to_torch(x), 2)
  np.testing.assert_allclose(downsample(x), to_numpy(theirs), atol=1e-6)


def test_dense_equals_linear_of_pytorch():
  theirs = randomised(torch.nn.Linear(7, 5))
  ours = abstract(Dense, 7, 5)
  copy_dense(ours, theirs)
  x = normal(2, 3, 7)
  assert_near(ours(x), theirs(torch.from_numpy(x)))


@pytest.mark.parametrize(('height', 'width'), [(6, 9), (1, 1)])
def test_conv3x3_equals_that_of_pytorch_with_zeros_around(height, width):
  theirs = randomised(torch.nn.Conv2d(5, 8, 3, padding=1))
  ours = abstract(Conv3x3, 5, 8)
  copy_conv(ours, theirs)
  x = normal(2, height, width, 5)
  assert_near(run(ours, x), to_numpy(theirs(to_torch(x))))


@pytest.mark.parametrize('kind', [Dense, Conv3x3])
def test_new_maps_keep_the_variance_and_zero_ones_start_at_zero(kind):
  x = jax.random.normal(jax.random.key(0), (2, 12, 12, 64))
  new = kind(64, 128, rngs=nnx.Rngs(0))
  # The corners of a convolution lack neighbours.
  inner = run(new, x)[:, 1:-1, 1:-1]
  assert 0.85 < inner.std() < 1.15
  assert (new.bias[...] == 0).all()
  assert (run(kind(64, 128, rngs=nnx.Rngs(0), zero=True), x) == 0).all()


@pytest.mark.parametrize('shape', [(3, 5, 4, 64), (3, 10, 64), (3, 6, 6, 96)])
def test_group_norm_equals_that_of_pytorch(shape):
  theirs = randomised(torch.nn.GroupNorm(32, shape[-1]))
  torch.nn.init.normal_(theirs.weight, 1, 0.3)
  ours = GroupNorm(shape[-1])
  copy_norm(ours, theirs)
  x = normal(*shape) * np.linspace(0.5, 2, shape[-1], dtype=np.float32) + 1
  wanted = theirs(torch.from_numpy(x).movedim(-1, 1)).movedim(1, -1)
  assert_near(run(ours, x), wanted)
  scale, shift = normal(2, shape[0], shape[-1])
  axes = tuple(range(1, len(shape) - 1))
  gain, bias = (np.expand_dims(a, axes) for a in (1 + scale, shift))
  assert_near(run(ours, x, scale, shift), wanted.numpy() * gain + bias)


@pytest.mark.parametrize(('channels', 'groups'), [(24, 8), (48, 16), (5, 1), (8, 8)])
def test_group_norm_of_narrow_levels_has_the_groups_that_divide_them(channels, groups):
  ours = GroupNorm(channels)
  x = normal(2, 3, 3, channels) + 1
  wanted = functional.group_norm(to_torch(x), groups)
  assert_near(ours(x), to_numpy(wanted))


def test_group_norm_bears_a_large_mean_and_constants():
  ours = GroupNorm(64)
  x = normal(2, 8, 8, 64) + 30
  # One pass over the pixels: the mean's square costs digits of the variance.
  assert_near(ours(x), to_numpy(functional.group_norm(to_torch(x), 32)), 2e-3)
  constant = np.full((1, 4, 4, 64), 7.3, np.float32)
  assert np.isfinite(ours(constant)).all()
  assert (ours(np.zeros((1, 4, 4, 64), np.float32)) == 0).all()


def test_group_norm_of_bfloat16_takes_its_statistics_in_float32():
  x = jnp.asarray(normal(2, 40, 40, 32) + 3, jnp.bfloat16)
  ours = run(GroupNorm(32), x)
  assert ours.dtype == jnp.bfloat16
  wanted = functional.group_norm(to_torch(x.astype(jnp.float32)), 32)
  # Only the result is rounded, to 8 bits.
  np.testing.assert_allclose(
    ours.astype(jnp.float32), to_numpy(wanted), rtol=2**-8, atol=2e-3
  )


@pytest.mark.parametrize('resample', [None, 'up', 'down'])
@pytest.mark.parametrize('outputs', [32, 64])
def test_res_block_equals_that_of_diffusers(resample, outputs):
  theirs = randomised(
    ResnetBlock2D(
      in_channels=32,
      out_channels=outputs,
      temb_channels=20,
      groups=32,
      eps=1e-5,
      time_embedding_norm='scale_shift',
      up=resample == 'up',
      down=resample == 'down',
    )
  )
  ours = abstract(ResBlock, 32, outputs, 20, resample=resample)
  copy_resnet(ours, theirs)
  assert_filled(ours)
  x, embedding = normal(2, 6, 4, 32), normal(2, 20)
  wanted = to_numpy(theirs(to_torch(x), torch.from_numpy(embedding)))
  assert_near(run(ours, x, embedding), wanted)


def test_a_new_res_block_of_equal_channels_changes_nothing():
  block = ResBlock(32, 32, 20, rngs=nnx.Rngs(0))
  x = normal(2, 4, 4, 32)
  np.testing.assert_array_equal(run(block, x, normal(2, 20)), x)


@pytest.fixture(scope='module')
def bare_dropout():
  """A block whose output shows the dropped features as they are."""
  block = with_random_weights(
    lambda: ResBlock(32, 32, 20, rngs=nnx.Rngs(0), dropout=0.25)
  )
  identity = np.zeros((3, 3, 32, 32), np.float32)
  identity[1, 1] = np.eye(32)
  block.conv_out.kernel[...] = jnp.asarray(identity)
  block.conv_out.bias[...] = jnp.zeros(32)
  x, embedding = normal(4, 16, 16, 32), normal(4, 20)

  def features(key=None):
    return np.asarray(run(block, x, embedding, key)) - x

  return features


def test_dropout_zeroes_its_share_and_scales_the_rest(bare_dropout):
  whole, dropped = bare_dropout(), bare_dropout(jax.random.key(0))
  # SiLU is rarely near 0, where the ratio would say nothing.
  clear = np.abs(whole) > 0.05
  assert clear.mean() > 0.5
  ratio = dropped[clear] / whole[clear]
  kept = ratio > 0.5
  np.testing.assert_allclose(ratio[kept], 1 / 0.75, atol=1e-3)
  np.testing.assert_allclose(ratio[~kept], 0, atol=1e-3)
  assert abs(kept.mean() - 0.75) < 5 * (0.75 * 0.25 / kept.size) ** 0.5


def test_the_key_decides_what_is_dropped(bare_dropout):
  first, again, other = (bare_dropout(jax.random.key(seed)) for seed in (0, 0, 1))
  np.testing.assert_array_equal(first, again)
  assert ((first == 0) != (other == 0)).mean() > 0.3


def diffusers_attention(channels, heads, context):
  return randomised(
    Attention(
      query_dim=channels,
      cross_attention_dim=channels,
      heads=heads,
      dim_head=channels // heads,
      added_kv_proj_dim=context,
      norm_num_groups=32,
      bias=True,
      processor=AttnAddedKVProcessor(),
    )
  )


@pytest.mark.parametrize(('channels', 'heads'), [(32, 1), (64, 4)])
def test_attention_over_image_and_context_equals_that_of_diffusers(channels, heads):
  theirs = diffusers_attention(channels, heads, 24)
  ours = abstract(AttentionBlock, channels, channels // heads, 24)
  copy_attention(ours, theirs)
  assert_filled(ours)
  x, context = normal(2, 3, 5, channels), normal(2, 7, 24)
  wanted = theirs(to_torch(x), encoder_hidden_states=torch.from_numpy(context))
  assert_near(run(ours, x, context), to_numpy(wanted))


@pytest.mark.parametrize('context_width', [None, 24])
def test_attention_without_context_is_self_attention_of_diffusers(context_width):
  theirs = randomised(
    Attention(
      query_dim=64,
      heads=4,
      dim_head=16,
      norm_num_groups=32,
      bias=True,
      residual_connection=True,
    )
  )
  ours = with_random_weights(
    lambda: AttentionBlock(64, 16, context_width, rngs=nnx.Rngs(0))
  )
  unused, ours.context_kv = ours.context_kv, None
  copy_attention(ours, theirs)
  ours.context_kv = unused
  x = normal(2, 3, 5, 64)
  assert_near(run(ours, x, None), to_numpy(theirs(to_torch(x))))


def test_one_softmax_runs_over_context_and_image():
  # With all keys zero every place has the same weight, so that the result is the mean
  # of all values, of context and image together.
  block = with_random_weights(lambda: AttentionBlock(32, 32, 8, rngs=nnx.Rngs(0)))
  block.qkv.kernel[...] = block.qkv.kernel[...].at[:, 32:64].set(0)
  block.qkv.bias[...] = block.qkv.bias[...].at[32:64].set(0)
  block.context_kv.kernel[...] = block.context_kv.kernel[...].at[:, :32].set(0)
  block.context_kv.bias[...] = block.context_kv.bias[...].at[:32].set(0)
  x, context = normal(1, 2, 3, 32), normal(1, 4, 8)
  values = block.qkv(block.norm(x))[..., 64:].reshape(6, 32)
  mean = np.concatenate([values, block.context_kv(context)[0, :, 32:]]).mean(axis=0)
  wanted = x + block.out(jnp.asarray(mean))
  assert_near(run(block, x, context), wanted, 1e-4)


def test_the_order_of_the_context_tokens_does_not_matter():
  block = with_random_weights(lambda: AttentionBlock(64, 16, 8, rngs=nnx.Rngs(0)))
  x, context = normal(2, 3, 3, 64), normal(2, 6, 8)
  straight, reverse = run(block, x, context), run(block, x, context[:, ::-1])
  assert_near(straight, reverse)
  assert np.abs(straight - run(block, x, context[::-1])).max() > 0.01


def test_attention_that_recomputes_its_weights_keeps_none_and_gives_the_same():
  blocks = [
    with_random_weights(
      lambda again=again: AttentionBlock(64, 16, 8, rngs=nnx.Rngs(0), recompute=again)
    )
    for again in (False, True)
  ]
  x, context, given = normal(3, 6, 6, 64), normal(3, 5, 8), normal(3, 6, 6, 64)
  (plain, theirs), (again, ours) = (jax.vjp(block, x, context) for block in blocks)
  assert_near(again, plain)
  for one, other in zip(ours(given), theirs(given), strict=True):
    assert_near(one, other)

  def most(vjp):
    return max(kept.size for kept in jax.tree.leaves(vjp))

  assert most(theirs) == 3 * 4 * 36 * (36 + 5)
  assert most(ours) < most(theirs)


def test_a_new_attention_block_changes_nothing():
  block = AttentionBlock(64, 32, 8, rngs=nnx.Rngs(0))
  x = normal(2, 3, 3, 64)
  np.testing.assert_array_equal(run(block, x, normal(2, 6, 8)), x)


def test_a_head_width_that_does_not_divide_the_channels_is_refused():
  with pytest.raises(ValueError, match='head_width is 24.*64 channels'):
    AttentionBlock(64, 24, None, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
  ('make', 'shapes'),
  [
    (lambda: Dense(32, 64, rngs=nnx.Rngs(0)), [(2, 32)]),
    (lambda: Conv3x3(32, 64, rngs=nnx.Rngs(0)), [(2, 4, 4, 32)]),
    (lambda: ResBlock(32, 64, 20, rngs=nnx.Rngs(0)), [(2, 4, 4, 32), (2, 20)]),
    (
      lambda: AttentionBlock(64, 16, 8, rngs=nnx.Rngs(0)),
      [(2, 4, 4, 64), (2, 5, 8)],
    ),
  ],
  ids=['dense', 'convolution', 'res_block', 'attention'],
)
def test_bfloat16_inputs_give_bfloat16_outputs_close_to_float32(make, shapes):
  module = with_random_weights(make)
  inputs = [normal(*shape) for shape in shapes]
  exact = np.asarray(run(module, *inputs))
  half = run(module, *(jnp.asarray(x, jnp.bfloat16) for x in inputs))
  assert half.dtype == jnp.bfloat16
  error = np.abs(half.astype(jnp.float32) - exact).max() / np.abs(exact).max()
  assert 1e-4 < error < 0.03
