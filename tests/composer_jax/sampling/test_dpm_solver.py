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
from composer_jax.sampling.dpm_solver import dpm_solver
from composer_jax.sampling.loop import Estimate, Step, initial_noise, sample, timesteps
from composer_jax.sampling.threshold import dynamic

BETAS = {'cosine': 'squaredcos_cap_v2', 'linear': 'linear'}
SHAPE = (2, 4, 5, 3)
MIX = np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32)


def predicted_eps(x, t):
  """A nonlinear stand-in for a network, for NumPy arrays: so it serves both sides."""
  x = np.asarray(x, np.float32)
  return (0.8 * np.tanh(x @ MIX) + 0.3 * np.sin(3 * x + t / 100)).astype(np.float32)


def theirs(schedule, spacing, num_sample, **threshold):
  scheduler = diffusers.DPMSolverMultistepScheduler(
    1000,
    beta_start=1e-4,
    beta_end=0.02,
    beta_schedule=BETAS[schedule],
    algorithm_type='dpmsolver++',
    solver_order=2,
    timestep_spacing=spacing,
    **threshold,
  )
  scheduler.set_timesteps(num_sample)
  return scheduler


def their_step(scheduler, x, t):
  eps = torch.from_numpy(predicted_eps(x, t))
  return scheduler.step(eps, t, torch.from_numpy(x)).prev_sample.numpy()


@jax.jit
def our_step(eps, x_t, last_x_0, step):
  c = coefficients(step.alpha_cumprod[None], jnp.zeros((), int), x_t.ndim)
  eps, x_0 = to_eps_and_x0('eps', eps, x_t, c)
  last_x_0 = x_0 if last_x_0 is None else last_x_0
  estimate = Estimate(eps, x_0, last_x_0)
  # No noise is wanted: any of it would show.
  return dpm_solver()(x_t, estimate, step, jnp.full_like(x_t, jnp.nan)), x_0


@pytest.mark.parametrize('num_sample', [1, 2, 7, 20])
@pytest.mark.parametrize('spacing', ['leading', 'trailing', 'linspace'])
@pytest.mark.parametrize('schedule', BETAS)
def test_every_step_equals_that_of_diffusers(schedule, spacing, num_sample):
  scheduler = theirs(schedule, spacing, num_sample)
  alphas = scheduler.alphas_cumprod.numpy()
  x = np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)
  times = scheduler.timesteps.tolist()
  last_x_0, last = None, times[0]
  for t, previous in zip(times, [*times[1:], -1], strict=True):
    wanted = their_step(scheduler, x, t)
    end = np.float32(1) if previous < 0 else alphas[previous]
    step = Step(np.int32(t), np.int32(previous), alphas[t], end, alphas[last])
    got, last_x_0 = our_step(predicted_eps(x, t), x, last_x_0, step)
    scale = np.abs(wanted).max()
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=2e-5 * scale)
    x, last = wanted, t


@jax.jit
def our_run(x_T, alphas, times, keys):
  def denoise(x_t, t):
    eps = jax.pure_callback(predicted_eps, x_t, x_t, t)
    return to_eps_and_x0('eps', eps, x_t, coefficients(alphas, t, x_t.ndim))

  threshold = dynamic(0.95, 2.0)
  return sample(denoise, dpm_solver(), x_T, alphas, times, keys, threshold=threshold)


@pytest.mark.parametrize('num_sample', [5, 20])
@pytest.mark.parametrize('spacing', ['leading', 'trailing', 'linspace'])
@pytest.mark.parametrize('schedule', BETAS)
def test_a_whole_run_over_the_same_timesteps_equals_that_of_diffusers(
  schedule, spacing, num_sample
):
  scheduler = theirs(
    schedule,
    spacing,
    num_sample,
    thresholding=True,
    dynamic_thresholding_ratio=0.95,
    sample_max_value=2.0,
  )
  keys = jax.random.split(jax.random.key(2), SHAPE[0])
  x_T = x = np.array(initial_noise(keys, SHAPE[1:]))
  times = scheduler.timesteps.numpy()
  got = our_run(x_T, scheduler.alphas_cumprod.numpy(), times, keys)
  for t in times.tolist():
    x = their_step(scheduler, x, t)
  np.testing.assert_allclose(got, x, atol=2e-4)


DEVIATION = 0.4


def error(sampler, num_sample):
  """Of a run on N(0.3, 0.4^2), of which the probability flow is known."""
  alphas = jnp.asarray(make_schedule('cosine').alphas_cumprod, jnp.float32)

  def denoise(x_t, t):
    a = alphas[t]
    eps = jnp.sqrt(1 - a) * (x_t - jnp.sqrt(a) * 0.3) / (a * DEVIATION**2 + 1 - a)
    return eps, (x_t - jnp.sqrt(1 - a) * eps) / jnp.sqrt(a)

  times = timesteps(1000, num_sample, 'trailing')
  keys = jax.random.split(jax.random.key(3), 4)
  x_T = initial_noise(keys, (50,))
  x_0 = sample(denoise, sampler, x_T, alphas, times, keys)
  # The flow keeps the distance from the mean, counted in deviations.
  return float(jnp.abs(x_0 - (0.3 + DEVIATION * x_T)).max())


def test_on_a_gaussian_it_is_of_second_order_and_ddim_of_first():
  second, first = (
    [error(sampler, num_sample) for num_sample in (10, 20)]
    for sampler in (dpm_solver(), ddim())
  )
  assert second[1] < second[0] / 4
  assert first[1] > first[0] / 2.2
  assert second[1] < error(ddim(), 80)
