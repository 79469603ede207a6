from __future__ import annotations

import dataclasses
import math

import diffusers
import jax
import numpy as np
import pytest
import torch
from diffusers.models.embeddings import get_timestep_embedding
from flax import nnx
from jax import numpy as jnp
from torch.nn import functional

from composer_jax.conditions import ALL
from composer_jax.conditions.palette import expected_colours
from composer_jax.diffusion.process import coefficients
from composer_jax.models.unet import UNet, UNetConfig, roll, unroll
from tests.composer_jax.models.public_weights import (
  assert_filled,
  assert_near,
  copy_attention,
  copy_conv,
  copy_dense,
  copy_norm,
  copy_resnet,
  put,
  randomised,
  to_numpy,
  to_torch,
  with_random_weights,
)

NAMES = tuple(c.name for c in ALL)
SIZE, BATCH = 8, 3
SHAPES = {c.name: c.spec(SIZE).shape for c in ALL}
SHAPES |= {'caption': (6, 24), 'semantics': (24,)}

PLAIN = UNetConfig(
  image_size=SIZE,
  channels=32,
  multipliers=(1, 2),
  blocks=1,
  attention=(False, True),
  head_width=16,
  dropout=0.0,
  context_width=20,
  local_hidden=8,
  local_width=4,
  dtype='float32',
)
CAPTIONED = dataclasses.replace(
  PLAIN, conditions=('caption', 'sketch'), learned_variance=True
)
EVERYTHING = dataclasses.replace(
  PLAIN,
  multipliers=(1, 2, 3),
  attention=(True, False, True),
  head_width=32,
  conditions=NAMES,
)
SINGLE = dataclasses.replace(
  PLAIN,
  channels=8,
  multipliers=(1,),
  attention=(True,),
  head_width=8,
  conditions=('caption', 'palette', 'sketch'),
)
MAPPED = dataclasses.replace(SINGLE, palette_map=True)
UPSAMPLER = dataclasses.replace(
  PLAIN,
  image_size=16,
  low_res_size=4,
  fold=2,
  blocks=2,
  attention=(False, False),
  learned_variance=True,
)


def abstract(config):
  return nnx.eval_shape(lambda: UNet(config, SHAPES, rngs=nnx.Rngs(0)))


def random_unet(config):
  return with_random_weights(lambda: UNet(config, SHAPES, rngs=nnx.Rngs(0)))


@nnx.jit
def run(
  model, x_t, t, stored, kept, low_res=None, level=None, dropout_key=None, c=None
):
  return model(
    x_t, t, stored, kept, c=c, low_res=low_res, level=level, dropout_key=dropout_key
  )


def random_values(seed=0):
  rng = np.random.default_rng(seed)
  stored = {}
  for condition in ALL:
    spec, shape = condition.spec(SIZE), (BATCH, *SHAPES[condition.name])
    if np.issubdtype(spec.dtype, np.integer):
      stored[condition.name] = rng.integers(0, spec.high + 1, shape).astype(spec.dtype)
    else:
      values = np.abs(rng.normal(size=shape)) / 5
      stored[condition.name] = values.astype(spec.dtype)
  return stored


RNG = np.random.default_rng(0)
STORED = random_values()
X_T = RNG.normal(size=(BATCH, SIZE, SIZE, 3)).astype(np.float32)
T = np.array([0, 370, 999])


def kept(*names, of=NAMES):
  return {name: jnp.full(BATCH, name in names) for name in of}


def diffusers_unet(config: UNetConfig, inputs: int, outputs: int, **options):
  """The public U-Net of the same shape."""

  def kinds(direction):
    return [
      f'SimpleCrossAttn{direction}Block2D' if attend else f'Resnet{resample}Block2D'
      for attend in config.attention
      for resample in ['Downsample' if direction == 'Down' else 'Upsample']
    ]

  return diffusers.UNet2DConditionModel(
    sample_size=config.grid,
    in_channels=inputs,
    out_channels=outputs,
    down_block_types=kinds('Down'),
    mid_block_type='UNetMidBlock2DSimpleCrossAttn',
    up_block_types=kinds('Up')[::-1],
    block_out_channels=[config.channels * m for m in config.multipliers],
    layers_per_block=config.blocks,
    attention_head_dim=config.head_width,
    cross_attention_dim=config.context_width,
    resnet_time_scale_shift='scale_shift',
    **options,
  )


def copy_unet(ours: UNet, theirs: diffusers.UNet2DConditionModel) -> None:
  """Everything but the condition encoder and the augmentation level."""
  copy_dense(ours.time_in, theirs.time_embedding.linear_1)
  copy_dense(ours.time_out, theirs.time_embedding.linear_2)
  copy_input(ours, theirs.conv_in)
  for stages, blocks in ((ours.down, theirs.down_blocks), (ours.up, theirs.up_blocks)):
    stages = iter(stages)
    for block in blocks:
      attentions = getattr(block, 'attentions', [None] * len(block.resnets))
      for resnet, attention in zip(block.resnets, attentions, strict=True):
        copy_stage(next(stages), resnet, attention)
      resample = getattr(block, 'downsamplers', None) or getattr(
        block, 'upsamplers', None
      )
      for resnet in resample or []:
        copy_stage(next(stages), resnet, None)
    assert next(stages, None) is None
  before, after = theirs.mid_block.resnets
  (attention,) = theirs.mid_block.attentions
  if ours.middle[0].attention is None:
    # Theirs always attends in the middle; a zero output leaves what came in.
    torch.nn.init.zeros_(attention.to_out[0].weight)
    torch.nn.init.zeros_(attention.to_out[0].bias)
    attention = None
  copy_stage(ours.middle[0], before, attention)
  copy_stage(ours.middle[1], after, None)
  copy_norm(ours.norm_out, theirs.conv_norm_out)
  copy_conv(ours.conv_out, theirs.conv_out)


def copy_input(ours: UNet, theirs: torch.nn.Conv2d) -> None:
  """One convolution of noise and maps side by side, or one of each."""
  if ours.maps_in is None:
    copy_conv(ours.conv_in, theirs)
    return
  kernel = theirs.weight.permute(2, 3, 1, 0)
  own = ours.conv_in.kernel.shape[2]
  put(ours.conv_in, 'kernel', kernel[:, :, :own])
  put(ours.conv_in, 'bias', theirs.bias)
  put(ours.maps_in, 'kernel', kernel[:, :, own:])
  put(ours.maps_in, 'bias', torch.zeros_like(theirs.bias))


def copy_stage(ours, resnet, attention) -> None:
  assert ours.block.resample == ('up' if resnet.up else 'down' if resnet.down else None)
  copy_resnet(ours.block, resnet)
  assert (ours.attention is None) == (attention is None)
  if attention is not None:
    copy_attention(ours.attention, attention)


def silu_stack(layers, x):
  """The convolutions of a local condition, in PyTorch."""
  for index, layer in enumerate(layers):
    kernel = torch.tensor(layer.kernel[...]).permute(3, 2, 0, 1)
    x = functional.silu(x) if index else x
    x = functional.conv2d(x, kernel, torch.tensor(layer.bias[...]), padding=1)
  return x


@pytest.fixture(scope='module')
def captioned():
  """Our U-Net with caption and sketch, and the public one with the same weights."""
  config = CAPTIONED
  theirs = randomised(
    diffusers_unet(
      config,
      3 + config.local_width,
      6,
      encoder_hid_dim=24,
      encoder_hid_dim_type='text_proj',
      class_embed_type='projection',
      projection_class_embeddings_input_dim=24,
    )
  )
  ours = random_unet(config)
  copy_unet(ours, theirs)
  branch = ours.conditions.branches['caption']
  copy_dense(branch.vector_in, theirs.class_embedding.linear_1)
  copy_dense(branch.vector_out, theirs.class_embedding.linear_2)
  copy_dense(branch.to_context, theirs.encoder_hid_proj)
  return ours, theirs


def test_caption_and_sketch_agree_with_diffusers_with_learned_variance(captioned):
  ours, theirs = captioned
  output = run(ours, X_T, T, STORED, kept(*CAPTIONED.conditions))
  caption = torch.tensor(STORED['caption'], dtype=torch.float32)
  sketch = to_torch(STORED['sketch'].astype(np.float32) / 127.5 - 1)
  local = silu_stack(ours.conditions.branches['sketch'].layers, sketch)
  wanted = theirs(
    torch.cat([to_torch(X_T), local], dim=1),
    torch.from_numpy(T),
    encoder_hidden_states=caption[:, :-1],
    # The root mean square of a sentence becomes 1.
    class_labels=functional.normalize(caption[:, -1]) * 24**0.5,
  ).sample
  assert output.shape == (BATCH, SIZE, SIZE, 6)
  assert_near(output, to_numpy(wanted), 1e-4)


@pytest.fixture(scope='module')
def everything():
  """Our U-Net with all conditions, and the public one with the same weights."""
  config = EVERYTHING
  theirs = randomised(
    diffusers_unet(config, 3 + config.local_width, 3, class_embed_type='identity')
  )
  ours = random_unet(config)
  copy_unet(ours, theirs)
  return ours, theirs


@pytest.mark.parametrize('names', [NAMES, ('palette', 'depth'), ()])
def test_all_conditions_enter_as_class_embedding_context_and_channels(
  everything, names
):
  # What `ConditionEncoder` gives is tested in its own file.
  ours, theirs = everything
  output = run(ours, X_T, T, STORED, kept(*names))
  encoded = nnx.jit(lambda m, s, k: m(s, k))(ours.conditions, STORED, kept(*names))
  wanted = theirs(
    torch.cat([to_torch(X_T), to_torch(encoded.feature_map)], dim=1),
    torch.from_numpy(T),
    encoder_hidden_states=to_torch(encoded.context),
    class_labels=to_torch(encoded.embedding),
  ).sample
  assert_near(output, to_numpy(wanted), 1e-4)


def test_upsampler_with_folded_pixels_agrees_with_diffusers():
  config = UPSAMPLER
  theirs = randomised(
    diffusers_unet(
      config,
      2 * 12,
      2 * 12,
      class_embed_type='simple_projection',
      projection_class_embeddings_input_dim=config.channels,
    )
  )
  ours = abstract(config)
  copy_unet(ours, theirs)
  copy_dense(ours.level_in, theirs.class_embedding)
  assert_filled(ours)
  x_t, low_res = RNG.normal(size=(2, BATCH, 16, 16, 3)).astype(np.float32)
  level = np.array([0, 100, 999])
  output = run(ours, x_t, T, {}, {}, low_res, level)

  def folded(x):
    """Each 2 x 2 pixels become 12 channels, of one pixel after the other."""
    corners = [to_torch(x)[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)]
    return torch.cat(corners, dim=1)

  wanted = theirs(
    torch.cat([folded(x_t), folded(low_res)], dim=1),
    torch.from_numpy(T),
    encoder_hidden_states=torch.zeros(BATCH, 1, config.context_width),
    class_labels=get_timestep_embedding(
      torch.from_numpy(level), config.channels, True, 0
    ),
  ).sample
  assert output.shape == (BATCH, 16, 16, 6)
  # The mean's channels come before the variance's, also before unfolding.
  for half, theirs_half in zip(
    np.split(output, 2, axis=-1), wanted.chunk(2, dim=1), strict=True
  ):
    assert_near(to_numpy(folded(half)), to_numpy(theirs_half), 1e-4)


@pytest.mark.parametrize(
  'config',
  [
    UNetConfig(),
    UNetConfig(channels=96, multipliers=(1, 2, 2), attention=(False, True, True)),
  ],
  ids=['published base', 'small'],
)
def test_number_of_parameters_is_that_of_the_public_network(config):
  config = dataclasses.replace(config, conditions=('caption',), learned_variance=True)
  ours = nnx.eval_shape(lambda: UNet(config, {'caption': (78, 768)}, rngs=nnx.Rngs(0)))
  count = sum(math.prod(x.shape) for x in jax.tree.leaves(nnx.state(ours, nnx.Param)))
  with torch.device('meta'):
    theirs = diffusers_unet(
      config,
      3,
      6,
      encoder_hid_dim=768,
      class_embed_type='projection',
      projection_class_embeddings_input_dim=768,
    )
  assert count == sum(value.numel() for value in theirs.parameters())


def test_the_paper_s_base_model_has_about_two_billion_parameters():
  config = UNetConfig(conditions=NAMES, learned_variance=True)
  shapes = {c.name: c.spec(64).shape for c in ALL}
  ours = nnx.eval_shape(lambda: UNet(config, shapes, rngs=nnx.Rngs(0)))
  count = sum(math.prod(x.shape) for x in jax.tree.leaves(nnx.state(ours, nnx.Param)))
  assert 1.8e9 < count < 2.6e9


@pytest.mark.parametrize('fold', [1, 2, 4])
@pytest.mark.parametrize('learned_variance', [False, True])
def test_output_has_the_size_of_the_input_and_twice_its_channels_with_variance(
  fold, learned_variance
):
  config = dataclasses.replace(
    PLAIN, image_size=16, fold=fold, learned_variance=learned_variance
  )
  output = nnx.eval_shape(
    lambda: UNet(config, {}, rngs=nnx.Rngs(0))(
      jnp.zeros((2, 16, 16, 3)), jnp.zeros(2, int), {}, {}
    )
  )
  assert output.shape == (2, 16, 16, 6 if learned_variance else 3)
  assert output.dtype == jnp.float32


def test_a_new_model_predicts_zero(monkeypatch):
  # As random as the real weights, and much faster to draw.
  monkeypatch.setattr(
    nnx.initializers,
    'lecun_normal',
    lambda: lambda key, shape, dtype: jnp.asarray(RNG.normal(size=shape), dtype),
  )
  model = UNet(SINGLE, SHAPES, rngs=nnx.Rngs(0))
  names = kept(*SINGLE.conditions)
  assert (run(model, X_T, T, STORED, names) == 0).all()
  model.conv_out.kernel[...] += 1
  assert (run(model, X_T, T, STORED, names) != 0).any()


def test_an_upsampler_needs_its_low_resolution_image_and_level():
  x = jnp.zeros((BATCH, 16, 16, 3))
  for given in ({}, {'low_res': x}, {'level': jnp.zeros(BATCH, int)}):
    with pytest.raises(ValueError, match='needs (low_res|it)'):
      nnx.eval_shape(
        lambda given=given: UNet(UPSAMPLER, {}, rngs=nnx.Rngs(0))(
          x, jnp.asarray(T), {}, {}, **given
        )
      )


def test_dropping_everything_is_the_same_for_all_values_and_has_none_of_them(
  everything,
):
  ours, _ = everything
  dropped = run(ours, X_T, T, STORED, kept())
  np.testing.assert_array_equal(dropped, run(ours, X_T, T, random_values(1), kept()))
  assert np.abs(dropped - run(ours, X_T, T, STORED, kept(*NAMES))).max() > 0.01


@pytest.fixture(scope='module')
def single():
  return random_unet(SINGLE)


@pytest.mark.parametrize(
  'there', [(), ('caption', 'palette'), ('sketch',)], ids=['none', 'global', 'local']
)
def test_conditions_that_are_not_there_count_as_dropped(single, there):
  dropped = run(single, X_T, T, STORED, kept(*there))
  stored = {name: STORED[name] for name in there}
  absent = run(single, X_T, T, stored, kept(*there, of=there))
  assert_near(absent, dropped)


@pytest.mark.parametrize('name', NAMES)
def test_each_condition_changes_the_output_of_the_samples_that_keep_it(
  everything, name
):
  ours, _ = everything
  without = run(ours, X_T, T, STORED, kept())
  first_only = kept() | {name: jnp.arange(BATCH) == 0}
  output = run(ours, X_T, T, STORED, first_only)
  assert np.abs(output[0] - without[0]).max() > 1e-3 * np.abs(without).max()
  assert_near(output[1:], without[1:], 1e-5)


@pytest.fixture(scope='module')
def mapped():
  return random_unet(MAPPED)


def test_a_palette_map_comes_in_beside_the_image():
  seeing, plain = random_unet(MAPPED), random_unet(SINGLE)
  # With equal convolutions their sum is that of the sum of image and map.
  seeing.colours_in.kernel[...] = seeing.conv_in.kernel[...]
  seeing.colours_in.bias[...] = jnp.zeros_like(seeing.colours_in.bias[...])
  weights = nnx.to_pure_dict(nnx.state(seeing))
  del weights['colours_in']
  nnx.update(plain, weights)
  c = coefficients(jnp.array([0.1, 0.5, 0.9]), jnp.arange(BATCH), X_T.ndim)
  colours = expected_colours(X_T, c, STORED['palette'], jnp.ones(BATCH))
  names = kept('palette', 'sketch')
  wanted = run(plain, X_T + colours, T, STORED, names)
  assert_near(run(seeing, X_T, T, STORED, names, c=c), wanted)
  assert np.abs(wanted - run(plain, X_T, T, STORED, names)).max() > 1e-3


def test_a_palette_map_shows_nothing_of_a_palette_that_is_dropped(mapped):
  first, second = (
    coefficients(jnp.array([a] * BATCH), jnp.arange(BATCH), 4) for a in (0.1, 0.9)
  )
  dropped = run(mapped, X_T, T, STORED, kept('sketch'), c=first)
  np.testing.assert_array_equal(
    dropped, run(mapped, X_T, T, STORED, kept('sketch'), c=second)
  )
  alone = {'sketch': STORED['sketch']}
  absent = run(mapped, X_T, T, alone, kept('sketch', of=('sketch',)), c=first)
  assert_near(absent, dropped)
  both = [run(mapped, X_T, T, STORED, kept('palette'), c=c) for c in (first, second)]
  assert np.abs(both[0] - both[1]).max() > 1e-3


def test_a_palette_map_needs_the_coefficients_and_a_model_that_knows_the_palette(
  mapped,
):
  with pytest.raises(ValueError, match='palette map needs c'):
    mapped(X_T, T, STORED, kept('palette'))
  ignorant = dataclasses.replace(MAPPED, conditions=('sketch',))
  assert abstract(ignorant).colours_in is None


def test_steps_and_images_change_the_output(everything):
  ours, _ = everything
  output = run(ours, X_T, T, STORED, kept())
  later = run(ours, X_T, T + np.array([1, 0, 0]), STORED, kept())
  assert np.abs(later[0] - output[0]).max() > 1e-3
  assert_near(later[1:], output[1:])
  other = run(ours, X_T * np.array([-1, 1, 1])[:, None, None, None], T, STORED, kept())
  assert np.abs(other[0] - output[0]).max() > 0.1
  assert_near(other[1:], output[1:])


def test_bfloat16_stays_near_float32_and_gives_float32_with_float32_weights(captioned):
  exact, _ = captioned
  half = abstract(dataclasses.replace(CAPTIONED, dtype='bfloat16'))
  nnx.update(half, nnx.state(exact, nnx.Param))
  names = kept(*CAPTIONED.conditions)
  a, b = (np.asarray(run(model, X_T, T, STORED, names)) for model in (exact, half))
  assert b.dtype == np.float32
  error = np.sqrt(np.mean((a - b) ** 2) / np.mean(a**2))
  assert 1e-4 < error < 0.05


@pytest.fixture(scope='module')
def with_dropout():
  return random_unet(dataclasses.replace(SINGLE, conditions=(), dropout=0.2))


def test_dropout_needs_a_key_which_decides_it(with_dropout):
  key = jax.random.key(0)
  first, again, other = (
    np.asarray(run(with_dropout, X_T, T, {}, {}, dropout_key=k))
    for k in (key, key, jax.random.key(1))
  )
  np.testing.assert_array_equal(first, again)
  assert np.abs(first - other).max() > 0.01


def test_without_a_key_the_rate_of_dropout_does_not_matter(with_dropout):
  without = abstract(dataclasses.replace(with_dropout.config, dropout=0.0))
  nnx.update(without, nnx.state(with_dropout, nnx.Param))
  np.testing.assert_array_equal(
    run(with_dropout, X_T, T, {}, {}), run(without, X_T, T, {}, {})
  )


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'attention': (True,)}, 'attention has 1 entries and model.multipliers 2'),
    ({'image_size': 9}, 'image_size is 9; expected a multiple of 2'),
    ({'image_size': 36, 'fold': 8}, 'image_size is 36; expected a multiple of 16'),
    ({'palette_map': True, 'low_res_size': 4}, 'palette_map is True .* upsampler'),
  ],
)
def test_config_refuses_what_makes_no_model(changes, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(PLAIN, **changes)


def test_a_head_width_that_does_not_divide_the_channels_is_refused():
  with pytest.raises(ValueError, match='head_width is 24.*64 channels'):
    abstract(dataclasses.replace(PLAIN, head_width=24))


def test_maps_that_do_not_fit_the_grid_are_refused():
  config = dataclasses.replace(PLAIN, image_size=12, conditions=('mask',))
  with pytest.raises(ValueError, match='mask maps are 8 pixels.*multiple of the 12'):
    abstract(config)


DEEP = dataclasses.replace(
  PLAIN,
  # Narrower again in the middle, where sums of widths coincide.
  multipliers=(2, 1, 2),
  blocks=2,
  attention=(False, False, True),
  conditions=('caption', 'sketch'),
  dropout=0.3,
)


def call(graph, weights, dropout_key=None):
  rng = np.random.default_rng(0)
  stored = {
    'caption': rng.normal(size=(BATCH, *SHAPES['caption'])).astype(np.float32),
    'sketch': rng.integers(0, 256, (BATCH, *SHAPES['sketch'])).astype(np.uint8),
  }
  kept = {name: np.array([True, False, True]) for name in stored}
  x_t = rng.normal(size=(BATCH, SIZE, SIZE, 3)).astype(np.float32)
  model = nnx.merge(graph, weights)
  return model(x_t, np.array([1, 500, 999]), stored, kept, dropout_key=dropout_key)


def build(config):
  return nnx.split(with_random_weights(lambda: UNet(config, SHAPES, rngs=nnx.Rngs(0))))


def test_scanned_blocks_give_the_same_numbers_and_gradients():
  graph, weights = build(DEEP)
  scanned = dataclasses.replace(DEEP, scan=True)
  scanned_graph, shapes = nnx.split(
    nnx.eval_shape(lambda: UNet(scanned, SHAPES, rngs=nnx.Rngs(0)))
  )
  key = jax.random.key(3)

  def of(graph):
    @jax.jit
    def loss(weights):
      output = call(graph, weights, key)
      return (output**2).mean(), output

    return jax.value_and_grad(loss, has_aux=True)

  (_, plain), plain_grads = of(graph)(weights)
  rolled = roll(nnx.to_pure_dict(weights), DEEP)
  nnx.replace_by_pure_dict(shapes, rolled)
  (_, made), grads = of(scanned_graph)(shapes)
  np.testing.assert_allclose(made, plain, atol=1e-4 * np.abs(plain).max())
  wanted = jax.tree.leaves(roll(nnx.to_pure_dict(plain_grads), DEEP))
  # Biases before a normalisation have no gradient but for rounding.
  rounding = 1e-6 * max(float(np.abs(leaf).max()) for leaf in wanted)
  for ours, theirs in zip(jax.tree.leaves(grads), wanted, strict=True):
    close = 1e-3 * float(np.abs(theirs).max()) + rounding
    np.testing.assert_allclose(ours, theirs, atol=close)


def test_rolling_and_unrolling_weights_are_inverses():
  _, weights = build(DEEP)
  plain = nnx.to_pure_dict(weights)
  rolled = roll(plain, DEEP)
  assert len(rolled['down']) < len(plain['down'])
  assert len(rolled['up']) < len(plain['up'])
  again = unroll(rolled, DEEP)
  assert jax.tree.structure(again) == jax.tree.structure(plain)
  for ours, theirs in zip(jax.tree.leaves(again), jax.tree.leaves(plain), strict=True):
    np.testing.assert_array_equal(ours, theirs)


def test_scanning_draws_the_same_initial_weights():
  plain, scanned = (
    nnx.to_pure_dict(nnx.state(UNet(config, SHAPES, rngs=nnx.Rngs(0))))
    for config in (DEEP, dataclasses.replace(DEEP, scan=True))
  )
  for ours, theirs in zip(
    jax.tree.leaves(scanned), jax.tree.leaves(roll(plain, DEEP)), strict=True
  ):
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
