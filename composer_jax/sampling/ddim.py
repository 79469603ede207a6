"""Denoising diffusion implicit models (Song et al. 2021, arXiv 2010.02502)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from composer_jax.sampling.loop import Estimate, Sampler, Step


def ddim(eta: jax.Array | float = 0.0) -> Sampler:
  """The DDIM sampler.

  Args:
    eta: scalar in [0, 1], may be traced: 0 is deterministic, 1 has the variance of
      DDPM's posterior.
  """

  def sampler(
    x_t: jax.Array, estimate: Estimate, step: Step, noise: jax.Array
  ) -> jax.Array:
    """X at `step.previous_t`, by equation 12 with the sigma of equation 16."""
    del x_t  # Equation 12 needs it only through eps and x_0.
    a, previous = step.alpha_cumprod, step.previous_alpha_cumprod
    variance = eta**2 * (1 - previous) / (1 - a) * (1 - a / previous)
    # At eta = 1 and the last step rounding could make the difference negative.
    direction = jnp.sqrt(jnp.maximum(1 - previous - variance, 0)) * estimate.eps
    image = jnp.sqrt(previous) * estimate.x_0
    return image + direction + jnp.sqrt(variance) * noise

  return sampler
