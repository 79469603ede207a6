from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from composer_jax.diffusion.schedule import make_schedule
from composer_jax.training.stages import Diffusion

KEY = jax.random.key(5)


def loud(model):
  """Gives the zero-initialised layers weights, so that the output says something."""
  graph, params = nnx.split(model)
  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(9), len(leaves))
  leaves = [
    jnp.where(leaf == 0, 0.1 * jax.random.normal(key, leaf.shape), leaf)
    for leaf, key in zip(leaves, keys, strict=True)
  ]
  return nnx.merge(graph, jax.tree.unflatten(tree, leaves))


@pytest.fixture
def setup(make_config, source_of):
  def build(**parts):
    config = make_config(**parts)
    stage, source = source_of(config)
    batch = jax.tree.map(jnp.asarray, next(source))
    return config, stage, loud(stage.init(jax.random.key(0))), batch

  return build


def area_average(images, size):
  x = np.asarray(images, np.float64) / 127.5 - 1
  factor = x.shape[1] // size
  rows = x.reshape(len(x), size, factor, size, factor, 3)
  return rows.mean((2, 4))


def many(batch):
  """The batch 200 times over: 1,600 samples."""
  return jax.tree.map(lambda x: jnp.tile(x, (200, *[1] * (x.ndim - 1))), batch)


class Recorder:
  """A network of known output that keeps what it was called with."""

  def __init__(self, answer):
    self.answer = answer

  def __call__(self, x_t, t, stored, kept, **more):
    self.called = {'x_t': x_t, 't': t, 'stored': stored, 'kept': kept, **more}
    return self.answer(x_t, t)


@pytest.mark.parametrize('prediction', ['eps', 'v', 'x0'])
def test_a_network_that_answers_right_has_no_loss(setup, prediction):
  _, stage, _, batch = setup(diffusion={'prediction': prediction})
  x_0 = area_average(batch['image'], 8)
  alphas = make_schedule('cosine', 1000).alphas_cumprod

  def answer(x_t, t):
    a = alphas[np.asarray(t)].reshape(-1, 1, 1, 1)
    x = np.asarray(x_t, np.float64)
    eps = (x - np.sqrt(a) * x_0) / np.sqrt(1 - a)
    v = np.sqrt(a) * eps - np.sqrt(1 - a) * x_0
    return jnp.asarray({'eps': eps, 'v': v, 'x0': x_0}[prediction], jnp.float32)

  loss, metrics = stage.loss(Recorder(answer), batch, KEY)
  assert float(loss) < 1e-6
  assert float(metrics['mse']) == pytest.approx(float(loss))


def test_the_loss_is_the_mean_squared_error_of_the_prediction(setup):
  _, stage, _, batch = setup(diffusion={'prediction': 'x0'})
  x_0 = area_average(batch['image'], 8)
  loss, _ = stage.loss(Recorder(lambda x_t, t: jnp.full_like(x_t, 0.3)), batch, KEY)
  assert float(loss) == pytest.approx(((0.3 - x_0) ** 2).mean(), rel=1e-5)


def test_min_snr_weighs_samples_by_their_noise(setup):
  _, stage, _, batch = setup(diffusion={'prediction': 'x0', 'weighting': 'min_snr'})
  x_0 = area_average(batch['image'], 8)
  network = Recorder(lambda x_t, t: jnp.zeros_like(x_t))
  loss, metrics = stage.loss(network, batch, KEY)
  a = make_schedule('cosine', 1000).alphas_cumprod[np.asarray(network.called['t'])]
  error = (x_0**2).mean((1, 2, 3))
  assert float(loss) == pytest.approx(
    (np.minimum(a / (1 - a), 5) * error).mean(), rel=1e-4
  )
  assert float(metrics['mse']) == pytest.approx(error.mean(), rel=1e-5)


def test_conditions_are_dropped_jointly_before_the_network_sees_them(setup):
  _, stage, _, batch = setup()
  network = Recorder(lambda x_t, t: jnp.zeros_like(x_t))
  stage.loss(network, many(batch), KEY)
  kept = network.called['kept']
  # 0.1 keep all + 0.8 (1 - rate): 0.5 for the palette, 0.34 for intensity.
  assert float(kept['palette'].mean()) == pytest.approx(0.5, abs=0.04)
  assert float(kept['intensity'].mean()) == pytest.approx(0.34, abs=0.04)


def test_noise_levels_cover_the_whole_schedule(setup):
  _, stage, _, batch = setup()
  network = Recorder(lambda x_t, t: jnp.zeros_like(x_t))
  stage.loss(network, many(batch), KEY)
  drawn = np.asarray(network.called['t'])
  assert drawn.min() >= 0
  assert drawn.max() < 1000
  assert np.histogram(drawn, 4, (0, 1000))[0].min() > len(drawn) / 4 * 0.7


def test_an_upsampler_sees_a_noisy_small_image_and_its_level(setup):
  _, stage, _, batch = setup(
    model={'image_size': 16, 'low_res_size': 8}, diffusion={'low_res_noise': 100}
  )
  network = Recorder(lambda x_t, t: jnp.zeros_like(x_t))
  stage.loss(network, batch, KEY)
  low, level = network.called['low_res'], np.asarray(network.called['level'])
  assert low.shape == (8, 16, 16, 3)
  assert level.max() <= 100
  assert len(set(level.tolist())) > 3
  clean = area_average(batch['image'], 8).repeat(2, 1).repeat(2, 2)
  error = ((np.asarray(low) - clean) ** 2).mean((1, 2, 3))
  order = np.argsort(level)
  assert error[order[-3:]].mean() > error[order[:3]].mean()


def test_without_noise_levels_the_small_image_comes_clean(setup):
  _, stage, _, batch = setup(model={'image_size': 16, 'low_res_size': 8})
  network = Recorder(lambda x_t, t: jnp.zeros_like(x_t))
  stage.loss(network, batch, KEY)
  wanted = jax.image.resize(area_average(batch['image'], 8), (8, 16, 16, 3), 'cubic')
  np.testing.assert_allclose(network.called['low_res'], wanted, atol=1e-5)


def test_a_learned_variance_adds_the_bound_and_trains_both_halves(setup):
  _, stage, model, batch = setup(model={'learned_variance': True})

  def loss(model):
    return stage.loss(model, batch, KEY)

  (value, metrics), grads = nnx.value_and_grad(loss, has_aux=True)(model)
  assert float(metrics['variational_bound']) > 0
  assert float(value) == pytest.approx(
    float(metrics['mse'] + 0.001 * 1000 * metrics['variational_bound']), rel=1e-5
  )
  last = np.asarray(grads.conv_out.bias[...])
  mean, variance = np.split(last, 2)
  assert np.abs(mean).min() > 0
  assert np.abs(variance).min() > 0


def test_the_gradient_agrees_with_finite_differences(setup):
  _, stage, model, batch = setup()
  graph, params = nnx.split(model)

  @jax.jit
  def loss(params):
    return stage.loss(nnx.merge(graph, params), batch, KEY)[0]

  grads = jax.grad(loss)(params)
  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(3), len(leaves))
  direction = jax.tree.unflatten(
    tree,
    [
      jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)
    ],
  )
  slope = sum(
    float((g * d).sum())
    for g, d in zip(jax.tree.leaves(grads), jax.tree.leaves(direction), strict=True)
  )
  step = 1e-3
  ahead = loss(jax.tree.map(lambda p, d: p + step * d, params, direction))
  behind = loss(jax.tree.map(lambda p, d: p - step * d, params, direction))
  assert slope == pytest.approx(float(ahead - behind) / (2 * step), rel=2e-2)


def test_every_condition_gets_gradient(setup):
  _, stage, model, batch = setup()
  grads = nnx.grad(lambda model: stage.loss(model, batch, KEY)[0])(model)
  for name in ('palette', 'sketch', 'intensity', 'mask'):
    branch = jax.tree.leaves(grads.conditions.branches[name])
    assert max(float(jnp.abs(g).max()) for g in branch) > 0, name


def test_a_condition_that_the_data_lack_counts_as_dropped(setup):
  config, _, _, batch = setup()
  shapes = {name: batch[name].shape[1:] for name in config.unet.conditions}
  stage = Diffusion(config, shapes)
  network = Recorder(lambda x_t, t: jnp.zeros_like(x_t))
  less = {name: value for name, value in batch.items() if name != 'sketch'}
  stage.loss(network, less, KEY)
  assert set(network.called['kept']) == {'palette', 'intensity', 'mask'}


def test_the_draws_of_a_sample_do_not_depend_on_its_conditions(setup):
  config, stage, _, batch = setup()
  network = Recorder(lambda x_t, t: jnp.zeros_like(x_t))
  stage.loss(network, batch, KEY)
  first = network.called
  fewer = dataclasses.replace(
    config, model=dataclasses.replace(config.unet, conditions=('palette',))
  )
  Diffusion(fewer, {'palette': (180,)}).loss(network, batch, KEY)
  np.testing.assert_array_equal(first['x_t'], network.called['x_t'])
  np.testing.assert_array_equal(first['t'], network.called['t'])
