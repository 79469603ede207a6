"""The sampling loop: from x_T to x_0 in one compiled scan, whatever the sampler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from composer_jax.diffusion.process import coefficients, to_eps_and_x0

Spacing = Literal['leading', 'trailing', 'linspace']


class Step(NamedTuple):
  """One step of the reverse process, from t to an earlier timestep.

  Attributes:
    t: int32 scalar, the timestep of x_t.
    previous_t: int32 scalar, the timestep to go to; -1 is the clean image.
    alpha_cumprod: float32 scalar at t.
    previous_alpha_cumprod: float32 scalar at `previous_t`; 1 for the clean image,
      which diffusers calls `set_alpha_to_one=True`.
  """

  t: jax.Array
  previous_t: jax.Array
  alpha_cumprod: jax.Array
  previous_alpha_cumprod: jax.Array


# (x_t (B, ...), t int32 scalar) -> (eps, x_0), both shaped as x_t.
Denoiser = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
# (x_t, eps, x_0, step, noise) -> x at step.previous_t; `noise` is N(0, I) as x_t.
Sampler = Callable[[jax.Array, jax.Array, jax.Array, Step, jax.Array], jax.Array]


def timesteps(num_train: int, num_sample: int, spacing: Spacing) -> np.ndarray:
  """Chooses the timesteps to visit (Lin et al. 2024, table 2).

  Args:
    num_train: T, number of steps of the schedule.
    num_sample: N, number of steps to visit.
    spacing: `leading` counts up from 0 in whole strides and never reaches T - 1,
      `trailing` counts down from T - 1 and never reaches 0, `linspace` spans both
      ends. One `leading` or `linspace` step is t = 0, from where no noise can be
      removed.

  Returns:
    int32 (N,), strictly descending, in [0, T).

  Raises:
    ValueError: N is not in [1, T] or the spacing is unknown.
  """
  if not 1 <= num_sample <= num_train:
    raise ValueError(
      f'{num_sample} sampling steps asked for; expected 1 to {num_train}, the number'
      ' of training steps.'
    )
  steps: np.ndarray
  if spacing == 'leading':
    steps = np.arange(num_sample)[::-1] * (num_train // num_sample)
  elif spacing == 'trailing':
    # Rounding errors can let np.arange run one step too far, to t = -1.
    steps = np.arange(num_train, 0, -num_train / num_sample)[:num_sample].round() - 1
  elif spacing == 'linspace':
    steps = np.linspace(0, num_train - 1, num_sample).round()[::-1]
  else:
    raise ValueError(
      f'Timestep spacing is {spacing!r}; expected "leading", "trailing" or "linspace".'
    )
  return steps.astype(np.int32)


def _draw(keys: jax.Array, index: jax.Array | int, shape: tuple[int, ...]) -> jax.Array:
  # One key an image, so that its noise does not depend on who shares its batch.
  def draw_one(key):
    return jax.random.normal(jax.random.fold_in(key, index), shape, jnp.float32)

  return jax.vmap(draw_one)(keys)


def initial_noise(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Draws x_T: float32 (B, *shape), one image for each of the keys (B,)."""
  return _draw(keys, 0, shape)


def sample(
  denoise: Denoiser,
  sampler: Sampler,
  x_T: jax.Array,  # pylint: disable=invalid-name
  alphas_cumprod: jax.Array | np.ndarray,
  timesteps: jax.Array | np.ndarray,
  keys: jax.Array,
  *,
  clip: bool = False,
) -> jax.Array:
  """Runs the reverse process.

  Args:
    denoise: the (guided) model.
    sampler: how to step, such as `ddim(eta)`.
    x_T: float32 (B, ...), noise at the first timestep.
    alphas_cumprod: (T,), of the schedule the model was trained on.
    timesteps: int (N,), descending.
    keys: random keys (B,), one an image. Image i is the same in every batch in
      which it comes with the same key, as far as `denoise` treats images alone.
    clip: clips the predicted x_0 to [-1, 1] and derives eps anew from it, as GLIDE
      does; in diffusers that is `clip_sample=True` in the scheduler together with
      `use_clipped_model_output=True` in each step.

  Returns:
    x_0, float32 (B, ...).

  Raises:
    ValueError: the number of keys is not that of images.
  """
  if len(keys) != len(x_T):
    raise ValueError(f'{len(keys)} keys for {len(x_T)} images; expected one for each.')
  alphas = jnp.asarray(alphas_cumprod, jnp.float32)
  t = jnp.asarray(timesteps, jnp.int32)
  previous_t = jnp.append(t[1:], -1)
  previous_alphas = jnp.where(previous_t < 0, 1.0, alphas[previous_t])
  steps = Step(t, previous_t, alphas[t], previous_alphas)

  def advance(x_t, now):
    step, index = now
    eps, x_0 = denoise(x_t, step.t)
    if clip:
      x_0 = jnp.clip(x_0, -1, 1)
      c = coefficients(alphas, step.t, x_t.ndim)
      eps, x_0 = to_eps_and_x0('x0', x_0, x_t, c)
    noise = _draw(keys, index, x_t.shape[1:])
    return sampler(x_t, eps, x_0, step, noise), None

  # Draw 0 of each key is the initial noise.
  index = jnp.arange(1, len(t) + 1)
  x_0, _ = jax.lax.scan(advance, x_T, (steps, index))
  return x_0
