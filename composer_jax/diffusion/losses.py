"""Training losses on one noised batch."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jax.scipy.stats import norm

from composer_jax.diffusion.process import Coefficients, Prediction

Weighting = Literal['none', 'min_snr']


def _per_sample(x: jax.Array) -> jax.Array:
  return x.reshape(x.shape[0], -1).mean(axis=1)


def mse(output: jax.Array, wanted: jax.Array) -> jax.Array:
  """Mean squared error of each sample: (B,)."""
  return _per_sample((output - wanted) ** 2)


def min_snr_weight(
  prediction: Prediction, c: Coefficients, gamma: float = 5.0
) -> jax.Array:
  """Min-SNR-gamma weight of each sample (Hang et al. 2023, section 3.4): (B,).

  min(SNR, gamma) in units of the x_0 loss, divided by what each prediction type
  already weighs: SNR for eps, SNR + 1 for v, 1 for x0.
  """
  snr = ((c.signal / c.noise) ** 2).reshape(c.signal.shape[0])
  divisor = {'eps': snr, 'v': snr + 1, 'x0': jnp.ones_like(snr)}[prediction]
  return jnp.minimum(snr, gamma) / divisor


def gaussian_kl(
  mean_1: jax.Array, log_var_1: jax.Array, mean_2: jax.Array, log_var_2: jax.Array
) -> jax.Array:
  """KL(N_1 || N_2) of diagonal Gaussians, elementwise, in nats."""
  return 0.5 * (
    log_var_2
    - log_var_1
    + jnp.exp(log_var_1 - log_var_2)
    + (mean_1 - mean_2) ** 2 * jnp.exp(-log_var_2)
    - 1
  )


def discretised_log_likelihood(
  x_0: jax.Array, mean: jax.Array, log_var: jax.Array
) -> jax.Array:
  """Log probability of 8-bit pixels in [-1, 1] (Ho et al. 2020, eq. 13), in nats."""
  sigma, half = jnp.exp(0.5 * log_var), 1 / 255
  upper, lower = (x_0 + half - mean) / sigma, (x_0 - half - mean) / sigma
  # On the upper tail the mirror image: there float32 loses 1 - cdf altogether.
  inside = norm.cdf(jnp.minimum(upper, -lower)) - norm.cdf(jnp.minimum(lower, -upper))
  probability = jnp.where(
    x_0 < -0.999, norm.cdf(upper), jnp.where(x_0 > 0.999, norm.sf(lower), inside)
  )
  return jnp.log(jnp.maximum(probability, 1e-12))


def variational_bound(
  x_0: jax.Array,
  x_t: jax.Array,
  t: jax.Array,
  model_x_0: jax.Array,
  values: jax.Array,
  betas: jax.Array,
  alphas_cumprod: jax.Array,
) -> jax.Array:
  """The term L_t of the variational bound with a learned variance: (B,), in bits.

  `L_hybrid = L_simple + 0.001 T L_vlb` (Nichol and Dhariwal 2021, section 3.1) takes
  `model_x_0` with its gradient stopped.
  """
  shape = t.shape + (1,) * (x_0.ndim - 1)
  beta, a = betas[t].reshape(shape), alphas_cumprod[t].reshape(shape)
  first = (t == 0).reshape(shape)
  previous = jnp.where(first, 1.0, alphas_cumprod[t - 1].reshape(shape))
  # At t = 0 beta is 1 - a, but float32 rounds the latter by 0.1 %: set what is known.
  weight_0 = jnp.where(first, 1.0, beta * jnp.sqrt(previous) / (1 - a))
  weight_t = (1 - previous) * jnp.sqrt(1 - beta) / (1 - a)
  true_mean = weight_0 * x_0 + weight_t * x_t
  mean = weight_0 * model_x_0 + weight_t * x_t
  # The posterior variance at t = 0 is 0: use that of t = 1 in its place.
  step = jnp.maximum(t, 1)
  variance = betas[step] * (1 - alphas_cumprod[step - 1]) / (1 - alphas_cumprod[step])
  true_log_var = jnp.log(variance).reshape(shape)
  share = (values + 1) / 2
  log_var = share * jnp.log(beta) + (1 - share) * true_log_var
  kl = gaussian_kl(true_mean, true_log_var, mean, log_var)
  nll = -discretised_log_likelihood(x_0, mean, log_var)
  return _per_sample(jnp.where(first, nll, kl)) / jnp.log(2.0)
