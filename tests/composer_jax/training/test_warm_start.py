from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from composer_jax.conditions import ALL
from composer_jax.config import Config, DiffusionConfig
from composer_jax.diffusion.process import coefficients
from composer_jax.models.prior import PriorConfig
from composer_jax.models.unet import UNet, UNetConfig
from composer_jax.safetensors_files import SafetensorsFiles
from composer_jax.training.stages import Diffusion, PriorDiffusion
from composer_jax.training.warm_start import apply_start, start_from
from composer_jax.weights.karlo_decoder import decoder_config, decoder_sources
from composer_jax.weights.mapping import take
from tests.composer_jax.models.public_weights import with_random_weights
from tests.composer_jax.weights.diffusers_folders import SHAPES, write_decoder

SIZE, BATCH = 8, 3
NAMES = tuple(c.name for c in ALL)
ALL_SHAPES = {c.name: SHAPES.get(c.name, c.spec(SIZE).shape) for c in ALL}
RNG = np.random.default_rng(0)


def random_values():
  stored = {}
  for condition in ALL:
    spec, shape = condition.spec(SIZE), (BATCH, *ALL_SHAPES[condition.name])
    values = np.abs(RNG.normal(size=shape)) / 5
    if np.issubdtype(spec.dtype, np.integer):
      values = RNG.integers(0, spec.high + 1, shape)
    stored[condition.name] = jnp.asarray(values.astype(spec.dtype))
  return stored


STORED = random_values()
X_T = jnp.asarray(RNG.normal(size=(BATCH, SIZE, SIZE, 3)), jnp.float32)
T = jnp.array([0, 370, 999])
EVERYTHING = {name: jnp.ones(BATCH, bool) for name in NAMES}

SMALL = UNetConfig(
  image_size=SIZE,
  channels=16,
  multipliers=(1,),
  blocks=2,
  attention=(True,),
  head_width=16,
  dropout=0.0,
  conditions=('semantics',),
  context_width=20,
  context_tokens=13,
  local_hidden=8,
  local_width=4,
  dtype='float32',
)


def config_of(model, **diffusion):
  return Config('diffusion', model, diffusion=DiffusionConfig(**diffusion))


def unet(config):
  return UNet(config.unet, ALL_SHAPES, rngs=nnx.Rngs(1))


def random_unet(config):
  return with_random_weights(lambda: unet(config))


@nnx.jit
def run(model, stored, kept):
  return model(X_T, T, stored, kept)


@pytest.fixture(scope='module')
def decoder(tmp_path_factory):
  """A decoder as diffusers writes it, imported in float32, and its config."""
  folder = tmp_path_factory.mktemp('karlo')
  theirs, _ = write_decoder(
    folder,
    down_block_types=['SimpleCrossAttnDownBlock2D'],
    up_block_types=['SimpleCrossAttnUpBlock2D'],
    block_out_channels=[32],
  )
  model = dataclasses.replace(decoder_config(dict(theirs.config)), dtype='float32')
  config = config_of(model)
  made = nnx.eval_shape(lambda: unet(config))
  files = SafetensorsFiles(folder, sorted(folder.glob('*/*.safetensors')))
  nnx.update(made, take(files, decoder_sources(model), nnx.state(made)))
  return made, config


@pytest.fixture(scope='module')
def composer(decoder):
  """A base model that knows all conditions and starts from the decoder."""
  _, config = decoder
  return dataclasses.replace(
    config,
    model=dataclasses.replace(
      config.unet, conditions=NAMES, local_hidden=8, local_width=4
    ),
  )


def started(old, old_config, new_config):
  model = unet(new_config)
  apply_start(model, start_from(old_config, nnx.state(old), new_config))
  return model


def test_a_composer_starts_exactly_where_an_imported_decoder_stands(decoder, composer):
  old, config = decoder
  model = started(old, config, composer)
  known = {name: EVERYTHING[name] for name in config.unet.conditions}
  wanted = run(old, STORED, known)
  np.testing.assert_array_equal(run(model, STORED, EVERYTHING), wanted)
  np.testing.assert_array_equal(run(model, STORED, known), wanted)
  # So it would be of a decoder that says nothing.
  assert np.abs(wanted).max() > 0.1


def test_every_condition_has_a_gradient_from_the_first_step(decoder, composer):
  model = started(*decoder, composer)
  stage = Diffusion(composer, ALL_SHAPES)
  image = RNG.integers(0, 256, (BATCH, SIZE, SIZE, 3)).astype(np.uint8)
  # So many samples that none loses the same condition as all others.
  batch = {'image': jnp.asarray(image), **STORED}
  batch = {name: jnp.concatenate([values] * 8) for name, values in batch.items()}

  @nnx.jit
  def gradient(model):
    return nnx.grad(lambda m: stage.loss(m, batch, jax.random.key(0))[0])(model)

  branches = nnx.to_pure_dict(gradient(model))['conditions']['branches']
  for name in NAMES:
    largest = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(branches[name]))
    assert largest > 0, name


def test_stage_two_starts_exactly_where_stage_one_stands():
  one = config_of(SMALL)
  two = config_of(dataclasses.replace(SMALL, conditions=NAMES))
  old = random_unet(one)
  model = started(old, one, two)
  wanted = run(old, STORED, {'semantics': EVERYTHING['semantics']})
  made = run(model, STORED, EVERYTHING)
  assert unet(two).conditions.num_tokens == SMALL.context_tokens
  np.testing.assert_allclose(made, wanted, atol=1e-6 * np.abs(wanted).max())


def test_scanned_and_unrolled_models_start_from_each_other():
  one = config_of(SMALL)
  scanned = config_of(dataclasses.replace(SMALL, scan=True))
  old = random_unet(one)
  wanted = run(old, STORED, EVERYTHING)
  model = started(old, one, scanned)
  np.testing.assert_allclose(run(model, STORED, EVERYTHING), wanted, rtol=1e-5)
  back = started(model, scanned, one)
  np.testing.assert_array_equal(run(back, STORED, EVERYTHING), wanted)


def test_a_prior_starts_from_a_prior_with_unrolled_layers():
  small = PriorConfig(
    width=8, layers=2, heads=2, head_width=4, embed_width=6, num_tokens=3
  )
  diffusion = DiffusionConfig(prediction='x0')
  new = Config('prior', small, diffusion=diffusion)
  unrolled = dataclasses.replace(small, scan=False)
  old = dataclasses.replace(new, model=unrolled)
  source = PriorDiffusion(old).init(jax.random.key(1))
  made = PriorDiffusion(new).init(jax.random.key(2))
  apply_start(made, start_from(old, nnx.state(source), new))
  layers = nnx.to_pure_dict(nnx.state(source))['layers']
  kernels = [layers[i]['q']['kernel'] for i in range(2)]
  np.testing.assert_array_equal(made.layers.q.kernel[...], jnp.stack(kernels))


def test_an_upsampler_told_the_level_for_the_first_time_does_not_hear_it():
  silent = dataclasses.replace(
    SMALL, conditions=(), low_res_size=4, level_embedding=False
  )
  told = dataclasses.replace(silent, level_embedding=True)
  old = random_unet(config_of(silent))
  model = started(old, config_of(silent), config_of(told))
  low_res = X_T[::-1]
  wanted = old(X_T, T, {}, {}, low_res=low_res)
  made = model(X_T, T, {}, {}, low_res=low_res, level=jnp.array([0, 100, 500]))
  np.testing.assert_array_equal(made, wanted)


def test_a_palette_map_that_is_new_shows_nothing():
  blind = dataclasses.replace(SMALL, conditions=('palette',))
  old = random_unet(config_of(blind))
  seeing = dataclasses.replace(blind, palette_map=True)
  model = started(old, config_of(blind), config_of(seeing))
  c = coefficients(jnp.array([0.1, 0.5, 0.9]), jnp.arange(len(X_T)), X_T.ndim)
  stored = {'palette': np.full((len(X_T), 180), 1 / 180, np.float32)}
  kept = {'palette': jnp.ones(len(X_T), bool)}
  made = model(X_T, T, stored, kept, c=c)
  np.testing.assert_array_equal(made, old(X_T, T, stored, kept))


@pytest.mark.parametrize(
  ('model', 'diffusion', 'message'),
  [
    ({'channels': 32}, {}, 'model.channels 32 there, 16 here'),
    ({'head_width': 8}, {}, 'model.head_width 8 there, 16 here'),
    ({}, {'prediction': 'v'}, "diffusion.prediction 'v' there, 'eps' here"),
    ({'conditions': NAMES}, {}, 'conditions caption, .* there, not here'),
    ({'conditions': (), 'low_res_size': 4}, {}, 'one is an upsampler'),
  ],
)
def test_weights_that_mean_something_else_are_refused_by_field(
  model, diffusion, message
):
  old = config_of(dataclasses.replace(SMALL, **model), **diffusion)
  with pytest.raises(ValueError, match=message):
    start_from(old, nnx.State({}), config_of(SMALL))


def test_weights_of_other_shapes_are_refused_by_name():
  names = ('sketch', 'semantics')
  old = config_of(dataclasses.replace(SMALL, conditions=names, local_width=8))
  new = config_of(dataclasses.replace(SMALL, conditions=names))
  model = unet(new)
  with pytest.raises(ValueError, match=r'maps_in/kernel \(3, 3, 8, 16\) there, \(3,'):
    apply_start(model, start_from(old, nnx.state(unet(old)), new))


def test_a_model_of_another_stage_is_refused():
  prior = Config('prior', PriorConfig(), diffusion=DiffusionConfig(prediction='x0'))
  with pytest.raises(ValueError, match="stage 'prior' there, 'diffusion' here"):
    start_from(prior, nnx.State({}), config_of(SMALL))
