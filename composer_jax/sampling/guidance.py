"""How the conditions steer: as the model predicts, or with classifier-free guidance."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from composer_jax.sampling.loop import Denoiser

# (x_t (B, ...), t int32 (B,), conditions, kept) -> (eps, x_0), both shaped as x_t.
Model = Callable[
  [jax.Array, jax.Array, Mapping[str, jax.Array], Mapping[str, jax.Array]],
  tuple[jax.Array, jax.Array],
]


def unguided(
  model: Model,
  conditions: Mapping[str, jax.Array],
  kept: Mapping[str, jax.Array],
) -> Denoiser:
  """The model's own prediction, as guidance 1 gives, at half its cost."""

  def denoise(x_t: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
    return model(x_t, jnp.full(len(x_t), t), conditions, kept)

  return denoise


def classifier_free(
  model: Model,
  conditions: Mapping[str, jax.Array],
  kept: Mapping[str, jax.Array],
  guidance: jax.Array | float,
) -> Denoiser:
  """Guides a model away from its unconditional prediction.

  eps = eps_without + w (eps_with - eps_without): Ho and Salimans 2022, eq. 6, with
  w counted as in GLIDE and Composer, so that 1 is no guidance and 0 no conditions.
  Both predictions come from one pass over a batch of 2 B.

  Args:
    model: the conditional model.
    conditions: stored values by name, (B, *shape).
    kept: by name, bool (B,): which conditions each image follows.
    guidance: w, a scalar or one for each image (B,); may be traced.

  Returns:
    A denoiser of x_t (B, ...) at a scalar t. It does not clip x_0.
  """
  w = jnp.asarray(guidance)

  def denoise(x_t: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
    batch = len(x_t)
    if w.shape not in ((), (batch,)):
      raise ValueError(
        f'Guidance has shape {w.shape}; expected a scalar or one for each of'
        f' {batch} images.'
      )
    both = jax.tree.map(lambda value: jnp.concatenate([value, value]), conditions)
    both_kept = {
      name: jnp.concatenate([value, jnp.zeros_like(value)])
      for name, value in kept.items()
    }
    x_both, t_both = jnp.concatenate([x_t, x_t]), jnp.full((2 * batch,), t)
    scale = w.reshape(w.shape + (1,) * (x_t.ndim - w.ndim))

    def guide(prediction):
      with_all, without = jnp.split(prediction, 2)
      return without + scale * (with_all - without)

    # x_0 is affine in eps at a given x_t and the weights w and 1 - w add up to one,
    # so guiding both alike keeps x_t = sqrt(a) x_0 + sqrt(1 - a) eps.
    eps, x_0 = model(x_both, t_both, both, both_kept)
    return guide(eps), guide(x_0)

  return denoise
