from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from composer_jax.config import from_dict
from composer_jax.diffusion.schedule import make_schedule
from composer_jax.training.stages import Diffusion, PriorDiffusion

KEY = jax.random.key(5)


def random_model(stage):
  """A model whose weights are all random, so that its output says something."""
  graph, shapes = nnx.split(nnx.eval_shape(lambda: stage.init(jax.random.key(0))))
  rng = np.random.default_rng(0)
  weights = jax.tree.map(
    lambda leaf: jnp.asarray(0.1 * rng.normal(size=leaf.shape), leaf.dtype), shapes
  )
  return graph, weights


@pytest.fixture
def setup(make_config, source_of):
  def build(**parts):
    config = make_config(**parts)
    stage, source = source_of(config)
    return config, stage, jax.tree.map(jnp.asarray, next(source))

  return build


def area_average(images, size):
  x = np.asarray(images, np.float64) / 127.5 - 1
  factor = x.shape[1] // size
  rows = x.reshape(len(x), size, factor, size, factor, -1)
  return rows.mean((2, 4))


def many(batch):
  """The batch 200 times over: 1,600 samples."""
  return jax.tree.map(lambda x: jnp.tile(x, (200, *[1] * (x.ndim - 1))), batch)


def observe(stage, batch, answer=lambda x_t, t: jnp.zeros_like(x_t)):
  """The loss and metrics for a network of known output, and what it was called with."""
  called = {}

  def network(x_t, t, stored, kept, **more):
    called.update(x_t=x_t, t=t, stored=stored, kept=kept, **more)
    return answer(x_t, t)

  @jax.jit
  def run(batch):
    return *stage.loss(network, batch, KEY), dict(called)

  return run(batch)


@pytest.mark.parametrize('prediction', ['eps', 'v', 'x0'])
def test_a_network_that_answers_right_has_no_loss(setup, prediction):
  _, stage, batch = setup(diffusion={'prediction': prediction})
  x_0 = area_average(batch['image'], 8)
  alphas = make_schedule('cosine', 1000).alphas_cumprod

  def answer(x_t, t):
    a = jnp.asarray(alphas)[t].reshape(-1, 1, 1, 1)
    eps = (x_t - jnp.sqrt(a) * x_0) / jnp.sqrt(1 - a)
    v = jnp.sqrt(a) * eps - jnp.sqrt(1 - a) * x_0
    return {'eps': eps, 'v': v, 'x0': jnp.asarray(x_0, jnp.float32)}[prediction]

  loss, metrics, _ = observe(stage, batch, answer)
  assert float(loss) < 1e-5
  assert float(metrics['mse']) == pytest.approx(float(loss))


def test_the_loss_is_the_mean_squared_error_of_the_prediction(setup):
  _, stage, batch = setup(diffusion={'prediction': 'x0'})
  x_0 = area_average(batch['image'], 8)
  loss, _, _ = observe(stage, batch, lambda x_t, t: jnp.full_like(x_t, 0.3))
  assert float(loss) == pytest.approx(((0.3 - x_0) ** 2).mean(), rel=1e-5)


def test_min_snr_weighs_samples_by_their_noise(setup):
  _, stage, batch = setup(diffusion={'prediction': 'x0', 'weighting': 'min_snr'})
  x_0 = area_average(batch['image'], 8)
  loss, metrics, called = observe(stage, batch)
  a = make_schedule('cosine', 1000).alphas_cumprod[np.asarray(called['t'])]
  error = (x_0**2).mean((1, 2, 3))
  assert float(loss) == pytest.approx(
    (np.minimum(a / (1 - a), 5) * error).mean(), rel=1e-4
  )
  assert float(metrics['mse']) == pytest.approx(error.mean(), rel=1e-5)


def test_conditions_are_dropped_jointly_before_the_network_sees_them(setup):
  _, stage, batch = setup()
  _, _, called = observe(stage, many(batch))
  kept = called['kept']
  # 0.1 keep all + 0.8 (1 - rate): 0.5 for the palette, 0.34 for intensity.
  assert float(kept['palette'].mean()) == pytest.approx(0.5, abs=0.04)
  assert float(kept['intensity'].mean()) == pytest.approx(0.34, abs=0.04)


def test_noise_levels_cover_the_whole_schedule(setup):
  _, stage, batch = setup()
  _, _, called = observe(stage, many(batch))
  drawn = np.asarray(called['t'])
  assert drawn.min() >= 0
  assert drawn.max() < 1000
  assert np.histogram(drawn, 4, (0, 1000))[0].min() > len(drawn) / 4 * 0.7


def test_an_upsampler_sees_a_noisy_small_image_and_its_level(setup):
  _, stage, batch = setup(
    model={'image_size': 16, 'low_res_size': 8}, diffusion={'low_res_level': 100}
  )
  _, _, called = observe(stage, batch)
  low, level = called['low_res'], np.asarray(called['level'])
  assert low.shape == (8, 16, 16, 3)
  assert level.max() <= 100
  assert len(set(level.tolist())) > 3
  clean = area_average(batch['image'], 8).repeat(2, 1).repeat(2, 2)
  error = ((np.asarray(low) - clean) ** 2).mean((1, 2, 3))
  order = np.argsort(level)
  assert error[order[-3:]].mean() > error[order[:3]].mean()


@pytest.mark.parametrize('kind', ['blur', 'bsr'])
def test_the_low_resolution_image_is_degraded_as_the_config_says(setup, kind):
  _, stage, batch = setup(
    model={'image_size': 16, 'low_res_size': 8},
    diffusion={'low_res_degradation': kind, 'low_res_level': 999},
  )
  _, _, called = observe(stage, batch)
  clean = jax.image.resize(area_average(batch['image'], 8), (8, 16, 16, 3), 'cubic')
  error = np.abs(np.asarray(called['low_res']) - clean).mean((1, 2, 3))
  level = np.asarray(called['level'])
  assert 0 <= level.min() < level.max() < 1000
  assert (error[level > 300] > 1e-4).all()
  assert error.max() < 0.5


def test_without_noise_levels_the_small_image_comes_clean(setup):
  _, stage, batch = setup(model={'image_size': 16, 'low_res_size': 8})
  _, _, called = observe(stage, batch)
  wanted = jax.image.resize(area_average(batch['image'], 8), (8, 16, 16, 3), 'cubic')
  np.testing.assert_allclose(called['low_res'], wanted, atol=1e-5)


def test_an_upsampler_on_crops_sees_the_same_square_of_everything(setup):
  _, stage, batch = setup(
    model={'image_size': 16, 'low_res_size': 8, 'conditions': ('sketch', 'palette')},
    diffusion={'crop': 8},
  )
  whole = np.asarray(batch['sketch'])
  _, _, called = observe(stage, batch)
  cut = np.asarray(called['stored']['sketch'])
  n = whole.shape[1] // 16
  assert cut.shape == (8, 8 * n, 8 * n, 1)
  assert called['x_t'].shape == called['low_res'].shape == (8, 8, 8, 3)
  assert called['stored']['palette'].shape == batch['palette'].shape
  enlarged = jax.image.resize(area_average(batch['image'], 8), (8, 16, 16, 3), 'cubic')
  for i in range(8):
    places = [
      (y, x)
      for y, x in np.ndindex(9, 9)
      if np.allclose(called['low_res'][i], enlarged[i, y : y + 8, x : x + 8], atol=1e-5)
    ]
    assert any(
      (whole[i, n * y : n * (y + 8), n * x : n * (x + 8)] == cut[i]).all()
      for y, x in places
    )


@pytest.mark.parametrize('details', [False, True])
def test_a_network_without_an_answer_guesses_the_small_image(setup, details):
  _, stage, batch = setup(
    model={'image_size': 16, 'low_res_size': 8},
    diffusion={
      'prediction': 'v',
      'low_res_spread': 1e-3,
      'low_res_details': details,
    },
  )
  x_0 = area_average(batch['image'], 16)
  guess = jax.image.resize(area_average(batch['image'], 8), x_0.shape, 'cubic')
  loss, _, called = observe(stage, batch)
  if details:
    gray = area_average(batch['intensity'], 16)
    coarse = area_average(batch['intensity'], 8)
    finer = gray - jax.image.resize(coarse, gray.shape, 'cubic')
    kept = np.asarray(called['kept']['intensity'])
    assert 0 < kept.mean() < 1
    guess += kept[:, None, None, None] * finer
  # The v that leads to the guess is off by (x_0 - guess) / noise.
  a = make_schedule('cosine', 1000).alphas_cumprod[np.asarray(called['t'])]
  error = ((x_0 - guess) ** 2).mean((1, 2, 3)) / (1 - a)
  assert float(loss) == pytest.approx(float(error.mean()), rel=1e-2)


def test_a_network_without_an_answer_knows_the_pixels_of_the_mask(setup):
  given = {'prediction': 'v', 'given_spread': 1e-3}
  _, stage, batch = setup(diffusion=given)
  loss, _, called = observe(stage, batch)
  x_0 = area_average(batch['image'], 8)
  factor = len(batch['mask'][0]) // 8
  visible = np.asarray(batch['mask'], np.float64)[..., 3]
  visible = visible.reshape(8, 8, factor, 8, factor).min((2, 4)) == 255
  visible &= np.asarray(called['kept']['mask'])[:, None, None]
  assert 0 < visible.mean() < 1
  a = make_schedule('cosine', 1000).alphas_cumprod[np.asarray(called['t'])]
  signal, noise = (np.sqrt(x)[:, None, None, None] for x in (a, 1 - a))
  # Elsewhere v is all that there is to predict; here none of it.
  eps = (np.asarray(called['x_t']) - signal * x_0) / noise
  error = np.where(visible[..., None], 0, (signal * eps - noise * x_0) ** 2)
  assert float(loss) == pytest.approx(float(error.mean()), rel=1e-3)


class KnownPrior:
  """Normalises as a prior does, and answers what it is told to."""

  def __init__(self, mean, std, answer):
    self.mean, self.std, self.answer = mean, std, answer
    self.called = {}

  def normalise_embedding(self, embedding):
    return (embedding - self.mean) / self.std

  def denormalise(self, x_0):
    return x_0 * self.std + self.mean

  def __call__(self, x_t, t, words, sentence, word_mask, kept, dropout_key):
    self.called = {'x_t': x_t, 't': t, 'words': words, 'sentence': sentence}
    self.called |= {'kept': kept}
    assert word_mask is None
    assert dropout_key is None
    return self.answer(x_t)


def prior_setup(count=2000, width=6, tokens=3):
  rng = np.random.default_rng(0)
  batch = {
    'semantics': rng.normal(size=(count, width)).astype(np.float16),
    'caption': rng.normal(size=(count, tokens + 1, width)).astype(np.float16),
  }
  batch['caption'][::4] = 0  # Images without a caption.
  config = from_dict(
    {
      'stage': 'prior',
      'model': {'width': 8, 'layers': 1, 'heads': 2, 'head_width': 4},
      'diffusion': {'prediction': 'x0'},
    }
  )
  return PriorDiffusion(config), jax.tree.map(jnp.asarray, batch)


def test_a_prior_noises_the_normalised_embedding_and_is_asked_for_it():
  stage, batch = prior_setup()
  x_0 = np.asarray(batch['semantics'], np.float64) / 2 - 0.25
  prior = KnownPrior(0.5, 2.0, jnp.zeros_like)
  loss, metrics = stage.loss(prior, batch, KEY)
  assert float(loss) == pytest.approx((x_0**2).mean(), rel=1e-4)
  assert -1 <= float(metrics['cosine']) <= 1
  called = prior.called
  a = make_schedule('cosine', 1000).alphas_cumprod[np.asarray(called['t'])][:, None]
  noise = (np.asarray(called['x_t']) - np.sqrt(a) * x_0) / np.sqrt(1 - a)
  assert abs(noise.mean()) < 5 / np.sqrt(noise.size)
  assert abs(noise.var() - 1) < 5 * np.sqrt(2 / noise.size)
  caption = np.asarray(batch['caption'], np.float32)
  np.testing.assert_array_equal(called['words'], caption[:, :-1])
  np.testing.assert_array_equal(called['sentence'], caption[:, -1])


def test_a_prior_drops_one_caption_in_ten_and_those_that_are_not_there():
  stage, batch = prior_setup()
  prior = KnownPrior(0.0, 1.0, jnp.zeros_like)
  stage.loss(prior, batch, KEY)
  kept = np.asarray(prior.called['kept']).reshape(-1, 4)
  assert not kept[:, 0].any()
  share = kept[:, 1:].mean()
  assert abs(share - 0.9) < 4 * np.sqrt(0.09 / kept[:, 1:].size)


def test_images_without_an_embedding_teach_a_prior_nothing():
  stage, batch = prior_setup()
  half = {**batch, 'semantics': batch['semantics'].at[::2].set(0)}
  prior = KnownPrior(1.0, 1.0, jnp.zeros_like)
  loss, _ = stage.loss(prior, half, KEY)
  x_0 = np.asarray(batch['semantics'], np.float64)[1::2] - 1
  assert float(loss) == pytest.approx((x_0**2).mean(), rel=1e-4)


def test_a_learned_variance_adds_the_bound_and_trains_both_halves(setup):
  _, stage, batch = setup(model={'learned_variance': True})

  graph, weights = random_model(stage)

  @jax.jit
  def run(weights):
    def loss(weights):
      return stage.loss(nnx.merge(graph, weights), batch, KEY)

    return jax.value_and_grad(loss, has_aux=True)(weights)

  (value, metrics), grads = run(weights)
  assert float(metrics['variational_bound']) > 0
  assert float(value) == pytest.approx(
    float(metrics['mse'] + 0.001 * 1000 * metrics['variational_bound']), rel=1e-5
  )
  last = np.asarray(grads['conv_out']['bias'][...])
  mean, variance = np.split(last, 2)
  assert np.abs(mean).min() > 0
  assert np.abs(variance).min() > 0


def test_the_gradient_agrees_with_finite_differences_and_reaches_every_condition(setup):
  _, stage, batch = setup()
  graph, weights = random_model(stage)

  @jax.jit
  def loss(weights):
    return stage.loss(nnx.merge(graph, weights), batch, KEY)[0]

  grads = jax.jit(jax.grad(loss))(weights)
  for name in stage.config.unet.conditions:
    branch = jax.tree.leaves(grads['conditions']['branches'][name])
    assert max(float(jnp.abs(g).max()) for g in branch) > 0, name
  # Along the gradient, where the slope is its norm and rounding matters least.
  norm = float(optax.tree.norm(grads))
  step = 1e-2 / norm
  ahead = loss(jax.tree.map(lambda w, g: w + step * g / norm, weights, grads))
  behind = loss(jax.tree.map(lambda w, g: w - step * g / norm, weights, grads))
  assert float(ahead - behind) / (2 * step) == pytest.approx(norm, rel=1e-2)


def test_a_condition_that_the_data_lack_counts_as_dropped(setup):
  config, _, batch = setup()
  shapes = {name: batch[name].shape[1:] for name in config.unet.conditions}
  stage = Diffusion(config, shapes)
  less = {name: value for name, value in batch.items() if name != 'mask'}
  _, _, called = observe(stage, less)
  assert set(called['kept']) == {'palette', 'intensity'}


def test_the_draws_of_a_sample_do_not_depend_on_its_conditions(setup):
  config, stage, batch = setup()
  _, _, first = observe(stage, batch)
  fewer = dataclasses.replace(
    config, model=dataclasses.replace(config.unet, conditions=('palette',))
  )
  _, _, second = observe(Diffusion(fewer, {'palette': (180,)}), batch)
  np.testing.assert_array_equal(first['x_t'], second['x_t'])
  np.testing.assert_array_equal(first['t'], second['t'])
