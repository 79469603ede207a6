"""From captions to the image embeddings that they may describe."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from composer_jax.conditions import by_name
from composer_jax.config import Config
from composer_jax.diffusion.process import coefficients, to_eps_and_x0
from composer_jax.diffusion.schedule import make_schedule
from composer_jax.models.prior import Prior
from composer_jax.sampling.ddim import ddim
from composer_jax.sampling.guidance import Branch, Guidance, Wish, guide
from composer_jax.sampling.loop import initial_noise, sample, timesteps
from composer_jax.sharding.rules import laid_out


class Imagining:
  """A trained prior, ready to sample.

  Attributes:
    config: that it was trained with.

  The weights may be on a mesh, whose devices then share the batch.
  """

  def __init__(
    self,
    config: Config,
    graph: nnx.GraphDef,
    weights: nnx.State,
    mesh: Mesh | None = None,
  ):
    self.config, self._weights = config, weights
    self._sample = jax.jit(functools.partial(sample_prior, config, graph, mesh))

  def __call__(
    self, captions: np.ndarray, seeds: np.ndarray, blank: np.ndarray | None = None
  ) -> np.ndarray:
    """Semantics of captions.

    Args:
      captions: as stored, (B, T + 1, D).
      seeds: integers (B,); others give other images that the caption describes.
      blank: the caption that guidance leads away from, (T + 1, D); if None, none.

    Returns:
      As stored: float16 (B, D).
    """
    keys = jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))
    (semantics,) = by_name(['semantics'])
    dtype = semantics.spec(0).dtype
    made = self._sample(self._weights, captions, keys, blank)
    return np.asarray(made).astype(dtype)

  def lower(
    self, captions: jax.ShapeDtypeStruct, keys: jax.ShapeDtypeStruct
  ) -> jax.stages.Lowered:
    """The program of a call, to be compiled without running it."""
    return self._sample.lower(self._weights, captions, keys)


def sample_prior(
  config: Config,
  graph: nnx.GraphDef,
  mesh: Mesh | None,
  weights: nnx.State,
  captions: jax.Array,
  keys: jax.Array,
  blank: jax.Array | None = None,
) -> jax.Array:
  """Samples embeddings by DDIM; pure, to be jitted.

  Args:
    config: of the prior.
    graph: of its model.
    mesh: whose devices share the batch; one device if None.
    weights: of its model.
    captions: as stored, (B, T + 1, D).
    keys: random keys (B,), one an image.
    blank: the caption that guidance leads away from, (T + 1, D); if None, none.

  Returns:
    float32 (B, D), of the scale of those that the prior was trained with.
  """
  diffusion, settings = config.diffusion, config.sample
  prior: Prior = nnx.merge(graph, weights)
  (caption,) = by_name(['caption'])
  table = make_schedule(diffusion.schedule, diffusion.num_steps).alphas_cumprod
  alphas_cumprod = jnp.asarray(table, jnp.float32)

  def model(x_t: jax.Array, t: jax.Array, stored: Any, kept: Any) -> jax.Array:
    text = stored[caption.name].astype(jnp.float32)
    with laid_out(mesh, config.mesh.rules):
      return prior(x_t, t, text[:, :-1], text[:, -1], None, kept[caption.name])

  branch = Branch({caption.name: captions}, {caption.name: caption.present(captions)})
  base = None
  if blank is not None:
    repeated = jnp.broadcast_to(blank, captions.shape)
    base = Branch({caption.name: repeated}, {caption.name: jnp.ones(len(keys), bool)})
  wish = Wish((branch,), jnp.ones((1, len(keys))), base)
  guidance = Guidance(settings.guidance, settings.interval, settings.rescale)
  predict = guide(model, wish, guidance, diffusion.num_steps)

  def denoise(x_t: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
    c = coefficients(alphas_cumprod, t, x_t.ndim)
    return to_eps_and_x0(diffusion.prediction, predict(x_t, t), x_t, c)

  x_0 = sample(
    denoise,
    ddim(settings.eta),
    initial_noise(keys, (config.prior.embed_width,)),
    alphas_cumprod,
    timesteps(diffusion.num_steps, settings.steps, settings.spacing),
    keys,
  )
  return prior.denormalise(x_0)
