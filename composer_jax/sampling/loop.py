"""The sampling loop: from x_T to x_0 in one compiled loop, whatever the sampler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback

from composer_jax.diffusion.process import coefficients, to_eps_and_x0
from composer_jax.sampling.watching import StepWatch

Spacing = Literal['leading', 'trailing', 'linspace']


class Step(NamedTuple):
  """One step of the reverse process, from t to an earlier timestep.

  Attributes:
    t: int32 scalar, the timestep of x_t.
    previous_t: int32 scalar, the timestep to go to; -1 is the clean image.
    alpha_cumprod: float32 scalar at t.
    previous_alpha_cumprod: float32 scalar at `previous_t`; 1 for the clean image,
      which diffusers calls `set_alpha_to_one=True`.
    last_alpha_cumprod: float32 scalar at the timestep visited before t; in the first
      step at t itself.
  """

  t: jax.Array
  previous_t: jax.Array
  alpha_cumprod: jax.Array
  previous_alpha_cumprod: jax.Array
  last_alpha_cumprod: jax.Array


class Estimate(NamedTuple):
  """What is predicted from x_t, each shaped as x_t.

  Attributes:
    eps: the noise in it.
    x_0: the clean image.
    last_x_0: the clean image as it was predicted one step earlier; in the first step
      `x_0` itself.
  """

  eps: jax.Array
  x_0: jax.Array
  last_x_0: jax.Array


# (x_t (B, ...), t int32 scalar) -> (eps, x_0), both shaped as x_t.
Denoiser = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
# (x_t, estimate, step, noise) -> x at step.previous_t; `noise` is N(0, I) as x_t.
Sampler = Callable[[jax.Array, Estimate, Step, jax.Array], jax.Array]
# A predicted x_0 (B, ...) -> one within the range of the data.
Threshold = Callable[[jax.Array], jax.Array]
# (x_t -> eps, x_t, step, keys (B,) of this step) -> another x at the same step.t.
Corrector = Callable[
  [Callable[[jax.Array], jax.Array], jax.Array, Step, jax.Array], jax.Array
]

_CORRECTION = 2**31
"""The draw of each key that begets those of a corrector; no run has as many steps."""


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


def draw(keys: jax.Array, index: jax.Array | int, shape: tuple[int, ...]) -> jax.Array:
  """Draws float32 (B, *shape) from N(0, I), number `index` of each of the keys (B,).

  Each image has a key, so that its noise does not depend on who shares its batch.
  """

  def draw_one(key):
    return jax.random.normal(jax.random.fold_in(key, index), shape, jnp.float32)

  return jax.vmap(draw_one)(keys)


def initial_noise(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Draws x_T: float32 (B, *shape), one image for each of the keys (B,)."""
  return draw(keys, 0, shape)


def sample(
  denoise: Denoiser,
  sampler: Sampler,
  x_T: jax.Array,  # pylint: disable=invalid-name
  alphas_cumprod: jax.Array | np.ndarray,
  timesteps: jax.Array | np.ndarray,
  keys: jax.Array,
  *,
  threshold: Threshold | None = None,
  corrector: Corrector | None = None,
  watch: StepWatch | None = None,
  count: jax.Array | np.ndarray | None = None,
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
    threshold: brings the predicted x_0 into the range of the data, such as `static()`;
      eps is derived anew from it, as GLIDE does. In diffusers that is `clip_sample`
      or `thresholding` in the scheduler together with
      `use_clipped_model_output=True` in each step of DDIM.
    corrector: what to do at each timestep before leaving it, such as
      `langevin(steps, size)`.
    watch: is called after each step with its index and the predicted x_0; the loop
      ends early where it returns False. x_0 is the same to the bit with it as
      without. It costs a copy of x_0 to the host and a wait for the answer in each
      step, and is compiled in: a program with it is another than one without, a
      program with another is a third, and none is kept in JAX's cache on disk.
    count: of a watched run, int32 (): so many of the timesteps are meant, and -1
      follows. It may be traced, so that one program serves any number; all if None.

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
  last_alphas = alphas[jnp.append(t[:1], t[:-1])]
  steps = Step(t, previous_t, alphas[t], previous_alphas, last_alphas)

  def estimate(x_t, t):
    eps, x_0 = denoise(x_t, t)
    if threshold is not None:
      c = coefficients(alphas, t, x_t.ndim)
      eps, x_0 = to_eps_and_x0('x0', threshold(x_0), x_t, c)
    return eps, x_0

  def advance(carry, now):
    x_t, last_x_0 = carry
    step, index = now
    if corrector is not None:
      own = fold_in(fold_in(keys, _CORRECTION), index)
      x_t = corrector(lambda x: estimate(x, step.t)[0], x_t, step, own)
    eps, x_0 = estimate(x_t, step.t)
    last_x_0 = jnp.where(index == 1, x_0, last_x_0)
    noise = draw(keys, index, x_t.shape[1:])
    return (sampler(x_t, Estimate(eps, x_0, last_x_0), step, noise), x_0), None

  # Draw 0 of each key is the initial noise.
  index = jnp.arange(1, len(t) + 1)
  fold_in = jax.vmap(jax.random.fold_in, in_axes=(0, None))
  begin = (x_T, jnp.zeros_like(x_T))
  if watch is None:
    (x_0, _), _ = jax.lax.scan(advance, begin, (steps, index))
    return x_0

  def advance_watched(state):
    done, _, carry = state
    now = jax.tree.map(lambda each: each[done], (steps, index))
    carry, _ = advance(carry, now)
    # No need for `ordered`: the next step waits for the answer of this one.
    going = io_callback(watch, jax.ShapeDtypeStruct((), bool), done, carry[1])
    return done + 1, going, carry

  def unfinished(state):
    done, going, _ = state
    return going & (done < (len(t) if count is None else count))

  *_, (x_0, _) = jax.lax.while_loop(
    unfinished, advance_watched, (jnp.int32(0), jnp.bool_(True), begin)
  )
  return x_0
