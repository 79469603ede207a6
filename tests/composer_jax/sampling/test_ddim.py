from __future__ import annotations

import diffusers
import jax
import numpy as np
import pytest
import torch
from jax import numpy as jnp

from composer_jax.diffusion.process import coefficients, to_eps_and_x0
from composer_jax.diffusion.schedule import make_schedule
from composer_jax.sampling.ddim import ddim
from composer_jax.sampling.loop import (
  Estimate,
  Step,
  initial_noise,
  sample,
  timesteps,
)
from composer_jax.sampling.threshold import static

BETAS = {'cosine': 'squaredcos_cap_v2', 'linear': 'linear'}
SHAPE = (2, 4, 5, 3)
MIX = np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32)


def predicted_eps(x, t):
  """A nonlinear stand-in for a network, for NumPy arrays: so it serves both sides."""
  x = np.asarray(x, np.float32)
  return (0.8 * np.tanh(x @ MIX) + 0.3 * np.sin(3 * x + t / 100)).astype(np.float32)


def theirs(schedule, spacing, num_sample, clip):
  scheduler = diffusers.DDIMScheduler(
    1000,
    beta_start=1e-4,
    beta_end=0.02,
    beta_schedule=BETAS[schedule],
    clip_sample=clip,
    set_alpha_to_one=True,
    timestep_spacing=spacing,
  )
  scheduler.set_timesteps(num_sample)
  return scheduler


def their_step(scheduler, x, t, eta, noise, clip):
  return scheduler.step(
    torch.from_numpy(predicted_eps(x, t)),
    t,
    torch.from_numpy(x),
    eta=eta,
    use_clipped_model_output=clip,
    variance_noise=torch.from_numpy(noise),
  ).prev_sample.numpy()


@jax.jit
def our_step(eps, x_t, noise, step, eta, clip):
  c = coefficients(step.alpha_cumprod[None], jnp.zeros((), int), x_t.ndim)
  eps, x_0 = to_eps_and_x0('eps', eps, x_t, c)
  clipped = jnp.clip(x_0, -1, 1)
  again, _ = to_eps_and_x0('x0', clipped, x_t, c)
  x_0, eps = jnp.where(clip, clipped, x_0), jnp.where(clip, again, eps)
  return ddim(eta)(x_t, Estimate(eps, x_0, x_0), step, noise)


@pytest.mark.parametrize('num_sample', [1, 7, 20])
@pytest.mark.parametrize('clip', [False, True])
@pytest.mark.parametrize('eta', [0.0, 0.6, 1.0])
@pytest.mark.parametrize('spacing', ['leading', 'trailing', 'linspace'])
@pytest.mark.parametrize('schedule', BETAS)
def test_every_step_equals_that_of_diffusers(schedule, spacing, eta, clip, num_sample):
  scheduler = theirs(schedule, spacing, num_sample, clip)
  alphas = scheduler.alphas_cumprod.numpy()
  rng = np.random.default_rng(1)
  x = rng.normal(size=SHAPE).astype(np.float32)
  for t in scheduler.timesteps.tolist():
    noise = rng.normal(size=SHAPE).astype(np.float32)
    wanted = their_step(scheduler, x, t, eta, noise, clip)
    # Not the next timestep: diffusers' `linspace` strides and its steps disagree.
    previous = t - 1000 // num_sample
    end = np.float32(1) if previous < 0 else alphas[previous]
    step = Step(np.int32(t), np.int32(previous), alphas[t], end, alphas[t])
    got = our_step(predicted_eps(x, t), x, noise, step, eta, clip)
    scale = np.abs(wanted).max()
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=2e-5 * scale)
    x = wanted


NOISES = []


@jax.jit
def our_run(x_T, eta, alphas, steps, keys):
  def denoise(x_t, t):
    eps = jax.pure_callback(predicted_eps, x_t, x_t, t)
    return to_eps_and_x0('eps', eps, x_t, coefficients(alphas, t, x_t.ndim))

  def recording(x_t, estimate, step, noise):
    jax.debug.callback(lambda n: NOISES.append(np.array(n)), noise, ordered=True)
    return ddim(eta)(x_t, estimate, step, noise)

  return sample(denoise, recording, x_T, alphas, steps, keys, threshold=static())


@pytest.mark.parametrize('eta', [0.0, 0.7])
@pytest.mark.parametrize('spacing', ['leading', 'trailing'])
@pytest.mark.parametrize('schedule', BETAS)
def test_a_whole_clipped_run_equals_that_of_diffusers(schedule, spacing, eta):
  num_sample = 10
  scheduler = theirs(schedule, spacing, num_sample, clip=True)
  keys = jax.random.split(jax.random.key(2), SHAPE[0])
  alphas = make_schedule(schedule).alphas_cumprod.astype(np.float32)
  x_T = initial_noise(keys, SHAPE[1:])
  NOISES.clear()
  got = our_run(x_T, eta, alphas, timesteps(1000, num_sample, spacing), keys)
  jax.effects_barrier()

  x = np.array(x_T)
  assert len(NOISES) == num_sample
  for t, noise in zip(scheduler.timesteps.tolist(), NOISES, strict=True):
    x = their_step(scheduler, x, t, eta, noise, clip=True)
  np.testing.assert_allclose(got, x, atol=2e-4)


def test_eta_0_ignores_the_noise_and_the_last_step_returns_x_0():
  rng = np.random.default_rng(3)
  x_t, eps, x_0, noise = rng.normal(size=(4, *SHAPE)).astype(np.float32)
  estimate = Estimate(eps, x_0, x_0)
  one = jnp.float32(1)
  step = Step(jnp.int32(9), jnp.int32(4), 0.3 * one, 0.6 * one, 0.3 * one)
  quiet = ddim(0.0)(x_t, estimate, step, noise)
  np.testing.assert_array_equal(quiet, ddim(0.0)(x_t, estimate, step, -5 * noise))
  assert np.abs(quiet - ddim(0.5)(x_t, estimate, step, noise)).max() > 0.1
  last = Step(jnp.int32(4), jnp.int32(-1), 0.6 * one, one, 0.3 * one)
  for eta in (0.0, 1.0):
    np.testing.assert_array_equal(ddim(eta)(x_t, estimate, last, noise), x_0)


MU = np.array([-0.5, 0.1, 0.8], np.float32)
DEVIATION = np.array([0.3, 0.5, 1.5], np.float32)


@jax.jit
def gaussian_run(eta, alphas, keys):
  # For x_0 ~ N(mu, s^2), x_t ~ N(sqrt(a) mu, a s^2 + 1 - a) and the best prediction
  # is eps = sqrt(1-a) (x_t - sqrt(a) mu) / (a s^2 + 1 - a).
  def denoise(x_t, t):
    a = alphas[t]
    variance = a * DEVIATION**2 + 1 - a
    eps = jnp.sqrt(1 - a) * (x_t - jnp.sqrt(a) * MU) / variance
    return eps, (x_t - jnp.sqrt(1 - a) * eps) / jnp.sqrt(a)

  x_T = initial_noise(keys, (200, 3))
  steps = timesteps(1000, 250, 'trailing')
  return sample(denoise, ddim(eta), x_T, alphas, steps, keys)


@pytest.mark.parametrize('eta', [0.0, 0.5, 1.0])
@pytest.mark.parametrize('schedule', BETAS)
def test_a_gaussian_comes_out_with_its_mean_and_deviation(schedule, eta):
  alphas = make_schedule(schedule).alphas_cumprod.astype(np.float32)
  keys = jax.random.split(jax.random.key(4), 40)
  x_0 = np.asarray(gaussian_run(eta, alphas, keys)).reshape(-1, 3)
  # Five standard errors, and a little for steps that are not infinitely small.
  mean_error = np.abs(x_0.mean(0) - MU) / DEVIATION
  np.testing.assert_array_less(mean_error, 5 / len(x_0) ** 0.5 + 0.002)
  deviation_error = np.abs(x_0.std(0) / DEVIATION - 1)
  np.testing.assert_array_less(deviation_error, 5 / (2 * len(x_0)) ** 0.5 + 0.02)
