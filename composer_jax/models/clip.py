"""CLIP: an image tower and a caption tower that meet in one space.

Radford et al., "Learning Transferable Visual Models From Natural Language
Supervision", 2021, arXiv:2103.00020. Composer takes its captions' word states
and sentence embedding, and its semantics condition, from a ViT-L/14 of this kind
(section 2.1).

Modules and parameters bear the names of the public checkpoints (`CLIPModel` of
transformers), without the levels `embeddings` and `encoder`, which hold nothing
of their own. Kernels are (inputs, outputs); that of the patch embedding reads a
patch row by row, each pixel's channels together.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Self

import jax
from flax import nnx
from jax import numpy as jnp

from composer_jax.models.layers import INWARD, OUTER, OUTWARD
from composer_jax.sharding.rules import Axes

# Greek-key of shapes below: B batch, S side of the image, T tokens (words or
# patches), W width of a tower, H heads, D width of the shared space.

PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
"""Mean of sRGB in [0, 1] that the published models were trained with."""

PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)
"""Standard deviation that goes with `PIXEL_MEAN`."""

INITIAL_LOGIT_SCALE = math.log(1 / 0.07)
"""Natural logarithm of the first inverse temperature (section 2.5)."""

MAX_LOGIT_SCALE = math.log(100.0)
"""Logits are never scaled by more than 100, for stability (section 2.5)."""


def quick_gelu(x: jax.Array) -> jax.Array:
  """X sigmoid(1.702 x): the approximation of GELU in the published weights."""
  return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  'quick_gelu': quick_gelu,
  'gelu': functools.partial(jax.nn.gelu, approximate=False),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipConfig:
  """Sizes of a CLIP.

  Attributes:
    image_size: side of the square input in pixels, a multiple of `patch_size`.
    patch_size: side of a patch in pixels.
    vision_width: channels of the image tower, a multiple of `vision_heads`.
    vision_layers: transformer layers of the image tower.
    vision_heads: attention heads of the image tower.
    text_width: channels of the caption tower, a multiple of `text_heads`.
    text_layers: transformer layers of the caption tower.
    text_heads: attention heads of the caption tower.
    vocab_size: number of token ids.
    context_length: most tokens in a caption, its two ends included.
    end_token: id of the end-of-text token; the state at its first occurrence
      stands for the sentence.
    embed_width: width of the space that images and captions share.
    mlp_ratio: hidden width of a feed-forward block over the tower's width.
    activation: 'quick_gelu' as in OpenAI's weights, or 'gelu'.
    dtype: what is computed in, 'float32' or 'bfloat16'. Parameters, softmax,
      layer-norm statistics and the embeddings that come out are float32 anyhow.

  Raises:
    ValueError: if a size is not positive, does not divide as said above, or a
      name is not one of those listed.
  """

  image_size: int
  patch_size: int
  vision_width: int
  vision_layers: int
  vision_heads: int
  text_width: int
  text_layers: int
  text_heads: int
  vocab_size: int
  context_length: int
  end_token: int
  embed_width: int
  mlp_ratio: int = 4
  activation: str = 'quick_gelu'
  dtype: str = 'float32'

  def __post_init__(self) -> None:
    for name, value in vars(self).items():
      if name in ('activation', 'dtype'):
        continue
      least = 0 if name == 'end_token' else 1
      if not isinstance(value, int) or value < least:
        raise ValueError(f'{name} is {value!r}; give an integer of at least {least}.')
    for whole, part in (
      ('image_size', 'patch_size'),
      ('vision_width', 'vision_heads'),
      ('text_width', 'text_heads'),
    ):
      a, b = getattr(self, whole), getattr(self, part)
      if a % b:
        raise ValueError(f'{whole} ({a}) must be a multiple of {part} ({b}).')
    if self.end_token >= self.vocab_size:
      raise ValueError(
        f'end_token ({self.end_token}) is beyond vocab_size ({self.vocab_size}).'
      )
    for name, known in (
      ('activation', tuple(ACTIVATIONS)),
      ('dtype', ('float32', 'bfloat16')),
    ):
      if getattr(self, name) not in known:
        raise ValueError(f'{name} is {getattr(self, name)!r}; choose from {known}.')

  @classmethod
  def vit_l14(cls, *, image_size: int = 336, dtype: str = 'float32') -> Self:
    """OpenAI's ViT-L/14: published for images of 224 and, as here, of 336."""
    return cls(
      image_size=image_size,
      patch_size=14,
      vision_width=1024,
      vision_layers=24,
      vision_heads=16,
      text_width=768,
      text_layers=12,
      text_heads=12,
      vocab_size=49408,
      context_length=77,
      end_token=49407,
      embed_width=768,
      dtype=dtype,
    )


def normalise(images: jax.Array, image_size: int) -> jax.Array:
  """Prepares stored images for `Clip.image_embedding`.

  Args:
    images: uint8 sRGB (B, S, S, 3).
    image_size: the side the model takes; other sizes are resized with an
      antialiased bicubic filter, as in CLIP's own preprocessing.

  Returns:
    float32 (B, image_size, image_size, 3), of about zero mean and unit variance.

  Raises:
    TypeError: if the images are not uint8.
    ValueError: if they are not a batch of square colour images.
  """
  if images.dtype != jnp.uint8:
    raise TypeError(f'images are {images.dtype}; give uint8 sRGB.')
  if images.ndim != 4 or images.shape[1] != images.shape[2] or images.shape[3] != 3:
    raise ValueError(f'images have shape {images.shape}; give (B, S, S, 3).')
  x = jnp.asarray(images, jnp.float32) / 255
  if images.shape[1] != image_size:
    x = jax.image.resize(
      x, (x.shape[0], image_size, image_size, 3), 'cubic', antialias=True
    )
    # The cubic filter overshoots at edges; published models never saw that.
    x = jnp.clip(x, 0, 1)
  return (x - jnp.array(PIXEL_MEAN)) / jnp.array(PIXEL_STD)


def _linear(
  inputs: int,
  outputs: int,
  std: float,
  config: ClipConfig,
  rngs: nnx.Rngs,
  bias: bool = True,
  axes: Axes = OUTER,
) -> nnx.Linear:
  return nnx.Linear(
    inputs,
    outputs,
    use_bias=bias,
    kernel_init=nnx.initializers.normal(std),
    kernel_metadata={'axes': axes},
    dtype=jnp.dtype(config.dtype),
    rngs=rngs,
  )


def _embedding(
  count: int, width: int, std: float, config: ClipConfig, rngs: nnx.Rngs
) -> nnx.Embed:
  return nnx.Embed(
    count,
    width,
    embedding_init=nnx.initializers.normal(std),
    embedding_metadata={'axes': (None, 'features')},
    dtype=jnp.dtype(config.dtype),
    rngs=rngs,
  )


def _layer_norm(width: int, config: ClipConfig, rngs: nnx.Rngs) -> nnx.LayerNorm:
  return nnx.LayerNorm(width, epsilon=1e-5, dtype=jnp.dtype(config.dtype), rngs=rngs)


class Attention(nnx.Module):
  """Multi-head self-attention over (B, T, W)."""

  def __init__(
    self,
    width: int,
    heads: int,
    out_std: float,
    causal: bool,
    config: ClipConfig,
    rngs: nnx.Rngs,
  ):
    self.heads = heads
    self.causal = causal
    self.q_proj = _linear(width, width, width**-0.5, config, rngs, axes=INWARD)
    self.k_proj = _linear(width, width, width**-0.5, config, rngs, axes=INWARD)
    self.v_proj = _linear(width, width, width**-0.5, config, rngs, axes=INWARD)
    self.out_proj = _linear(width, width, out_std, config, rngs, axes=OUTWARD)

  def __call__(self, x: jax.Array) -> jax.Array:
    split = (*x.shape[:2], self.heads, -1)
    q, k, v = (
      project(x).reshape(split) for project in (self.q_proj, self.k_proj, self.v_proj)
    )
    x_BxTxHxC = jax.nn.dot_product_attention(q, k, v, is_causal=self.causal)
    return self.out_proj(x_BxTxHxC.reshape(x.shape))


class Mlp(nnx.Module):
  """Two linear layers with an activation between, at every position alone."""

  def __init__(self, width: int, out_std: float, config: ClipConfig, rngs: nnx.Rngs):
    hidden = width * config.mlp_ratio
    self.activation = config.activation
    self.fc1 = _linear(width, hidden, (2 * width) ** -0.5, config, rngs, axes=INWARD)
    self.fc2 = _linear(hidden, width, out_std, config, rngs, axes=OUTWARD)

  def __call__(self, x: jax.Array) -> jax.Array:
    return self.fc2(ACTIVATIONS[self.activation](self.fc1(x)))


class EncoderLayer(nnx.Module):
  """A pre-norm transformer layer over (B, T, W), one of `depth`."""

  def __init__(
    self,
    width: int,
    heads: int,
    depth: int,
    causal: bool,
    config: ClipConfig,
    rngs: nnx.Rngs,
  ):
    # The more layers add to the residual stream, the less each of them adds at
    # first (OpenAI's initialisation, after GPT-2).
    out_std = (2 * depth * width) ** -0.5
    self.layer_norm1 = _layer_norm(width, config, rngs)
    self.self_attn = Attention(width, heads, out_std, causal, config, rngs)
    self.layer_norm2 = _layer_norm(width, config, rngs)
    self.mlp = Mlp(width, out_std, config, rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    x = x + self.self_attn(self.layer_norm1(x))
    return x + self.mlp(self.layer_norm2(x))


class VisionModel(nnx.Module):
  """The image tower: a vision transformer whose class token is the summary."""

  def __init__(self, config: ClipConfig, rngs: nnx.Rngs):
    width, depth, patch = config.vision_width, config.vision_layers, config.patch_size
    values, std = 3 * patch**2, width**-0.5
    positions = (config.image_size // patch) ** 2 + 1
    self.patch_size = patch
    self.class_embedding = nnx.Param(std * rngs.params.normal((width,)))
    self.patch_embedding = _linear(
      values, width, (3 * values) ** -0.5, config, rngs, bias=False
    )
    self.position_embedding = _embedding(positions, width, std, config, rngs)
    self.pre_layernorm = _layer_norm(width, config, rngs)
    self.layers = nnx.List(
      EncoderLayer(width, config.vision_heads, depth, False, config, rngs)
      for _ in range(depth)
    )
    self.post_layernorm = _layer_norm(width, config, rngs)

  def __call__(self, images: jax.Array) -> jax.Array:
    """Normalised images (B, S, S, 3) to summaries (B, W)."""
    # Patches as rows of a matrix: one matrix product is the strided convolution
    # of the paper, and its gradient stays a matrix product.
    B, S, p = images.shape[0], images.shape[1], self.patch_size
    x = images.reshape(B, S // p, p, S // p, p, 3).swapaxes(2, 3)
    x = self.patch_embedding(x.reshape(B, -1, p * p * 3))
    first = self.class_embedding[...].astype(x.dtype)
    x = jnp.concatenate([jnp.broadcast_to(first, (B, 1, first.size)), x], axis=1)
    x = x + self.position_embedding(jnp.arange(x.shape[1]))
    x = self.pre_layernorm(x)
    for layer in self.layers:
      x = layer(x)
    return self.post_layernorm(x[:, 0])


class TextModel(nnx.Module):
  """The caption tower: a causal transformer over token ids."""

  def __init__(self, config: ClipConfig, rngs: nnx.Rngs):
    width, depth = config.text_width, config.text_layers
    self.token_embedding = _embedding(config.vocab_size, width, 0.02, config, rngs)
    self.position_embedding = _embedding(
      config.context_length, width, 0.01, config, rngs
    )
    self.layers = nnx.List(
      EncoderLayer(width, config.text_heads, depth, True, config, rngs)
      for _ in range(depth)
    )
    self.final_layer_norm = _layer_norm(width, config, rngs)

  def __call__(self, tokens: jax.Array) -> jax.Array:
    """Token ids (B, T) to word states (B, T, W)."""
    x = self.token_embedding(tokens)
    x = x + self.position_embedding(jnp.arange(tokens.shape[1]))
    for layer in self.layers:
      x = layer(x)
    return self.final_layer_norm(x)


class Clip(nnx.Module):
  """Both towers, their projections to one space, and the temperature.

  Attributes:
    config: the sizes it was made with.
    logit_scale: scalar, natural logarithm of the inverse temperature.
  """

  def __init__(self, config: ClipConfig, *, rngs: nnx.Rngs):
    see, read, meet = config.vision_width, config.text_width, config.embed_width
    self.config = config
    self.vision_model = VisionModel(config, rngs)
    self.text_model = TextModel(config, rngs)
    self.visual_projection = _linear(see, meet, see**-0.5, config, rngs, bias=False)
    self.text_projection = _linear(read, meet, read**-0.5, config, rngs, bias=False)
    self.logit_scale = nnx.Param(jnp.array(INITIAL_LOGIT_SCALE, jnp.float32))

  def image_embedding(self, images: jax.Array) -> jax.Array:
    """Embeds images.

    Args:
      images: float (B, S, S, 3), S the model's image size, from `normalise`.

    Returns:
      float32 (B, D), not of unit length.

    Raises:
      TypeError: if the images are not floating point.
      ValueError: if they have another shape.
    """
    side = self.config.image_size
    if not jnp.issubdtype(images.dtype, jnp.floating):
      raise TypeError(f'images are {images.dtype}; pass them through `normalise`.')
    if images.ndim != 4 or images.shape[1:] != (side, side, 3):
      raise ValueError(
        f'images have shape {images.shape}; the model takes '
        f'(B, {side}, {side}, 3), which `normalise` makes.'
      )
    summaries = self.vision_model(images)
    return self.visual_projection(summaries).astype(jnp.float32)

  def text_embedding(self, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Embeds captions.

    Args:
      tokens: integer (B, T), T at most the context length, from a `Tokenizer`:
        each row holds the end token. (One without it is summed up by its first
        state, and ids beyond the vocabulary give NaN: values can't be checked
        under `jit`.)

    Returns:
      Word states after the final layer norm, float32 (B, T, W), and projected
      sentence embeddings, float32 (B, D), not of unit length.

    Raises:
      TypeError: if the tokens are not integers.
      ValueError: if they have another shape.
    """
    longest = self.config.context_length
    if not jnp.issubdtype(tokens.dtype, jnp.integer):
      raise TypeError(f'tokens are {tokens.dtype}; give integer ids.')
    if tokens.ndim != 2 or not 1 <= tokens.shape[1] <= longest:
      raise ValueError(
        f'tokens have shape {tokens.shape}; give (B, T) with T from 1 to {longest}.'
      )
    words, ends = self.text_model(tokens), self.ends(tokens)
    sentences = jnp.take_along_axis(words, ends[:, None, None], axis=1)[:, 0]
    sentences = self.text_projection(sentences)
    return words.astype(jnp.float32), sentences.astype(jnp.float32)

  def ends(self, tokens: jax.Array) -> jax.Array:
    """Where each caption (B, T) ends: int (B,). What follows is padding."""
    # Captions are padded with the end token too; only the first one ends them.
    return jnp.argmax(tokens == self.config.end_token, axis=1)


def unit_length(embeddings: jax.Array) -> jax.Array:
  """Scales the last axis to length one; zeros stay zeros, with zero gradient."""
  squares = jnp.sum(jnp.square(embeddings), axis=-1, keepdims=True)
  # A small constant under the root would make that gradient huge, not zero.
  safe = jnp.where(squares > 0, squares, 1)
  return embeddings * jnp.where(squares > 0, jax.lax.rsqrt(safe), 0)


def contrastive_loss(
  image_emb: jax.Array,
  text_emb: jax.Array,
  logit_scale: jax.Array,
  weights: jax.Array | None = None,
) -> jax.Array:
  """Symmetric InfoNCE: each image picks its caption and each caption its image.

  The mean of the two cross entropies over cosine similarities times
  min(exp(logit_scale), 100); CLIP, section 2.3 and figure 3.

  Args:
    image_emb: float (B, D), of any length; row i belongs to row i of `text_emb`.
    text_emb: float (B, D).
    logit_scale: scalar, natural logarithm of the inverse temperature.
    weights: (B,) non-negative, or None for ones. A sample of weight zero, such as
      an image without a caption, is neither asked about nor offered as an answer,
      in either direction; the others are averaged by weight.

  Returns:
    float32 scalar; zero, with zero gradients, if all weights are zero.

  Raises:
    ValueError: if the shapes do not agree.
  """
  if image_emb.ndim != 2 or image_emb.shape != text_emb.shape:
    raise ValueError(
      f'image embeddings {image_emb.shape} and text embeddings {text_emb.shape} '
      'must both be (B, D).'
    )
  if weights is None:
    weights = jnp.ones(len(image_emb))
  if weights.shape != image_emb.shape[:1]:
    raise ValueError(
      f'weights have shape {weights.shape}; give ({len(image_emb)},), one a sample.'
    )
  weights = weights.astype(jnp.float32)
  images, texts = (unit_length(x.astype(jnp.float32)) for x in (image_emb, text_emb))
  # Scaled by up to 100, the rounding of an accelerator's default bfloat16
  # product would show in the logits.
  cosines = jnp.matmul(images, texts.T, precision=jax.lax.Precision.HIGHEST)
  logits = jnp.exp(_capped(logit_scale.astype(jnp.float32))) * cosines

  def picking_loss(logits: jax.Array) -> jax.Array:
    # A finite stand-in for minus infinity: weight zero times infinity is NaN.
    offered = jnp.where(weights > 0, logits, -1e9)
    return -jnp.diagonal(jax.nn.log_softmax(offered, axis=1))

  losses = (picking_loss(logits) + picking_loss(logits.T)) / 2
  total = jnp.sum(weights)
  return jnp.sum(weights * losses) / jnp.where(total > 0, total, 1)


@jax.custom_vjp
def _capped(logit_scale: jax.Array) -> jax.Array:
  """At most `MAX_LOGIT_SCALE`, with a way back.

  The published weights sit at the cap. A plain minimum would have no gradient
  there and hold fine-tuning at a temperature of 1/100 for good; this one lets
  through what lowers the scale.
  """
  return jnp.minimum(logit_scale, MAX_LOGIT_SCALE)


def _capped_forward(logit_scale: jax.Array) -> tuple[jax.Array, jax.Array]:
  return _capped(logit_scale), logit_scale


def _capped_backward(logit_scale: jax.Array, grad: jax.Array) -> tuple[jax.Array]:
  would_raise = (logit_scale >= MAX_LOGIT_SCALE) & (grad < 0)
  return (jnp.where(would_raise, 0, grad),)


_capped.defvjp(_capped_forward, _capped_backward)
