"""From an image to the noise it comes from: DDIM run backwards."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from composer_jax.sampling.loop import Denoiser


def invert(
  denoise: Denoiser,
  x_0: jax.Array,
  alphas_cumprod: jax.Array | np.ndarray,
  timesteps: jax.Array | np.ndarray,
  *,
  iterations: jax.Array | int = 1,
) -> jax.Array:
  """Finds the x_T from which `ddim()` over the same timesteps leads to x_0.

  Equation 13 of Song et al. 2021 (arXiv 2010.02502) solved towards the noise, as in
  Dhariwal and Nichol 2021 (appendix F) and section 2.3 of Composer. A step of `ddim`
  from t takes eps at x_t, which here is what is looked for. One iteration takes it at t
  from the x before, as diffusers' DDIMInverseScheduler does; the way back is nearer in
  more steps. More iterations, each a pass of the model, solve for the fixed point (Pan
  et al. 2023, arXiv 2309.04907), from which the way back is exact in any number of
  steps.

  Args:
    denoise: the (guided) model; of what it returns only eps is used.
    x_0: float32 (B, ...), images.
    alphas_cumprod: (T,), of the schedule the model was trained on.
    timesteps: int (N,), descending, as for `sample`.
    iterations: passes of the model at each timestep, 1 or more; may be traced.

  Returns:
    x at the first, noisiest timestep, float32 (B, ...).
  """
  alphas = jnp.asarray(alphas_cumprod, jnp.float32)
  t = jnp.asarray(timesteps, jnp.int32)[::-1]
  here = jnp.append(1.0, alphas[t[:-1]])

  def climb(x, step):
    t, here, there = step
    # Equation 13, multiplied by sqrt(there).
    grow = jnp.sqrt(there / here)
    share = jnp.sqrt(1 - there) - grow * jnp.sqrt(1 - here)

    def approach(_, guess):
      eps, _ = denoise(guess, t)
      return grow * x + share * eps

    return jax.lax.fori_loop(0, iterations, approach, x), None

  x_T, _ = jax.lax.scan(climb, x_0, (t, here, alphas[t]))  # pylint: disable=invalid-name
  return x_T
