from __future__ import annotations

import itertools
import statistics

import diffusers
import jax
import numpy as np
import pytest
import torch
from jax import numpy as jnp

from composer_jax.diffusion.process import coefficients, to_eps_and_x0
from composer_jax.diffusion.schedule import make_schedule
from composer_jax.sampling.ddim import ddim
from composer_jax.sampling.inversion import invert
from composer_jax.sampling.loop import sample, timesteps

BETAS = {'cosine': 'squaredcos_cap_v2', 'linear': 'linear'}
SHAPE = (2, 4, 5, 3)
MIX = np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32)
SEEN = []


def predicted_eps(x, t):
  """A nonlinear stand-in for a network, for NumPy arrays: so it serves both sides."""
  x = np.asarray(x, np.float32)
  return (0.8 * np.tanh(x @ MIX) + 0.3 * np.sin(3 * x + t / 100)).astype(np.float32)


def observed_eps(x, t):
  SEEN.append((np.array(x), int(t)))
  return predicted_eps(x, t)


@jax.jit
def our_run(x_0, alphas, times):
  def denoise(x_t, t):
    # What x_0 is predicted does not matter.
    return jax.pure_callback(observed_eps, x_t, x_t, t), jnp.full_like(x_t, jnp.nan)

  return invert(denoise, x_0, alphas, times)


# Counts that divide 1000: for others the strides of diffusers and its steps disagree.
@pytest.mark.parametrize('num_sample', [1, 5, 20, 50])
@pytest.mark.parametrize('spacing', ['leading', 'trailing'])
@pytest.mark.parametrize('schedule', BETAS)
def test_every_step_equals_that_of_diffusers(schedule, spacing, num_sample):
  scheduler = diffusers.DDIMInverseScheduler(
    1000,
    beta_start=1e-4,
    beta_end=0.02,
    beta_schedule=BETAS[schedule],
    clip_sample=False,
    timestep_spacing=spacing,
  )
  scheduler.set_timesteps(num_sample)
  alphas = scheduler.alphas_cumprod.numpy()
  x_0 = np.random.default_rng(1).uniform(-1, 1, SHAPE).astype(np.float32)
  SEEN.clear()
  last = np.asarray(our_run(x_0, alphas, timesteps(1000, num_sample, spacing)))

  states = [x for x, _ in SEEN] + [last]
  assert [t for _, t in SEEN] == scheduler.timesteps.tolist()
  np.testing.assert_array_equal(states[0], x_0)
  for t, x, made in zip(scheduler.timesteps, states[:-1], states[1:], strict=True):
    eps = torch.from_numpy(predicted_eps(x, int(t)))
    wanted = scheduler.step(eps, int(t), torch.from_numpy(x)).prev_sample
    np.testing.assert_allclose(made, wanted, rtol=1e-5, atol=1e-5)


# A mixture of two Gaussians of deviation 0.3 at each pixel.
CENTRES, SPREAD = np.array([-0.6, 0.5], np.float32), 0.3
ALPHAS = jnp.asarray(make_schedule('linear').alphas_cumprod, jnp.float32)


def exact(x_t, t):
  """Its best prediction: eps = sqrt(1 - a) (x_t - mean of the centres) / variance."""
  a = ALPHAS[t]
  variance = a * SPREAD**2 + 1 - a
  distance = x_t[..., None] - jnp.sqrt(a) * CENTRES
  weights = jax.nn.softmax(-(distance**2) / (2 * variance))
  eps = jnp.sqrt(1 - a) * (weights * distance).sum(-1) / variance
  return eps, (x_t - jnp.sqrt(1 - a) * eps) / jnp.sqrt(a)


def images(shape=SHAPE):
  rng = np.random.default_rng(3)
  centres = CENTRES[rng.integers(2, size=shape)]
  return jnp.asarray(centres + SPREAD * rng.normal(size=shape), jnp.float32)


@jax.jit
def there_and_back(x_0, times, iterations):
  keys = jax.random.split(jax.random.key(0), len(x_0))
  x_T = invert(exact, x_0, ALPHAS, times, iterations=iterations)
  return sample(exact, ddim(), x_T, ALPHAS, times, keys)


def error_of_return(num_sample, iterations=1, spacing='trailing'):
  times = timesteps(1000, num_sample, spacing)
  return float(jnp.abs(there_and_back(images(), times, iterations) - images()).max())


@pytest.mark.parametrize('spacing', ['leading', 'trailing', 'linspace'])
def test_ddim_leads_back_the_nearer_the_more_steps(spacing):
  errors = [error_of_return(n, spacing=spacing) for n in (10, 40, 160)]
  assert all(b < 0.5 * a for a, b in itertools.pairwise(errors))
  assert errors[-1] < 0.03


def test_iterations_lead_back_exactly_even_in_few_steps():
  errors = [error_of_return(10, iterations=k) for k in (1, 3, 9, 40)]
  assert all(b < 0.5 * a for a, b in itertools.pairwise(errors))
  assert errors[-1] < 1e-3


def test_x_T_of_samples_is_standard_normal():
  times = timesteps(1000, 200, 'trailing')
  x_T = np.asarray(invert(exact, images((4, 5000)), ALPHAS, times))
  # Five standard errors, and a little for steps that are not infinitely small.
  assert abs(x_T.mean()) < 5 / x_T.size**0.5 + 0.01
  assert abs(x_T.std() - 1) < 5 / (2 * x_T.size) ** 0.5 + 0.01
  for quantile in (0.05, 0.25, 0.75):
    wanted = statistics.NormalDist().inv_cdf(quantile)
    assert abs(np.quantile(x_T, quantile) - wanted) < 0.06


def test_a_gaussian_is_inverted_as_its_probability_flow_goes():
  mean, deviation = 0.3, 0.4

  def denoise(x_t, t):
    a = ALPHAS[t]
    variance = a * deviation**2 + 1 - a
    return jnp.sqrt(1 - a) * (x_t - jnp.sqrt(a) * mean) / variance, x_t

  x_0 = images()
  x_T = invert(denoise, x_0, ALPHAS, timesteps(1000, 1000, 'trailing'))
  a = ALPHAS[-1]
  # The flow keeps the distance from the mean, counted in deviations.
  spread = jnp.sqrt(a * deviation**2 + 1 - a)
  wanted = jnp.sqrt(a) * mean + spread * (x_0 - mean) / deviation
  np.testing.assert_allclose(x_T, wanted, atol=0.01)


def test_an_image_is_the_same_alone_and_in_any_batch():
  times = timesteps(1000, 10, 'trailing')
  together = invert(exact, images(), ALPHAS, times)
  alone = invert(exact, images()[1:], ALPHAS, times)
  np.testing.assert_allclose(alone[0], together[1], atol=1e-5)


def test_new_schedules_timesteps_and_iterations_compile_nothing():
  traces = []

  @jax.jit
  def compiled(x_0, alphas, times, iterations):
    def counting(x_t, t):
      traces.append(None)
      return to_eps_and_x0('v', jnp.sin(x_t), x_t, coefficients(alphas, t, x_t.ndim))

    return invert(counting, x_0, alphas, times, iterations=iterations)

  for schedule, spacing, iterations in [
    ('cosine', 'leading', 1),
    ('linear', 'trailing', 2),
  ]:
    alphas = jnp.asarray(make_schedule(schedule).alphas_cumprod, jnp.float32)
    made = compiled(images(), alphas, timesteps(1000, 50, spacing), iterations)
    assert np.isfinite(made).all()
  assert len(traces) == 1
