"""Langevin dynamics at one noise level (Song et al. 2021, arXiv 2011.13456)."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from composer_jax.sampling.loop import Corrector, Step, draw


def langevin(steps: jax.Array | int, size: jax.Array | float) -> Corrector:
  """Unadjusted Langevin steps with the score -eps / sqrt(1 - a) at each timestep.

  They draw x_t towards the distribution whose score the model gives at t. That mends
  what the sampler's steps got wrong, and with guidance by several terms it draws
  towards the product of their distributions at t, which the sampler alone does not
  follow (Du et al. 2023, arXiv 2302.11552, section 4). Meant for `ddpm` and `ddim`:
  `dpm_solver` extrapolates along a path that is left here.

  The length of a step is `size` times the variance of the noise, 1 - a. That is what
  algorithms 4 and 5 of Song et al. (appendix G) come to for 2 r^2 = size, with their
  ratio of norms at its expectation, so that no image depends on its batch. No density
  that is blurred by that noise is more curved than 1 / (1 - a). So a size below 2 is
  stable on any Gaussian, and the variance comes out too large by at most a factor
  1 / (1 - size / 2). Guidance by w can multiply the curvature by about w, which asks
  for a smaller size.

  Args:
    steps: at each timestep; each is one more pass of the model. May be traced.
    size: above 0 and well below 2, such as 0.1; may be traced.
  """

  def corrector(
    predict_eps: Callable[[jax.Array], jax.Array],
    x_t: jax.Array,
    step: Step,
    keys: jax.Array,
  ) -> jax.Array:
    """Another x at `step.t`."""
    deviation = jnp.sqrt(1 - step.alpha_cumprod)

    def move(index, x):
      noise = draw(keys, index, x.shape[1:])
      return x - deviation * (size * predict_eps(x) - jnp.sqrt(2 * size) * noise)

    return jax.lax.fori_loop(0, steps, move, x_t)

  return corrector
