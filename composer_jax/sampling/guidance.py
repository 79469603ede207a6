"""How conditions steer: which sets of them, how strongly, and when."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array | np.ndarray
# (x_t (B, ...), t int32 (B,), stored, kept) -> eps, v or x_0, shaped as x_t.
Model = Callable[
  [jax.Array, jax.Array, Mapping[str, Any], Mapping[str, Any]],
  jax.Array,
]
# (x_t (B, ...), t int32 scalar) -> what the model predicts, guided.
Predictor = Callable[[jax.Array, jax.Array], jax.Array]


class Branch(NamedTuple):
  """One set of conditions, for each image of a batch.

  Attributes:
    stored: values by name, (B, *shape).
    kept: by name, (B,): the strength of the condition. True or 1 is as trained, False
      or 0 drops it, between them its embedding is scaled down, above 1 up.
    windows: by name, (B, 2): start and end of the part of the sampling in which the
      condition is kept, as shares of the diffusion time from noise (0) to image (1).
      A condition that is not there is kept throughout.
  """

  stored: Mapping[str, Array]
  kept: Mapping[str, Array]
  windows: Mapping[str, Array] = {}

  def kept_at(self, progress: jax.Array) -> dict[str, Array]:
    """The strengths at a share of the sampling."""
    kept = dict(self.kept)
    for name, window in self.windows.items():
      inside = (window[:, 0] <= progress) & (progress < window[:, 1])
      kept[name] = kept[name] * inside
    return kept

  def only(self, names: Collection[str]) -> Branch:
    """Without the conditions that are not named."""
    return Branch(*({n: x for n, x in part.items() if n in names} for part in self))

  def nothing(self) -> Branch:
    """The same values with every condition dropped."""
    dropped = {name: jnp.zeros_like(kept) for name, kept in self.kept.items()}
    return Branch(self.stored, dropped)


class Wish(NamedTuple):
  """What the images of a batch are to follow.

  Attributes:
    terms: J sets of conditions; the first is what can be asked for in one pass.
    weights: (J, B), of each term in each image; below 0 for what is to be avoided.
    base: what guidance leads away from; no conditions if None.
  """

  terms: tuple[Branch, ...]
  weights: Array
  base: Branch | None = None


class Guidance(NamedTuple):
  """How far to go from what is predicted without conditions; all may be traced.

  Attributes:
    scale: w, a scalar or one for each image (B,), counted as in GLIDE and Composer: 1
      is no guidance, 0 no conditions.
    interval: start and end (2,) of the part of the sampling that is guided, as in
      `Branch.windows`; elsewhere the scale is 1 (Kynkaanniemi et al. 2024).
    rescale: from 0 to 1, how far the spread of the guided prediction is brought back
      to that of the unguided one (Lin et al. 2024, section 3.4).
  """

  scale: jax.Array | float
  interval: jax.Array | tuple[float, ...] = (0.0, 1.0)
  rescale: jax.Array | float = 0.0


def follow(model: Model, branch: Branch, num_steps: int) -> Predictor:
  """The model's own prediction under one set of conditions, in one pass.

  Args:
    model: that predicts.
    branch: the conditions.
    num_steps: T of the diffusion process.
  """

  def predict(x_t: jax.Array, t: jax.Array) -> jax.Array:
    kept = branch.kept_at(_progress(t, num_steps))
    return model(x_t, jnp.full(len(x_t), t), branch.stored, kept)

  return predict


def guide(
  model: Model,
  wish: Wish,
  guidance: Guidance,
  num_steps: int,
) -> Predictor:
  """Guides a model from what a base predicts along the directions of several terms.

  base + w sum_j weights_j (term_j - base), all J + 1 predictions from one pass over a
  batch of (J + 1) B. With one term of weight 1 and a base without conditions that is
  classifier-free guidance (Ho and Salimans 2022, eq. 6); with a base of its own it is
  Composer's bidirectional guidance (section 2.3); with more terms it is composed
  guidance (Liu et al. 2022, eq. 11, and 13 for negative weights).

  As what a network predicts (eps, v or x_0) is affine in eps at a given x_t, and the
  weights with that of the base add up to one, guiding any of them guides all alike.

  Args:
    model: the conditional model.
    wish: J terms, their weights, and the base.
    guidance: how far to go.
    num_steps: T of the diffusion process.

  Returns:
    A predictor of x_t (B, ...) at a scalar t.
  """
  base = wish.terms[0].nothing() if wish.base is None else wish.base
  branches = [base, *wish.terms]
  stored = jax.tree.map(
    lambda *parts: jnp.concatenate(parts), *(b.stored for b in branches)
  )
  scale = jnp.asarray(guidance.scale)

  def predict(x_t: jax.Array, t: jax.Array) -> jax.Array:
    batch = len(x_t)
    if scale.shape not in ((), (batch,)):
      raise ValueError(
        f'Guidance has shape {scale.shape}; expected a scalar or one for each of'
        f' {batch} images.'
      )
    progress = _progress(t, num_steps)
    each = [b.kept_at(progress) for b in branches]
    kept = {name: jnp.concatenate([k[name] for k in each]) for name in each[0]}
    x_all = jnp.concatenate([x_t] * len(branches))
    output = model(x_all, jnp.full(len(x_all), t), stored, kept)
    without, *followed = jnp.split(output, len(branches))

    def column(value: jax.Array) -> jax.Array:
      return value.reshape(value.shape + (1,) * (x_t.ndim - value.ndim))

    direction = sum(
      column(weight) * (one - without)
      for weight, one in zip(wish.weights, followed, strict=True)
    )
    start, end = guidance.interval
    inside = (start <= progress) & (progress < end)
    guided = without + column(jnp.where(inside, scale, 1)) * direction
    spread = jnp.std(without + direction, range(1, x_t.ndim), keepdims=True)
    now = jnp.std(guided, range(1, x_t.ndim), keepdims=True)
    # Nothing is left of a prediction that is flat, whatever it is divided by.
    factor = spread / jnp.maximum(now, 1e-12)
    return guided * (1 + guidance.rescale * (factor - 1))

  return predict


def _progress(t: jax.Array, num_steps: int) -> jax.Array:
  """Share of the diffusion time that lies behind: 0 at t = T - 1."""
  # As 1 - (t + 1) / T, compilers round it to below 0, before all windows begin.
  return (num_steps - 1 - t) / num_steps
