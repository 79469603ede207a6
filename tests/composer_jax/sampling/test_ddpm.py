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
from composer_jax.sampling.ddpm import ddpm
from composer_jax.sampling.loop import Estimate, Step, initial_noise, sample, timesteps
from composer_jax.sampling.threshold import dynamic

BETAS = {'cosine': 'squaredcos_cap_v2', 'linear': 'linear'}
SHAPE = (2, 4, 5, 3)
MIX = np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32)


def predicted_eps(x, t):
  """A nonlinear stand-in for a network, for NumPy arrays: so it serves both sides."""
  x = np.asarray(x, np.float32)
  return (0.8 * np.tanh(x @ MIX) + 0.3 * np.sin(3 * x + t / 100)).astype(np.float32)


def theirs(schedule, spacing, num_sample, variance, **threshold):
  scheduler = diffusers.DDPMScheduler(
    1000,
    beta_start=1e-4,
    beta_end=0.02,
    beta_schedule=BETAS[schedule],
    variance_type=f'fixed_{variance}',
    timestep_spacing=spacing,
    **{'clip_sample': False, **threshold},
  )
  scheduler.set_timesteps(num_sample)
  # In float32 they take 1 - a / a', which loses digits where the two are close.
  scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
  return scheduler


def their_step(scheduler, x, t, seed):
  """Their step, and the noise that they drew in it."""
  generator, again = (torch.Generator().manual_seed(seed) for _ in range(2))
  eps = torch.from_numpy(predicted_eps(x, t))
  made = scheduler.step(eps, t, torch.from_numpy(x), generator=generator)
  return made.prev_sample.numpy(), torch.randn(x.shape, generator=again).numpy()


@pytest.fixture(scope='module')
def our_steps():
  def our_step(variance, eps, x_t, noise, step):
    c = coefficients(step.alpha_cumprod[None], jnp.zeros((), int), x_t.ndim)
    eps, x_0 = to_eps_and_x0('eps', eps, x_t, c)
    return ddpm(variance)(x_t, Estimate(eps, x_0, x_0), step, noise)

  return jax.jit(our_step, static_argnums=0)


@pytest.mark.parametrize('num_sample', [2, 7, 50])
@pytest.mark.parametrize('variance', ['small', 'large'])
@pytest.mark.parametrize('spacing', ['leading', 'trailing', 'linspace'])
@pytest.mark.parametrize('schedule', BETAS)
def test_every_step_equals_that_of_diffusers(
  our_steps, schedule, spacing, variance, num_sample
):
  scheduler = theirs(schedule, spacing, num_sample, variance)
  alphas = scheduler.alphas_cumprod.float().numpy()
  x = np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)
  times = scheduler.timesteps.tolist()
  for index, (t, previous) in enumerate(zip(times, [*times[1:], -1], strict=True)):
    wanted, noise = their_step(scheduler, x, t, seed=index)
    end = np.float32(1) if previous < 0 else alphas[previous]
    step = Step(np.int32(t), np.int32(previous), alphas[t], end, alphas[t])
    if previous < 0:
      # Theirs draws noise in a last step from t > 0, as `trailing` has; none is due.
      noise = np.zeros_like(noise)
      if t and variance == 'large':
        break
    got = our_steps(variance, predicted_eps(x, t), x, noise, step)
    scale = np.abs(wanted).max()
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=2e-5 * scale)
    x = wanted


@pytest.mark.parametrize('schedule', BETAS)
def test_a_whole_run_with_dynamic_thresholding_equals_that_of_diffusers(schedule):
  scheduler = theirs(
    schedule,
    'leading',
    10,
    'small',
    thresholding=True,
    dynamic_thresholding_ratio=0.9,
    sample_max_value=1.5,
  )
  alphas = scheduler.alphas_cumprod.float().numpy()
  keys = jax.random.split(jax.random.key(2), SHAPE[0])
  noises = []

  def denoise(x_t, t):
    eps = jax.pure_callback(predicted_eps, x_t, x_t, t)
    return to_eps_and_x0('eps', eps, x_t, coefficients(jnp.asarray(alphas), t, 4))

  def with_their_noise(x_t, estimate, step, noise):
    index = 9 - step.t // 100
    return ddpm()(x_t, estimate, step, jnp.asarray(noises)[index])

  x_T = x = np.array(initial_noise(keys, SHAPE[1:]))
  for index, t in enumerate(scheduler.timesteps.tolist()):
    x, noise = their_step(scheduler, x, t, seed=index)
    noises.append(noise)
  steps = timesteps(1000, 10, 'leading')
  threshold = dynamic(0.9, 1.5)
  got = sample(denoise, with_their_noise, x_T, alphas, steps, keys, threshold=threshold)
  np.testing.assert_allclose(got, x, atol=2e-4)


@pytest.mark.parametrize(('t', 'previous'), [(999, 998), (700, 240), (30, 29), (9, 0)])
def test_small_is_the_posterior_of_a_gaussian_with_a_gaussian_observation(t, previous):
  # In float64 from precisions: a prior on x_s from x_0, an observation x_t of it.
  a, b = make_schedule('linear').alphas_cumprod[[t, previous]]
  x_t, x_0, noise = np.random.default_rng(3).normal(size=(3, *SHAPE))
  keep = a / b
  precision = 1 / (1 - b) + keep / (1 - keep)
  mean = (np.sqrt(b) * x_0 / (1 - b) + np.sqrt(keep) * x_t / (1 - keep)) / precision
  one = jnp.float32(1)
  step = Step(np.int32(t), np.int32(previous), a * one, b * one, a * one)
  x_t, x_0, noise = (jnp.asarray(x, jnp.float32) for x in (x_t, x_0, noise))
  # What eps is does not matter.
  made = ddpm()(x_t, Estimate(jnp.nan, x_0, jnp.nan), step, noise)
  np.testing.assert_allclose(made, mean + noise / np.sqrt(precision), atol=2e-4)


@pytest.mark.parametrize(('t', 'previous'), [(999, 700), (400, 399), (40, 0)])
def test_each_variance_is_exact_for_the_data_that_it_is_the_best_for(t, previous):
  alphas = make_schedule('linear').alphas_cumprod.astype(np.float32)
  a, b = alphas[t], alphas[previous]
  step = Step(np.int32(t), np.int32(previous), a, b, a)
  # N(0, I) stays so at all steps, where x_0 is sqrt(a) x_t.
  of_x_t = ddpm('large')(1.0, Estimate(0, np.sqrt(a), 0), step, 0.0)
  of_noise = ddpm('large')(0.0, Estimate(0, 0.0, 0), step, 1.0)
  np.testing.assert_allclose(of_x_t**2 + of_noise**2, 1, rtol=1e-4)
  # One point at 0.7: x_t is N(0.7 sqrt(a), 1 - a), and x_s likewise.
  point = Estimate(0, np.float32(0.7), 0)
  mean = ddpm()(0.7 * np.sqrt(a), point, step, 0.0)
  np.testing.assert_allclose(mean, 0.7 * np.sqrt(b), rtol=1e-4)
  of_x_t = ddpm()(1.0, Estimate(0, 0.0, 0), step, 0.0)
  of_noise = ddpm()(0.0, Estimate(0, 0.0, 0), step, 1.0)
  variance = of_x_t**2 * (1 - a) + of_noise**2
  np.testing.assert_allclose(variance, 1 - b, rtol=2e-3)


def test_small_is_ddim_at_eta_1():
  rng = np.random.default_rng(4)
  x_t, eps, noise = rng.normal(size=(3, *SHAPE)).astype(np.float32)
  alphas = make_schedule('cosine').alphas_cumprod.astype(np.float32)
  for t, previous in [(990, 900), (500, 499), (60, 20)]:
    a = alphas[t]
    step = Step(np.int32(t), np.int32(previous), a, alphas[previous], a)
    x_0 = (x_t - np.sqrt(1 - a) * eps) / np.sqrt(a)
    estimate = Estimate(eps, x_0, x_0)
    one, other = (s(x_t, estimate, step, noise) for s in (ddpm(), ddim(1.0)))
    np.testing.assert_allclose(one, other, atol=2e-5 * np.abs(x_0).max())


@pytest.mark.parametrize('variance', ['small', 'large'])
def test_the_last_step_returns_x_0(variance):
  rng = np.random.default_rng(5)
  x_t, x_0, noise = rng.normal(size=(3, *SHAPE)).astype(np.float32)
  step = Step(np.int32(40), np.int32(-1), np.float32(0.9), np.float32(1), 0.8)
  made = ddpm(variance)(x_t, Estimate(x_t, x_0, x_0), step, noise)
  np.testing.assert_allclose(made, x_0, rtol=1e-6)


def test_an_unknown_variance_is_refused():
  with pytest.raises(ValueError, match="'learned'.*small"):
    ddpm('learned')
