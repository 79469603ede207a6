"""Denoising diffusion probabilistic models (Ho et al. 2020, arXiv 2006.11239)."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from composer_jax.sampling.loop import Estimate, Sampler, Step


def ddpm(variance: Literal['small', 'large'] = 'small') -> Sampler:
  """The ancestral sampler of DDPM, between any two timesteps.

  Args:
    variance: of the noise in each step (section 3.2). `small` is that of the
      posterior q(x_s | x_t, x_0), the best if all data were one point; `large` is that
      of the forward process, the best if they were N(0, I).

  Raises:
    ValueError: the variance is neither.
  """
  if variance not in ('small', 'large'):
    raise ValueError(f'Variance of DDPM is {variance!r}; expected "small" or "large".')

  def sampler(
    x_t: jax.Array, estimate: Estimate, step: Step, noise: jax.Array
  ) -> jax.Array:
    """X at `step.previous_t`: algorithm 2, with the posterior mean of equation 7."""
    a, previous = step.alpha_cumprod, step.previous_alpha_cumprod
    # Alpha and beta of all the steps from previous_t to t, taken as one.
    alpha, beta = a / previous, (previous - a) / previous
    mean = (
      jnp.sqrt(previous) * beta * estimate.x_0 + jnp.sqrt(alpha) * (1 - previous) * x_t
    ) / (1 - a)
    spread = beta if variance == 'large' else (1 - previous) / (1 - a) * beta
    # Nothing is added to the clean image.
    return mean + jnp.sqrt(jnp.where(step.previous_t < 0, 0, spread)) * noise

  return sampler
