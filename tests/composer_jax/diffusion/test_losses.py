from __future__ import annotations

import jax
import numpy as np
import pytest
import scipy.stats
import torch
from jax import numpy as jnp

from composer_jax.diffusion import losses
from composer_jax.diffusion.process import coefficients, target, to_eps_and_x0
from composer_jax.diffusion.schedule import make_schedule

T = np.array([0, 1, 2, 30, 500, 998, 999])
RNG = np.random.default_rng(0)
# 8-bit pixels, black and white among them.
X_0 = (RNG.integers(0, 256, (7, 6, 5, 3)) / 127.5 - 1).astype(np.float32)
X_0[:, 0], X_0[:, 1] = -1, 1
NOISE = RNG.normal(size=X_0.shape).astype(np.float32)


log_likelihood = jax.jit(losses.discretised_log_likelihood)


def noised(schedule):
  a = schedule.alphas_cumprod[T].reshape(-1, 1, 1, 1)
  return (np.sqrt(a) * X_0 + np.sqrt(1 - a) * NOISE).astype(np.float32)


def test_mse_is_the_mean_over_each_sample():
  got = losses.mse(jnp.asarray(X_0), jnp.asarray(NOISE))
  wanted = torch.nn.functional.mse_loss(
    torch.from_numpy(X_0), torch.from_numpy(NOISE), reduction='none'
  )
  np.testing.assert_allclose(got, wanted.mean((1, 2, 3)), rtol=1e-5)


@pytest.mark.parametrize('kind', ['cosine', 'linear'])
@pytest.mark.parametrize('gamma', [1.0, 5.0])
def test_min_snr_weights_equal_their_formulas(kind, gamma):
  a = make_schedule(kind).alphas_cumprod
  c = coefficients(jnp.asarray(a, jnp.float32), jnp.arange(1000), 4)
  snr = a / (1 - a)
  wanted = {
    'x0': np.minimum(snr, gamma),
    'eps': np.minimum(gamma / snr, 1),
    'v': np.minimum(snr, gamma) / (snr + 1),
  }
  for prediction, weights in wanted.items():
    got = losses.min_snr_weight(prediction, c, gamma)
    assert got.shape == (1000,)
    # 1 - a of a float32 a near 1 has three digits.
    np.testing.assert_allclose(got[20:], weights[20:], rtol=5e-4)
    np.testing.assert_allclose(got[:20], weights[:20], rtol=5e-3)


@pytest.mark.parametrize('prediction', ['eps', 'v'])
def test_a_min_snr_weighted_loss_is_one_and_the_same_for_every_prediction(prediction):
  # Hang et al. 2023: whatever the network predicts, the weighted loss is
  # min(SNR, gamma) times the squared error of x_0.
  schedule = make_schedule('linear')
  alphas = jnp.asarray(schedule.alphas_cumprod, jnp.float32)
  t = jnp.array([50, 200, 400, 600, 800])
  c = coefficients(alphas, t, 4)
  x_0, noise, error = X_0[:5], NOISE[:5], 0.3 * NOISE[2:7]
  x_t = c.signal * x_0 + c.noise * noise
  wanted = target(prediction, x_0, noise, c)
  output = wanted + error
  _, guess = to_eps_and_x0(prediction, output, x_t, c)
  weighted = losses.min_snr_weight(prediction, c) * losses.mse(output, wanted)
  plain = losses.min_snr_weight('x0', c) * losses.mse(guess, x_0)
  np.testing.assert_allclose(weighted, plain, rtol=1e-3)


def test_gaussian_kl_equals_that_of_torch_and_is_0_for_equals():
  m1, v1, m2, v2 = RNG.normal(size=(4, 50)).astype(np.float32)
  normal = torch.distributions.Normal
  one = normal(torch.from_numpy(m1), torch.from_numpy(np.exp(v1 / 2)))
  two = normal(torch.from_numpy(m2), torch.from_numpy(np.exp(v2 / 2)))
  wanted = torch.distributions.kl_divergence(one, two)
  np.testing.assert_allclose(
    losses.gaussian_kl(m1, v1, m2, v2), wanted, rtol=1e-4, atol=1e-6
  )
  np.testing.assert_array_equal(losses.gaussian_kl(m1, v1, m1, v1), 0)


@pytest.mark.parametrize('sigma', [0.003, 0.05, 0.8])
@pytest.mark.parametrize('mean', [-1.1, -0.2, 0.0, 0.97])
def test_the_probabilities_of_all_pixel_values_add_up_to_one(mean, sigma):
  pixels = (np.arange(256) / 127.5 - 1).astype(np.float32)
  log_p = log_likelihood(pixels, jnp.full(256, mean), jnp.full(256, 2 * np.log(sigma)))
  np.testing.assert_allclose(np.exp(log_p).sum(), 1, rtol=1e-4)


def bin_probability(pixels, mean, sigma):
  """P(pixel) in float64, from whichever tail loses no digits."""
  upper = np.where(pixels > 0.999, np.inf, (pixels + 1 / 255 - mean) / sigma)
  lower = np.where(pixels < -0.999, -np.inf, (pixels - 1 / 255 - mean) / sigma)
  normal = scipy.stats.norm
  left = normal.cdf(upper) - normal.cdf(lower)
  right = normal.sf(lower) - normal.sf(upper)
  return np.where(lower + upper > 0, right, left)


@pytest.mark.parametrize('sigma', [0.004, 0.02, 0.3])
def test_pixel_likelihood_equals_that_of_scipy(sigma):
  pixels = np.tile((np.arange(256) / 127.5 - 1).astype(np.float32), (21, 1))
  mean = np.linspace(-1.2, 1.2, 21, dtype=np.float32)[:, None] + 0 * pixels
  log_var = np.full_like(pixels, 2 * np.log(sigma))
  got = log_likelihood(pixels, mean, log_var)
  p = bin_probability(pixels.astype(np.float64), mean.astype(np.float64), sigma)
  wanted = np.log(np.maximum(p, 1e-12))
  np.testing.assert_allclose(got, wanted, atol=0.02)
  likely = p > 1e-3
  np.testing.assert_allclose(np.asarray(got)[likely], wanted[likely], atol=2e-3)


def posterior(schedule, t, x_t, x_0):
  """q(x_{t-1} | x_t, x_0) as a product of Gaussians in x_{t-1}: precisions add."""
  beta, previous = schedule.betas[t], schedule.alphas_cumprod[t - 1]
  forward, prior = (1 - beta) / beta, 1 / (1 - previous)
  mean = x_t * np.sqrt(1 - beta) / beta + x_0 * np.sqrt(previous) * prior
  return mean / (forward + prior), 1 / (forward + prior)


def direct_bound(schedule, x_t, guess, values):
  """L_t in bits from densities, in float64 (Ho et al. 2020, eq. 5 to 7, 13)."""
  bound = []
  for i, t in enumerate(T):
    x_0, noisy, image, value = (
      part[i].astype(np.float64) for part in (X_0, x_t, guess, values)
    )
    true_mean, variance = posterior(schedule, max(t, 1), noisy, x_0)
    mean, _ = posterior(schedule, max(t, 1), noisy, image)
    low, high = np.log(variance), np.log(schedule.betas[t])
    sigma = np.exp((low + (high - low) * (value + 1) / 2) / 2)
    if t == 0:
      nats = -np.log(np.maximum(bin_probability(x_0, image, sigma), 1e-12))
    else:
      deviation = torch.full(x_0.shape, variance**0.5, dtype=torch.float64)
      normal = torch.distributions.Normal
      truth = normal(torch.from_numpy(true_mean), deviation)
      model = normal(torch.from_numpy(mean), torch.from_numpy(sigma))
      nats = torch.distributions.kl_divergence(truth, model).numpy()
    bound.append(nats.mean() / np.log(2))
  return np.array(bound)


@jax.jit
def jitted_bound(x_t, guess, values, betas, alphas):
  return losses.variational_bound(X_0, x_t, T, guess, values, betas, alphas)


def bound(schedule, x_t, guess, values):
  betas, alphas = schedule.betas, schedule.alphas_cumprod
  betas, alphas = betas.astype(np.float32), alphas.astype(np.float32)
  return jitted_bound(x_t, guess, values, betas, alphas)


@pytest.mark.parametrize('error', [0.0, 0.01, 0.3])
@pytest.mark.parametrize('kind', ['cosine', 'linear'])
def test_the_variational_bound_equals_one_from_densities(kind, error):
  schedule = make_schedule(kind)
  x_t = noised(schedule)
  guess = X_0 + error * RNG.normal(size=X_0.shape).astype(np.float32)
  values = RNG.uniform(-1, 1, X_0.shape).astype(np.float32)
  got = bound(schedule, x_t, guess, values)
  assert got.shape == T.shape
  wanted = direct_bound(schedule, x_t, guess, values)
  np.testing.assert_allclose(got, wanted, rtol=5e-3, atol=2e-5)


def test_the_bound_is_0_for_the_true_posterior():
  schedule = make_schedule('cosine')
  got = bound(schedule, noised(schedule), X_0, np.full_like(X_0, -1))
  np.testing.assert_allclose(got[1:], 0, atol=1e-5)


def test_the_bound_has_finite_gradients_even_far_off():
  schedule = make_schedule('cosine')
  x_t = noised(schedule)

  def total(guess, values):
    return bound(schedule, x_t, guess, values).sum()

  gradient = jax.jit(jax.grad(total, argnums=(0, 1)))
  for guess in (X_0, X_0 + 0.01, -X_0, X_0 + 3):
    for part in gradient(jnp.asarray(guess), jnp.zeros_like(X_0)):
      assert np.isfinite(part).all()
