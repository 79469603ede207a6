"""The prior: from a caption to the CLIP image embeddings that it may describe.

Ramesh et al., "Hierarchical Text-Conditional Image Generation with CLIP Latents", 2022,
arXiv:2204.06125, section 2.2: a causal transformer reads the caption, the diffusion
step and the noised embedding, and predicts the embedding without noise. The
architecture is that of Karlo (`PriorTransformer` of diffusers), whose public weights
give equal outputs here.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from composer_jax.conditions.statistics import EmbeddingStatistics
from composer_jax.models.layers import (
  INWARD,
  OUTWARD,
  Dense,
  dropped,
  timestep_embedding,
)
from composer_jax.models.scan import make_layers, run_layers
from composer_jax.sharding.rules import constrain

EXTRA_TOKENS = 4
"""After the words: sentence, diffusion step, noised embedding, final token."""

PUBLISHED_STEPS = 1000
"""Diffusion steps of the published models, whose range the step features have."""


@dataclasses.dataclass(frozen=True)
class PriorConfig:
  """The shape of a prior. The defaults are Karlo's: 1.02 billion parameters.

  Attributes:
    width: channels of a token.
    layers: transformer layers.
    heads: attention heads of a layer.
    head_width: channels of an attention head; published models have
      `heads * head_width` equal to `width`.
    embed_width: width of CLIP's embeddings and of its word states.
    num_tokens: word states of a caption, its padding included.
    mlp_ratio: hidden width of a feed-forward block over `width`.
    num_steps: diffusion steps in training.
    dropout: rate after attention and inside feed-forward blocks, in training.
    dtype: what the layers compute in; parameters are float32.
    scan: whether the layers' parameters are stacked and scanned, so that they are
      compiled as one layer. Same numbers, other parameter tree: `stack_layers` and
      `unstack_layers` convert.
  """

  width: int = 2048
  layers: int = 20
  heads: int = 32
  head_width: int = 64
  embed_width: int = 768
  num_tokens: int = 77
  mlp_ratio: int = 4
  num_steps: int = 1000
  dropout: float = 0.0
  dtype: Literal['float32', 'bfloat16'] = 'bfloat16'
  scan: bool = True

  def __post_init__(self):
    for name in (
      'width', 'layers', 'heads', 'head_width', 'embed_width', 'num_tokens',
      'mlp_ratio', 'num_steps',
    ):  # fmt: skip
      if getattr(self, name) < 1:
        raise ValueError(f'model.{name} is {getattr(self, name)}; expected at least 1.')
    if self.width % 2 or not 0 <= self.dropout < 1:
      raise ValueError(
        f'model.width is {self.width} and model.dropout {self.dropout}; expected an'
        ' even number, and a rate from 0 to under 1.'
      )
    if self.dtype not in ('float32', 'bfloat16'):
      raise ValueError(f'model.dtype is {self.dtype}; expected float32 or bfloat16.')


class Statistic(nnx.Variable):
  """Measured on data, stored with the weights, not trained."""


def _layer_norm(width: int, dtype: str, rngs: nnx.Rngs) -> nnx.LayerNorm:
  return nnx.LayerNorm(width, epsilon=1e-5, dtype=jnp.dtype(dtype), rngs=rngs)


class PriorLayer(nnx.Module):
  """A pre-norm transformer layer: causal attention, then a feed-forward block.

  A new layer changes nothing: both branches end in zeros.
  """

  def __init__(self, config: PriorConfig, *, rngs: nnx.Rngs):
    width, inner = config.width, config.heads * config.head_width
    hidden = config.mlp_ratio * width
    self.heads, self.dropout = config.heads, config.dropout
    self.norm_attention = _layer_norm(width, config.dtype, rngs)
    self.q = Dense(width, inner, rngs=rngs, axes=INWARD)
    self.k = Dense(width, inner, rngs=rngs, axes=INWARD)
    self.v = Dense(width, inner, rngs=rngs, axes=INWARD)
    self.attention_out = Dense(inner, width, rngs=rngs, zero=True, axes=OUTWARD)
    self.norm_mlp = _layer_norm(width, config.dtype, rngs)
    self.mlp_in = Dense(width, hidden, rngs=rngs, axes=INWARD)
    self.mlp_out = Dense(hidden, width, rngs=rngs, zero=True, axes=OUTWARD)

  def __call__(
    self, x: jax.Array, mask: jax.Array, dropout_key: jax.Array | None = None
  ) -> jax.Array:
    """Maps tokens.

    Args:
      x: tokens (B, T, W).
      mask: bool (B, 1, 1, T): which tokens may be attended to by those after them.
      dropout_key: random key in training; None switches dropout off.
    """
    keys = [None] * 2 if dropout_key is None else jax.random.split(dropout_key)
    h = self.norm_attention(x)
    split = (*x.shape[:2], self.heads, -1)
    q, k, v = (
      constrain(project(h).reshape(split), 'batch', None, 'hidden', None)
      for project in (self.q, self.k, self.v)
    )
    h = jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=True)
    h = self.attention_out(h.reshape(*x.shape[:2], -1))
    x = x + dropped(h, self.dropout, keys[0])
    h = jax.nn.gelu(self.mlp_in(self.norm_mlp(x)), approximate=False)
    x = x + self.mlp_out(dropped(h, self.dropout, keys[1]))
    return constrain(x, 'batch', None, None)


class Prior(nnx.Module):
  """Predicts the normalised CLIP image embedding x_0 from its noised form x_t.

  Attributes:
    config: the shape it was made with.
    layers: a stack of `PriorLayer` or a list of them, as `config.scan` says.
    mean, std: of the embeddings that it was trained on, (D,); 0 and 1 if not given.
  """

  def __init__(
    self,
    config: PriorConfig,
    statistics: EmbeddingStatistics | None = None,
    *,
    rngs: nnx.Rngs,
  ):
    width, embed = config.width, config.embed_width
    if statistics is None:
      statistics = EmbeddingStatistics(np.zeros(embed), np.ones(embed))
    for name, value in statistics._asdict().items():
      if value.shape != (embed,):
        raise ValueError(
          f'The {name} of the embeddings has shape {value.shape}; expected ({embed},),'
          ' as model.embed_width says.'
        )
    self.config = config
    self.time_in = Dense(width, width, rngs=rngs)
    self.time_out = Dense(width, width, rngs=rngs)
    self.words_in = Dense(embed, width, rngs=rngs)
    self.sentence_in = Dense(embed, width, rngs=rngs)
    self.embedding_in = Dense(embed, width, rngs=rngs)
    places = config.num_tokens + EXTRA_TOKENS
    self.positions = nnx.Param(0.02 * rngs.params.normal((places, width)))
    # Of the size of the other tokens; a small one would be blown up by the first norm.
    self.final_token = nnx.Param(rngs.params.normal((width,)))
    self.layers = make_layers(
      lambda key: PriorLayer(config, rngs=nnx.Rngs(key)),
      rngs.params(),
      config.layers,
      scan=config.scan,
    )
    self.norm_out = _layer_norm(width, 'float32', rngs)
    self.embedding_out = Dense(width, embed, rngs=rngs)
    self.mean = Statistic(jnp.asarray(statistics.mean, jnp.float32))
    self.std = Statistic(jnp.asarray(statistics.std, jnp.float32))

  def normalise_embedding(self, embedding: jax.Array) -> jax.Array:
    """CLIP image embeddings (..., D) to x_0: float32, of zero mean and unit variance.

    Scale embeddings as those were from which the statistics come.
    """
    mean, std = map(jax.lax.stop_gradient, (self.mean[...], self.std[...]))
    return (embedding.astype(jnp.float32) - mean) / std

  def denormalise(self, x_0: jax.Array) -> jax.Array:
    """The inverse of `normalise_embedding`."""
    mean, std = map(jax.lax.stop_gradient, (self.mean[...], self.std[...]))
    return x_0.astype(jnp.float32) * std + mean

  def __call__(
    self,
    x_t: jax.Array,
    t: jax.Array,
    words: jax.Array,
    sentence: jax.Array,
    word_mask: jax.Array | None,
    kept: jax.Array,
    dropout_key: jax.Array | None = None,
  ) -> jax.Array:
    """Predicts x_0.

    A dropped text has no words to attend to, and zeros for its sentence embedding,
    which is what this model learns from for classifier-free guidance. Karlo learned
    from the empty caption instead: with its weights, give the words, sentence and mask
    of '' as a text that is kept.

    Args:
      x_t: noised, normalised image embeddings (B, D), float.
      t: diffusion steps (B,), int in [0, num_steps).
      words: word states of the captions (B, T, D), float.
      sentence: sentence embeddings of the captions (B, D), float.
      word_mask: bool (B, T), False for padding, whose states do not matter; if None,
        states that are zero are padding. (diffusers without a mask leaves out the
        causal one too.)
      kept: bool (B,); False drops the text of that sample, whose values do not matter.
      dropout_key: random key in training; None switches dropout off.

    Returns:
      float32 (B, D).

    Raises:
      ValueError: a shape does not agree with the others or with the config.
    """
    config = self.config
    batch, embed, tokens = len(x_t), config.embed_width, config.num_tokens
    if word_mask is None:
      word_mask = jnp.any(words != 0, axis=-1)
    for name, value, shape in (
      ('x_t', x_t, (batch, embed)),
      ('t', t, (batch,)),
      ('words', words, (batch, tokens, embed)),
      ('sentence', sentence, (batch, embed)),
      ('word_mask', word_mask, (batch, tokens)),
      ('kept', kept, (batch,)),
    ):
      if value.shape != shape:
        raise ValueError(
          f'{name} has shape {value.shape}; expected {shape} for this batch, with'
          f' model.embed_width {embed} and model.num_tokens {tokens}.'
        )
    dtype, kept = jnp.dtype(config.dtype), kept.astype(bool)
    word_mask = word_mask.astype(bool) & kept[:, None]
    # Masked values count zero times, and zero times NaN is NaN.
    words = jnp.where(word_mask[:, :, None], words, 0).astype(dtype)
    sentence = jnp.where(kept[:, None], sentence, 0).astype(jnp.float32)
    features = timestep_embedding(
      t * (PUBLISHED_STEPS / config.num_steps), config.width
    )
    final = jnp.broadcast_to(self.final_token[...], (batch, config.width))
    step = self.time_out(nnx.silu(self.time_in(features)))
    noised = self.embedding_in(x_t.astype(jnp.float32))
    extra = jnp.stack([self.sentence_in(sentence), step, noised, final], axis=1)
    x = jnp.concatenate([self.words_in(words), extra.astype(dtype)], axis=1)
    x = x + self.positions[...].astype(dtype)
    mask = jnp.pad(word_mask, ((0, 0), (0, EXTRA_TOKENS)), constant_values=True)
    mask = mask[:, None, None]
    x = run_layers(
      self.layers,
      lambda layer, x, key: layer(x, mask, key),
      x,
      None if dropout_key is None else jax.random.split(dropout_key, config.layers),
    )
    return self.embedding_out(self.norm_out(x[:, -1].astype(jnp.float32)))
