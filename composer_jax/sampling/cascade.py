"""From noise to a finished image: base model, then upsamplers."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from composer_jax.conditions import by_name
from composer_jax.conditions.given import first_guess
from composer_jax.config import Config
from composer_jax.diffusion.process import (
  coefficients,
  to_eps_and_x0,
  velocity_around,
)
from composer_jax.diffusion.resolution import add_noise, enlarge
from composer_jax.diffusion.schedule import make_schedule
from composer_jax.models.unet import UNet
from composer_jax.sampling.ddim import ddim
from composer_jax.sampling.guidance import classifier_free, unguided
from composer_jax.sampling.loop import initial_noise, sample, timesteps


class Denoising:
  """One trained stage of the cascade, ready to sample.

  Attributes:
    config: that it was trained with.
    condition_shapes: stored shape of each condition it knows.
    weights: of its model; others of the same shapes may be put in their place.
  """

  def __init__(
    self,
    config: Config,
    condition_shapes: Mapping[str, tuple[int, ...]],
    graph: nnx.GraphDef,
    weights: nnx.State,
  ):
    self.config, self.condition_shapes = config, condition_shapes
    self.weights = weights
    self._sample = jax.jit(
      functools.partial(sample_stage, config, graph), static_argnames='steps'
    )

  def __call__(
    self,
    stored: Mapping[str, np.ndarray],
    kept: Mapping[str, np.ndarray],
    keys: jax.Array,
    low_res: jax.Array | None,
    *,
    steps: int | None = None,
    guidance: float | None = None,
    eta: float | None = None,
  ) -> jax.Array:
    """Samples float images (B, S, S, 3) in [-1, 1]; see `sample_stage`."""
    default = self.config.sample
    scale = default.guidance if guidance is None else guidance
    names = self.config.unet.conditions
    return self._sample(
      self.weights,
      {name: stored[name] for name in names},
      {name: kept[name] for name in names},
      keys,
      low_res,
      None if scale == 1 else scale,
      default.eta if eta is None else eta,
      steps=default.steps if steps is None else steps,
    )


def sample_stage(
  config: Config,
  graph: nnx.GraphDef,
  weights: nnx.State,
  stored: Mapping[str, jax.Array],
  kept: Mapping[str, jax.Array],
  keys: jax.Array,
  low_res: jax.Array | None,
  guidance: jax.Array | float | None,
  eta: jax.Array | float,
  *,
  steps: int,
) -> jax.Array:
  """Samples one stage; pure, to be jitted.

  Args:
    config: of the stage.
    graph: of its model.
    weights: of its model.
    stored: conditions by name (B, *shape).
    kept: by name, bool (B,).
    keys: random keys (B,), one an image.
    low_res: for an upsampler, images (B, s, s, 3) in [-1, 1].
    guidance: classifier-free guidance scale; None is that of 1, in half the time.
    eta: of DDIM.
    steps: of DDIM.

  Returns:
    float32 (B, S, S, 3) in [-1, 1].
  """
  shape, diffusion = config.unet, config.diffusion
  unet: UNet = nnx.merge(graph, weights)
  conditions = by_name(shape.conditions)
  table = make_schedule(diffusion.schedule, diffusion.num_steps).alphas_cumprod
  alphas_cumprod = jnp.asarray(table, jnp.float32)
  level = None
  if low_res is not None:
    keys, level_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
    noise = initial_noise(level_keys, low_res.shape[1:])
    level = jnp.full(len(low_res), config.sample.low_res_noise)
    low_res = enlarge(add_noise(low_res, level, noise), shape.image_size)

  def model(x_t, t, stored, kept):
    # Guidance doubles the batch; the low-resolution image is the same in both.
    repeat = len(x_t) // len(keys)
    enlarged = None if low_res is None else jnp.concatenate([low_res] * repeat)
    output = unet(
      x_t,
      t,
      stored,
      kept,
      low_res=enlarged,
      level=None if level is None else jnp.concatenate([level] * repeat),
    )
    output = output[..., :3]
    c = coefficients(alphas_cumprod, t, x_t.ndim)
    guess = first_guess(
      x_t,
      conditions,
      stored,
      kept,
      given_spread=diffusion.given_spread,
      low_res=enlarged,
      low_res_spread=diffusion.low_res_spread,
    )
    if guess is not None:
      output = velocity_around(guess.image, guess.spread, output, x_t, c)
    return to_eps_and_x0(diffusion.prediction, output, x_t, c)

  if guidance is None:
    denoise = unguided(model, stored, kept)
  else:
    denoise = classifier_free(model, stored, kept, guidance)
  x_0 = sample(
    denoise,
    ddim(eta),
    initial_noise(keys, (shape.image_size, shape.image_size, 3)),
    alphas_cumprod,
    timesteps(diffusion.num_steps, steps, 'trailing'),
    keys,
    clip=True,
  )
  return jnp.clip(x_0, -1, 1)


def run_cascade(
  stages: Sequence[Denoising],
  stored: Mapping[str, np.ndarray],
  kept: Mapping[str, np.ndarray],
  seeds: np.ndarray,
  *,
  steps: int | None = None,
  guidance: float | None = None,
  eta: float | None = None,
) -> np.ndarray:
  """Runs all stages; what is asked for (steps, guidance, eta) goes to the first.

  Returns:
    uint8 sRGB (B, S, S, 3).
  """
  keys = jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))
  images = None
  for index, stage in enumerate(stages):
    stage_keys = jax.vmap(lambda key, i=index: jax.random.fold_in(key, i))(keys)
    first = index == 0
    images = stage(
      stored,
      kept,
      stage_keys,
      images,
      steps=steps if first else None,
      guidance=guidance if first else None,
      eta=eta if first else None,
    )
  assert images is not None  # There is a base model at least.
  return np.asarray(jnp.round((images + 1) * 127.5)).astype(np.uint8)
