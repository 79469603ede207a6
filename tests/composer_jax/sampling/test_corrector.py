from __future__ import annotations

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from composer_jax.diffusion.schedule import make_schedule
from composer_jax.sampling.corrector import langevin
from composer_jax.sampling.ddim import ddim
from composer_jax.sampling.loop import Step, initial_noise, sample, timesteps

ALPHAS = jnp.asarray(make_schedule('cosine').alphas_cumprod, jnp.float32)
MU = np.array([-0.5, 0.1, 0.8], np.float32)
DEVIATION = np.array([0.2, 0.5, 1.5], np.float32)
COUNT = 20_000


def marginal(t):
  """Mean and variance (3,) of x_t for x_0 ~ N(MU, DEVIATION^2)."""
  a = ALPHAS[t]
  return jnp.sqrt(a) * MU, a * DEVIATION**2 + 1 - a


def eps_of(x_t, t):
  mean, variance = marginal(t)
  return jnp.sqrt(1 - ALPHAS[t]) * (x_t - mean) / variance


@jax.jit
def corrected(x_t, t, steps, size):
  step = Step(t, t - 1, ALPHAS[t], ALPHAS[t - 1], ALPHAS[t])
  keys = jax.random.split(jax.random.key(0), len(x_t))
  return langevin(steps, size)(lambda x: eps_of(x, t), x_t, step, keys)


def start(t, shift=0.0, stretch=1.0):
  mean, variance = marginal(t)
  noise = np.random.default_rng(1).normal(size=(COUNT, 3))
  return jnp.asarray(mean + shift + stretch * np.sqrt(variance) * noise, jnp.float32)


def moments_are(x, mean, variance):
  """Five standard errors."""
  x = np.asarray(x, np.float64)
  mean_error = np.abs(x.mean(0) - mean) / np.sqrt(variance)
  np.testing.assert_array_less(mean_error, 5 / COUNT**0.5)
  np.testing.assert_array_less(np.abs(x.var(0) / variance - 1), 5 * (2 / COUNT) ** 0.5)


@pytest.mark.parametrize('t', [30, 400, 900])
def test_small_steps_leave_the_marginal_as_it_is(t):
  made = corrected(start(t), jnp.int32(t), 40, 0.02)
  moments_are(made, *marginal(t))
  assert np.abs(made - start(t)).max() > 0.1 * np.sqrt(1 - ALPHAS[t])


@pytest.mark.parametrize('size', [0.05, 0.4])
@pytest.mark.parametrize('steps', [1, 3, 30])
@pytest.mark.parametrize('t', [30, 400, 900])
def test_mean_and_variance_follow_their_closed_forms(t, steps, size):
  # A step is linear here: x - mean shrinks by r, and the noise adds 2 h.
  mean, variance = (np.asarray(m, np.float64) for m in marginal(t))
  h = size * (1 - float(ALPHAS[t]))
  r = 1 - h / variance
  shift, wanted = 0.7, 3.0**2 * variance
  for _ in range(steps):
    shift, wanted = r * shift, r**2 * wanted + 2 * h
  made = corrected(start(t, shift=0.7, stretch=3.0), jnp.int32(t), steps, size)
  moments_are(made, mean + shift, wanted)


@pytest.mark.parametrize('stretch', [0.3, 3.0])
def test_a_wrong_spread_comes_nearer_with_each_step_and_all_the_way_with_many(stretch):
  t = jnp.int32(700)
  _, variance = marginal(t)
  errors = []
  for steps in (0, 2, 8, 64):
    made = corrected(start(t, stretch=stretch), t, steps, 0.1)
    errors.append(np.abs(np.log(made.var(0) / variance)))
  assert (np.diff(errors, axis=0) < 0).all()
  # What is left is the bias that its documentation states, and sampling error.
  assert (errors[-1] < -np.log(1 - 0.1 / 2) + 5 * (2 / COUNT) ** 0.5).all()


def test_a_sampler_of_few_steps_comes_nearer_to_the_variance_with_it():
  def denoise(x_t, t):
    eps, a = eps_of(x_t, t), ALPHAS[t]
    return eps, (x_t - jnp.sqrt(1 - a) * eps) / jnp.sqrt(a)

  @jax.jit
  def run(steps):
    keys = jax.random.split(jax.random.key(5), 200)
    x_T = initial_noise(keys, (100, 3))
    times = timesteps(1000, 12, 'trailing')
    corrector = langevin(steps, 0.2)
    return sample(denoise, ddim(), x_T, ALPHAS, times, keys, corrector=corrector)

  plain, mended = (
    np.abs(np.log(np.asarray(run(steps)).reshape(-1, 3).std(0) / DEVIATION))
    for steps in (0, 10)
  )
  # The last step, after which nothing is corrected, leaves the narrow one an error.
  assert (mended < 0.75 * plain).all()
  assert (mended[1:] < 0.5 * plain[1:]).all()


def test_an_image_is_the_same_alone_and_in_any_batch():
  step = Step(*map(jnp.asarray, (500, 499, 0.5, 0.51, 0.5)))
  keys = jax.random.split(jax.random.key(2), 5)
  x_t = initial_noise(keys, (4, 4, 3))

  @jax.jit
  def moved(x, keys):
    return langevin(3, 0.3)(lambda x: jnp.tanh(x[..., ::-1]), x, step, keys)

  together = moved(x_t, keys)
  for i in (0, 4):
    alone = moved(x_t[i : i + 1], keys[i : i + 1])
    np.testing.assert_allclose(alone[0], together[i], atol=1e-6)
  assert np.abs(together - moved(x_t, keys[::-1])).max() > 0.1


def test_new_sizes_and_numbers_of_steps_compile_nothing():
  corrected.clear_cache()
  x_t = start(100)[:2]
  one, other = (corrected(x_t, jnp.int32(100), n, 0.1 * n) for n in (1, 2))
  assert corrected._cache_size() == 1
  assert np.abs(one - other).max() > 1e-3
