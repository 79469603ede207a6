"""From noise to a finished image: base model, then upsamplers."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from composer_jax.conditions import by_name
from composer_jax.conditions.given import first_guess
from composer_jax.config import Config, SampleConfig
from composer_jax.diffusion.degradation import DEGRADATIONS
from composer_jax.diffusion.process import (
  coefficients,
  to_eps_and_x0,
  velocity_around,
)
from composer_jax.diffusion.resolution import LEVELS, enlarge, to_uint8
from composer_jax.diffusion.schedule import make_schedule
from composer_jax.models.unet import UNet
from composer_jax.sampling.ddim import ddim
from composer_jax.sampling.ddpm import ddpm
from composer_jax.sampling.dpm_solver import dpm_solver
from composer_jax.sampling.guidance import Guidance, Wish, follow, guide
from composer_jax.sampling.inversion import invert
from composer_jax.sampling.loop import (
  Denoiser,
  Sampler,
  initial_noise,
  sample,
  timesteps,
)
from composer_jax.sampling.threshold import dynamic, static
from composer_jax.sampling.tiles import in_tiles
from composer_jax.sampling.watching import Relay, Watch
from composer_jax.sharding.rules import laid_out

CEILING = 2.0
"""Dynamic thresholding divides by at most this; data are within 1."""


class Knobs(NamedTuple):
  """Settings of the sampling that change without compiling anew.

  Attributes:
    guidance: its scale and more.
    eta: of DDIM.
    percentile: of the dynamic threshold.
    timesteps: int32 (T,), T of the schedule, of which the first are meant; None if the
      plan has them.
    steps: how many of them, int32 ().
  """

  guidance: Guidance
  eta: float
  percentile: float
  timesteps: np.ndarray | None = None
  steps: np.ndarray | None = None


class Plan(NamedTuple):
  """Settings of the sampling that are compiled in.

  Attributes:
    sampler: its name.
    timesteps: descending; None if they are among the knobs.
    guided: False for one pass over the first term alone.
    dynamic: whether the threshold is.
    tile: side of the tiles that the network sees.
    overlap: of neighbouring tiles.
    mesh: whose devices share the batch and the rows of images; one device if None.
    relay: that the program calls after each step; None for a program without.
  """

  sampler: str
  timesteps: tuple[int, ...] | None
  guided: bool
  dynamic: bool
  tile: int
  overlap: int
  mesh: Mesh | None
  relay: Relay | None = None


# (steps done, steps in all, x_0 float (B, S, S, 3)) -> whether to go on.
Watched = Callable[[int, int, np.ndarray], bool]


class Denoising:
  """One trained stage of the cascade, ready to sample.

  Attributes:
    config: that it was trained with.
    condition_shapes: stored shape of each condition it knows.
    weights: of its model; others of the same shapes may be put in their place.
    mesh: that the weights are on; its devices share the batch and the images' rows.
  """

  def __init__(
    self,
    config: Config,
    condition_shapes: Mapping[str, tuple[int, ...]],
    graph: nnx.GraphDef,
    weights: nnx.State,
    mesh: Mesh | None = None,
  ):
    self.config, self.condition_shapes = config, condition_shapes
    self.weights, self.mesh = weights, mesh
    self._relay = Relay()
    self._sample, self._invert = (
      jax.jit(functools.partial(function, config, graph), static_argnames='plan')
      for function in (sample_stage, invert_stage)
    )

  def __call__(
    self,
    wish: Wish,
    keys: jax.Array,
    low_res: jax.Array | np.ndarray | None = None,
    settings: SampleConfig | None = None,
    start: jax.Array | np.ndarray | None = None,
    watch: Watched | None = None,
  ) -> jax.Array:
    """Samples float images (B, S, S, 3) in [-1, 1]; see `sample_stage`.

    Conditions that the stage does not know are left out. At guidance 1 an upsampler
    follows the first term alone: what is to be avoided is the base model's affair.

    Raises:
      Cancelled: `watch` returned False. It is given the number of steps done and of
        all, and float x_0 (B, S, S, 3) as predicted; see `sample` for what it costs.
    """
    known, knobs, plan = self._prepare(wish, settings)
    if watch is None:
      return self._sample(self.weights, known, keys, low_res, knobs, start, plan=plan)
    # Nothing of a watched program is kept on disk, so one serves all numbers of steps.
    t = np.array(plan.timesteps, np.int32)
    padded = np.full(self.config.diffusion.num_steps, -1, np.int32)
    padded[: len(t)] = t
    knobs = knobs._replace(timesteps=padded, steps=np.asarray(len(t), np.int32))
    plan = plan._replace(timesteps=None, relay=self._relay)

    def step_watch(index: int, x_0: np.ndarray) -> bool:
      return watch(index + 1, len(t), x_0)

    with self._relay.to(step_watch):
      made = self._sample(self.weights, known, keys, low_res, knobs, start, plan=plan)
      return jax.block_until_ready(made)

  def traced(
    self,
    weights: nnx.State,
    wish: Wish,
    keys: jax.Array,
    low_res: jax.Array | None,
    guidance: jax.Array | None,
  ) -> jax.Array:
    """The same with given weights and guidance, as part of a program on one device."""
    known, knobs, plan = self._prepare(wish, None)
    plan = plan._replace(mesh=None)
    if guidance is not None:
      plan = plan._replace(guided=True)
      knobs = knobs._replace(guidance=knobs.guidance._replace(scale=guidance))
    return self._sample(weights, known, keys, low_res, knobs, None, plan=plan)

  def lower(
    self,
    wish: Wish,
    keys: jax.Array,
    low_res: jax.Array | np.ndarray | None = None,
    settings: SampleConfig | None = None,
  ) -> jax.stages.Lowered:
    """The program of a call, to be compiled: to see what it needs without running it.

    Shapes are enough instead of arrays.
    """
    known, knobs, plan = self._prepare(wish, settings)
    arguments = (self.weights, known, keys, low_res, knobs, None)
    return self._sample.lower(*arguments, plan=plan)

  def invert(
    self,
    wish: Wish,
    images: jax.Array,
    keys: jax.Array,
    low_res: jax.Array | np.ndarray | None = None,
    settings: SampleConfig | None = None,
  ) -> jax.Array:
    """The noise that images come from under a wish; see `invert_stage`."""
    known, knobs, plan = self._prepare(wish, settings)
    return self._invert(self.weights, known, keys, low_res, knobs, images, plan=plan)

  def _prepare(
    self, wish: Wish, settings: SampleConfig | None
  ) -> tuple[Wish, Knobs, Plan]:
    """The wish as far as the stage knows it, and the settings in two parts."""
    settings = self.config.sample if settings is None else settings
    dataclasses.replace(self.config, sample=settings)  # Refuses what does not fit.
    names = self.config.unet.conditions
    in_parts = 0 < settings.tile < self.config.unet.image_size
    alone = len(wish.terms) == 1 and wish.base is None
    steps = timesteps(self.config.diffusion.num_steps, settings.steps, settings.spacing)
    plan = Plan(
      sampler=settings.sampler,
      timesteps=tuple(steps.tolist()),
      guided=settings.guidance != 1 or not (alone or self.config.unet.low_res_size),
      dynamic=settings.percentile > 0,
      tile=settings.tile if in_parts else self.config.unet.image_size,
      overlap=settings.overlap if in_parts else 0,
      mesh=self.mesh,
    )
    knobs = Knobs(
      Guidance(settings.guidance, settings.interval, settings.rescale),
      settings.eta,
      settings.percentile,
    )
    terms = wish.terms if plan.guided else wish.terms[:1]
    known = Wish(
      tuple(term.only(names) for term in terms),
      wish.weights[: len(terms)],
      wish.base.only(names) if wish.base and plan.guided else None,
    )
    return known, knobs, plan


def _sampler(plan: Plan, knobs: Knobs) -> Sampler:
  if plan.sampler == 'ddim':
    return ddim(knobs.eta)
  return {'ddpm': ddpm, 'dpm_solver': dpm_solver}[plan.sampler]()


def sample_stage(
  config: Config,
  graph: nnx.GraphDef,
  weights: nnx.State,
  wish: Wish,
  keys: jax.Array,
  low_res: jax.Array | None,
  knobs: Knobs,
  start: jax.Array | None = None,
  *,
  plan: Plan,
) -> jax.Array:
  """Samples one stage; pure, to be jitted.

  Args:
    config: of the stage.
    graph: of its model.
    weights: of its model.
    wish: what B images are to follow.
    keys: random keys (B,), one an image.
    low_res: for an upsampler, images (B, s, s, 3) in [-1, 1].
    knobs: settings that may be traced.
    start: x_T (B, S, S, 3), such as `invert_stage` gives it; drawn if None.
    plan: settings that are not.

  Returns:
    float32 (B, S, S, 3) in [-1, 1].
  """
  run = _reverse_process(config, graph, weights, wish, keys, low_res, knobs, plan)
  size = config.unet.image_size
  t = knobs.timesteps if plan.timesteps is None else np.array(plan.timesteps)
  assert t is not None  # One of them has them.
  x_0 = sample(
    run.denoise,
    _sampler(plan, knobs),
    initial_noise(run.keys, (size, size, 3)) if start is None else start,
    run.alphas_cumprod,
    t,
    run.keys,
    count=knobs.steps,
    threshold=dynamic(knobs.percentile, CEILING) if plan.dynamic else static(),
    watch=plan.relay,
  )
  return jnp.clip(x_0, -1, 1)


def invert_stage(
  config: Config,
  graph: nnx.GraphDef,
  weights: nnx.State,
  wish: Wish,
  keys: jax.Array,
  low_res: jax.Array | None,
  knobs: Knobs,
  images: jax.Array,
  *,
  plan: Plan,
) -> jax.Array:
  """DDIM inversion of one stage (Composer, section 2.3); pure, to be jitted.

  Args:
    config: of the stage.
    graph: of its model.
    weights: of its model.
    wish: what the images follow.
    keys: random keys (B,), of an upsampler's degradation.
    low_res: for an upsampler, images (B, s, s, 3) in [-1, 1].
    knobs: settings that may be traced.
    images: x_0 (B, S, S, 3) in [-1, 1].
    plan: settings that are not.

  Returns:
    x_T, float32 (B, S, S, 3): `sample_stage` starts from it to give the images back
    under the same wish, with DDIM at eta 0, or others under another.
  """
  run = _reverse_process(config, graph, weights, wish, keys, low_res, knobs, plan)
  return invert(run.denoise, images, run.alphas_cumprod, np.array(plan.timesteps))


class _Reverse(NamedTuple):
  denoise: Denoiser
  alphas_cumprod: jax.Array
  keys: jax.Array


def _reverse_process(
  config: Config,
  graph: nnx.GraphDef,
  weights: nnx.State,
  wish: Wish,
  keys: jax.Array,
  low_res: jax.Array | None,
  knobs: Knobs,
  plan: Plan,
) -> _Reverse:
  """The guided model of one stage, its schedule, and the keys that are left."""
  shape, diffusion = config.unet, config.diffusion
  unet: UNet = nnx.merge(graph, weights)
  conditions = by_name(shape.conditions)
  table = make_schedule(diffusion.schedule, diffusion.num_steps).alphas_cumprod
  alphas_cumprod = jnp.asarray(table, jnp.float32)
  level = None
  if low_res is not None:
    keys, level_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
    level = jnp.full(len(low_res), config.sample.low_res_level)
    degrade = DEGRADATIONS[diffusion.low_res_degradation]
    low_res = enlarge(degrade(level_keys, low_res, level / LEVELS), shape.image_size)

  def model(x_t, t, stored, kept):
    # Guidance repeats the batch; the low-resolution image is the same in each.
    repeat = len(x_t) // len(keys)
    enlarged = None if low_res is None else jnp.concatenate([low_res] * repeat)
    levels = None if level is None else jnp.concatenate([level] * repeat)
    c = coefficients(alphas_cumprod, t, x_t.ndim)

    def network(images):
      x_t, enlarged, maps = images
      given = {**stored, **maps}
      with laid_out(plan.mesh, config.mesh.rules):
        output = unet(x_t, t, given, kept, c=c, low_res=enlarged, level=levels)
      return output[..., :3]

    maps = {c.name: stored[c.name] for c in conditions if c.local and c.name in stored}
    images = (x_t, enlarged, maps)
    output = in_tiles(network, images, shape.image_size, plan.tile, plan.overlap)
    guess = first_guess(
      x_t,
      conditions,
      stored,
      kept,
      given_spread=diffusion.given_spread,
      low_res=enlarged,
      low_res_spread=diffusion.low_res_spread,
      details=shape.enlargement if diffusion.low_res_details else 0,
    )
    if guess is None:
      return output
    return velocity_around(guess.image, guess.spread, output, x_t, c)

  if plan.guided:
    predict = guide(model, wish, knobs.guidance, diffusion.num_steps)
  else:
    predict = follow(model, wish.terms[0], diffusion.num_steps)

  def denoise(x_t, t):
    c = coefficients(alphas_cumprod, t, x_t.ndim)
    return to_eps_and_x0(diffusion.prediction, predict(x_t, t), x_t, c)

  return _Reverse(denoise, alphas_cumprod, keys)


def trace_cascade(
  stages: Sequence[Denoising],
  weights: Sequence[nnx.State],
  wish: Wish,
  seeds: jax.Array,
  guidance: jax.Array,
) -> jax.Array:
  """What `run_cascade` makes, as one pure function; `guidance` is the base model's."""
  keys = jax.vmap(jax.random.key)(seeds)
  images: jax.Array | None = None
  for index, (stage, own) in enumerate(zip(stages, weights, strict=True)):
    stage_keys = jax.vmap(lambda key, i=index: jax.random.fold_in(key, i))(keys)
    images = stage.traced(own, wish, stage_keys, images, None if index else guidance)
  assert images is not None  # There is a base model at least.
  return jnp.round((images + 1) * 127.5).astype(jnp.uint8)


def run_cascade(
  stages: Sequence[Denoising],
  wish: Wish,
  seeds: np.ndarray,
  settings: Sequence[SampleConfig | None] | None = None,
  start: np.ndarray | None = None,
  watch: Watch | None = None,
) -> np.ndarray:
  """Runs all stages.

  Args:
    stages: base model, then upsamplers.
    wish: what the images are to follow.
    seeds: integers (B,).
    settings: of each stage; its own if None.
    start: x_T of the base model; drawn if None.
    watch: is called after each step of each stage, with the images as they are
      predicted in it.

  Returns:
    uint8 sRGB (B, S, S, 3).

  Raises:
    Cancelled: `watch` returned False.
  """
  keys = jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))
  images: np.ndarray | None = None
  asked = settings or [None] * len(stages)
  for index, (stage, own) in enumerate(zip(stages, asked, strict=True)):
    stage_keys = jax.vmap(lambda key, i=index: jax.random.fold_in(key, i))(keys)
    made = stage(
      wish,
      stage_keys,
      images,
      own,
      None if index else start,
      _of_stage(watch, index) if watch else None,
    )
    images = np.asarray(made)  # Each stage may have the devices in its own order.
  assert images is not None  # There is a base model at least.
  return to_uint8(images)


def _of_stage(watch: Watch, stage: int) -> Watched:
  def watched(step: int, steps: int, x_0: np.ndarray) -> bool:
    return watch(stage, step, steps, to_uint8(x_0))

  return watched
