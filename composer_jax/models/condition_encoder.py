"""Turns whatever conditions there are into what the U-Net takes (Composer, 2.2)."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from composer_jax.conditions import by_name
from composer_jax.conditions.condition import GlobalFeatures
from composer_jax.models.layers import Conv3x3, Dense, fold


class Encoded(NamedTuple):
  """The three ways in: each is None where no condition uses it.

  Attributes:
    embedding: (B, E), added to the timestep embedding.
    context: (B, T, D), tokens to attend to.
    feature_map: (B, G, G, K), concatenated to x_t along channels.
    context_mask: bool (B, T), which tokens may be attended to; None for all.
  """

  embedding: jax.Array | None
  context: jax.Array | None
  feature_map: jax.Array | None
  context_mask: jax.Array | None = None


def _keep(x: jax.Array, kept: jax.Array) -> jax.Array:
  """Zeroes the samples that dropped a condition, scales those of another strength."""
  strength = kept.reshape(-1, *[1] * (x.ndim - 1))
  return jnp.where(strength != 0, x * strength, 0)


def _silence(*modules: nnx.Module | None) -> None:
  """Sets parameters to zero."""
  for module in modules:
    if module is not None:
      nnx.update(module, jax.tree.map(jnp.zeros_like, nnx.state(module, nnx.Param)))


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

  def silence(self) -> None:
    """Makes it give zeros, until it is trained; its last layer has a gradient."""
    _silence(self.layers[-1])


class GlobalTokens(NamedTuple):
  """What one global condition gives.

  Attributes:
    embedding: (B, E).
    extra: tokens of its vector (B, X, D); None if it has none.
    words: its own tokens, projected (B, T, D); None if it has none.
    word_mask: bool (B, T), which words may be attended to; None for all.
  """

  embedding: jax.Array
  extra: jax.Array | None
  words: jax.Array | None
  word_mask: jax.Array | None = None


class GlobalProjection(nnx.Module):
  """From one condition's vector and tokens to timestep embedding and context.

  A dropped condition gives zeros, a stronger one larger embeddings.
  """

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

  def __call__(self, features: GlobalFeatures, kept: jax.Array) -> GlobalTokens:
    vector, tokens = features.vector, features.tokens
    embedding = self.vector_out(nnx.silu(self.vector_in(vector)))
    extra = words = None
    if self.to_extra is not None:
      extra = self.to_extra(vector).reshape(len(vector), self.extra, -1)
      extra = _keep(extra, kept)
    if self.to_context is not None and tokens is not None:
      words = _keep(self.to_context(tokens), kept)
    return GlobalTokens(_keep(embedding, kept), extra, words)

  def silence(self) -> None:
    """Makes it give zeros, until it is trained; its last layers have a gradient."""
    _silence(self.vector_out, self.to_extra, self.to_context)


class UnclipProjection(nnx.Module):
  """The same as unCLIP has it (Ramesh et al. 2022, section 2.1; `UnCLIPTextProjModel`).

  One linear map leads to the timestep embedding and one to the extra tokens; words are
  normed. In place of a dropped vector that has extra tokens there is a learned one,
  from which other strengths lead away; dropped words, and padding, are not attended
  to.
  """

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
    self.null = nnx.Param(jnp.zeros(vector)) if extra else None
    self.to_embedding = Dense(vector, embedding, rngs=rngs)
    self.extra = extra
    self.to_extra = Dense(vector, extra * context, rngs=rngs) if extra else None
    self.to_context = Dense(tokens, context, rngs=rngs) if tokens else None
    self.norm = nnx.LayerNorm(context, epsilon=1e-5, rngs=rngs) if tokens else None

  def __call__(self, features: GlobalFeatures, kept: jax.Array) -> GlobalTokens:
    asked = features.vector if features.embedding is None else features.embedding
    null = 0 if self.null is None else self.null[...]
    vector = null + _keep(asked - null, kept)
    extra = words = mask = None
    if self.to_extra is not None:
      extra = self.to_extra(vector).reshape(len(vector), self.extra, -1)
    tokens = features.tokens
    if self.to_context is not None and self.norm is not None and tokens is not None:
      mask = jnp.any(tokens != 0, axis=-1) & (kept != 0)[:, None]
      words = self.norm(self.to_context(tokens))
    return GlobalTokens(self.to_embedding(vector), extra, words, mask)

  def silence(self) -> None:
    """Makes vectors give zeros, until it is trained; words only norms to zero."""
    _silence(self.to_embedding, self.to_extra, self.norm)


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
    unclip: whether global conditions come in as unCLIP has it. The extra tokens of all
      are then summed rather than laid side by side, so that a model which knows one
      more of them attends to no other tokens than before.
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
    unclip: bool = False,
    rngs: nnx.Rngs,
  ):
    self.unclip = unclip
    self.names = tuple(c.name for c in by_name(names))
    # Maps finer than the grid are folded to it, by as much on a crop as on the whole.
    self.folds: dict[str, int] = {}
    # Shapes of the features follow from those of the stored values.
    branches: dict[str, nnx.Module] = {}
    words, extra = 0, [0]
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
        words += count
        extra.append(condition.extra_tokens)
        projection = UnclipProjection if unclip else GlobalProjection
        branches[condition.name] = projection(
          features.vector.shape[-1],
          tokens,
          condition.extra_tokens,
          embedding,
          context,
          rngs=rngs,
        )
    self.num_tokens = words + (max(extra) if unclip else sum(extra))
    self.branches = nnx.Dict(branches)

  def silence(self, names: Sequence[str]) -> None:
    """Makes conditions change nothing, until they are trained.

    What they give is zero, yet the layers that give it have a gradient.
    """
    for name in names:
      branch: Any = self.branches[name]
      branch.silence()

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
    extras: list[jax.Array] = []
    words: list[jax.Array] = []
    masks: list[jax.Array] = []
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
        continue
      found: GlobalTokens = branch(features, keep)
      embeddings.append(found.embedding)
      if found.extra is not None:
        extras.append(found.extra)
      if found.words is not None:
        words.append(found.words)
      if found.word_mask is not None:
        masks.append(found.word_mask)
    if self.unclip and extras:
      extras = [functools.reduce(jnp.add, extras)]
    context = jnp.concatenate(words + extras, axis=1) if words + extras else None
    mask = None
    if masks and context is not None:
      mask = jnp.concatenate(masks, axis=1)
      rest = ((0, 0), (0, context.shape[1] - mask.shape[1]))
      mask = jnp.pad(mask, rest, constant_values=True)
    return Encoded(
      functools.reduce(jnp.add, embeddings) if embeddings else None,
      context,
      functools.reduce(jnp.add, maps) if maps else None,
      mask,
    )
