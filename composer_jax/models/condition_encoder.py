"""Turns whatever conditions there are into what the U-Net takes (Composer, 2.2)."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from composer_jax.conditions import by_name
from composer_jax.models.layers import Conv3x3, Dense, fold


class Encoded(NamedTuple):
  """The three ways in: each is None where no condition uses it.

  Attributes:
    embedding: (B, E), added to the timestep embedding.
    context: (B, T, D), tokens to attend to.
    feature_map: (B, G, G, K), concatenated to x_t along channels.
  """

  embedding: jax.Array | None
  context: jax.Array | None
  feature_map: jax.Array | None


def _keep(x: jax.Array, kept: jax.Array) -> jax.Array:
  """Zeroes the samples that dropped a condition, scales those of another strength."""
  strength = kept.reshape(-1, *[1] * (x.ndim - 1))
  return jnp.where(strength != 0, x * strength, 0)


class LocalStack(nnx.Module):
  """Convolutions from one condition's map to the common embedding.

  c -> h -> h -> k with SiLU between; the public video model of the paper's authors
  has k = 8 and h = 4k. Maps finer than the grid are folded to it first, so that no
  detail is lost.
  """

  def __init__(
    self,
    channels: int,
    hidden: int,
    width: int,
    *,
    rngs: nnx.Rngs,
  ):
    self.layers = nnx.List(
      [
        Conv3x3(inputs, outputs, rngs=rngs)
        for inputs, outputs in ((channels, hidden), (hidden, hidden), (hidden, width))
      ]
    )

  def __call__(self, x: jax.Array) -> jax.Array:
    first, second, last = self.layers
    return last(nnx.silu(second(nnx.silu(first(x)))))


class GlobalProjection(nnx.Module):
  """From one condition's vector and tokens to timestep embedding and context."""

  def __init__(
    self,
    vector: int,
    tokens: int,
    extra: int,
    embedding: int,
    context: int,
    *,
    rngs: nnx.Rngs,
  ):
    self.vector_in = Dense(vector, embedding, rngs=rngs)
    self.vector_out = Dense(embedding, embedding, rngs=rngs)
    self.extra = extra
    self.to_extra = Dense(vector, extra * context, rngs=rngs) if extra else None
    self.to_context = Dense(tokens, context, rngs=rngs) if tokens else None

  def __call__(
    self, vector: jax.Array, tokens: jax.Array | None
  ) -> tuple[jax.Array, list[jax.Array]]:
    embedding = self.vector_out(nnx.silu(self.vector_in(vector)))
    context = []
    if self.to_context is not None and tokens is not None:
      context.append(self.to_context(tokens))
    if self.to_extra is not None:
      projected = self.to_extra(vector)
      context.append(projected.reshape(vector.shape[0], self.extra, -1))
    return embedding, context


class ConditionEncoder(nnx.Module):
  """Encodes a batch of stored conditions.

  Args:
    names: the conditions it knows.
    shapes: the stored shape of each, without the batch axis.
    grid: side G of the map at which the U-Net starts.
    embedding: width E of the timestep embedding.
    context: width D of the context tokens.
    local_hidden: channels inside the stacks of the local conditions.
    local_width: channels K of the common embedding of the local conditions.
    rngs: for the initial weights.

  Attributes:
    num_tokens: context tokens of all conditions together.
  """

  def __init__(
    self,
    names: Sequence[str],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    grid: int,
    embedding: int,
    context: int,
    local_hidden: int,
    local_width: int,
    rngs: nnx.Rngs,
  ):
    self.names = tuple(c.name for c in by_name(names))
    # Maps finer than the grid are folded to it, by as much on a crop as on the whole.
    self.folds: dict[str, int] = {}
    # Shapes of the features follow from those of the stored values.
    branches: dict[str, nnx.Module] = {}
    self.num_tokens = 0
    for condition in by_name(names):
      stored = jax.ShapeDtypeStruct((1, *shapes[condition.name]), jnp.float32)
      features: Any = jax.eval_shape(condition.features, stored)
      if condition.local:
        side = features.shape[1]
        if side % grid:
          raise ValueError(
            f'The {condition.name} maps are {side} pixels on a side; expected a'
            f' multiple of the {grid} of the U-Net. Prepare the data at another'
            ' --size, or change model.image_size or model.fold.'
          )
        self.folds[condition.name] = side // grid
        channels = features.shape[-1] * (side // grid) ** 2
        branches[condition.name] = LocalStack(
          channels, local_hidden, local_width, rngs=rngs
        )
      else:
        count, tokens = 0, 0
        if features.tokens is not None:
          _, count, tokens = features.tokens.shape
        self.num_tokens += count + condition.extra_tokens
        branches[condition.name] = GlobalProjection(
          features.vector.shape[-1],
          tokens,
          condition.extra_tokens,
          embedding,
          context,
          rngs=rngs,
        )
    self.branches = nnx.Dict(branches)

  def __call__(
    self, stored: Mapping[str, jax.Array], kept: Mapping[str, jax.Array]
  ) -> Encoded:
    """Encodes the conditions that are both in `stored` and in `kept`.

    Args:
      stored: arrays (B, *shape) by name.
      kept: (B,) by name: True or 1 as trained, False or 0 a zero embedding, any other
        number an embedding that many times as large.
    """
    embeddings: list[jax.Array] = []
    contexts: list[jax.Array] = []
    maps: list[jax.Array] = []
    for condition in by_name(self.names):
      if condition.name not in stored or condition.name not in kept:
        continue
      keep = kept[condition.name]
      branch: Any = self.branches[condition.name]
      features: Any = condition.features(stored[condition.name])
      if condition.local:
        folded = fold(features, self.folds[condition.name])
        maps.append(_keep(branch(folded), keep))
      else:
        embedding, context = branch(features.vector, features.tokens)
        embeddings.append(_keep(embedding, keep))
        contexts += [_keep(tokens, keep) for tokens in context]
    return Encoded(
      functools.reduce(jnp.add, embeddings) if embeddings else None,
      jnp.concatenate(contexts, axis=1) if contexts else None,
      functools.reduce(jnp.add, maps) if maps else None,
    )
