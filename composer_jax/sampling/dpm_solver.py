"""DPM-Solver++ (Lu et al. 2022, arXiv 2211.01095)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from composer_jax.sampling.loop import Estimate, Sampler, Step


def dpm_solver() -> Sampler:
  """DPM-Solver++(2M): second order, one pass of the model a step, deterministic.

  It extrapolates the predicted x_0 from two steps, so that 20 steps can be as good as
  80 of DDIM. The first and the last step are of first order, which is DDIM;
  the last one leads to the clean image, infinitely far in log SNR.
  """

  def sampler(
    x_t: jax.Array, estimate: Estimate, step: Step, noise: jax.Array
  ) -> jax.Array:
    """X at `step.previous_t`: algorithm 2."""
    del noise
    a, previous = step.alpha_cumprod, step.previous_alpha_cumprod
    now = _half_log_snr(a)
    h = _half_log_snr(previous) - now
    last_h = now - _half_log_snr(step.last_alpha_cumprod)
    # Share of the last change of x_0 by which it is extrapolated, 1 / (2 r) there.
    share = jnp.where((last_h > 0) & (step.previous_t >= 0), 0.5 * h / last_h, 0)
    x_0 = estimate.x_0 + share * (estimate.x_0 - estimate.last_x_0)
    shrink = jnp.sqrt((1 - previous) / (1 - a))
    # alpha (1 - exp(-h)), written so that an infinite h does no harm.
    return shrink * x_t + (jnp.sqrt(previous) - shrink * jnp.sqrt(a)) * x_0

  return sampler


def _half_log_snr(alpha_cumprod: jax.Array) -> jax.Array:
  """Lambda of the paper: log(alpha / sigma)."""
  return 0.5 * (jnp.log(alpha_cumprod) - jnp.log1p(-alpha_cumprod))
