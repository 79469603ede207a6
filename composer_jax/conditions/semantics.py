"""Semantics: the image embedding of a dual encoder such as CLIP."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from composer_jax.conditions.condition import Condition, Encoder, GlobalFeatures, Spec


def unit_features(embedding: jax.Array) -> jax.Array:
  """Scales embeddings (B, D) to a root mean square of 1; zeros stay zeros."""
  embedding = embedding.astype('float32')
  square = jnp.mean(embedding**2, axis=-1, keepdims=True)
  return embedding * jax.lax.rsqrt(jnp.maximum(square, 1e-12))


def stripes(vector: np.ndarray, height: int = 32, width: int = 256) -> np.ndarray:
  """A bar code of a vector: blue below zero, red above; uint8 (height, width, 3)."""
  import matplotlib

  values = vector.astype(np.float64)
  values /= max(np.abs(values).max(), 1e-12)
  values = values[np.arange(width) * len(values) // width]
  bar = matplotlib.colormaps['RdBu_r']((values + 1) / 2)[:, :3]
  return np.broadcast_to(np.round(bar * 255).astype('u1'), (height, width, 3)).copy()


def cosine(a: np.ndarray, b: np.ndarray) -> float:
  """Cosine of the angle between two vectors."""
  a, b = a.astype(np.float64), b.astype(np.float64)
  return float(a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-12))


class Semantics(Condition):
  """What the image shows, as a dual encoder sees it."""

  name = 'semantics'
  local = False
  embedded = True
  extra_tokens = 4
  higher_is_better = {'cosine': True}

  def spec(self, size: int) -> Spec:
    # The width is the encoder's; 768 is CLIP ViT-L/14, as in the paper.
    return Spec(
      shape=(768,),
      dtype='float16',
      low=-100,
      high=100,
      unit='embedding, of the length that its encoder gives',
      source='image side of the dual encoder',
    )

  def embed(
    self, encoder: Encoder, images: np.ndarray, captions: list[str]
  ) -> np.ndarray:
    return encoder.embed_images(images).astype(np.float16)

  def present(self, stored: jax.Array | np.ndarray) -> jax.Array:
    return jnp.any(stored != 0, axis=-1)

  def features(self, stored: jax.Array) -> GlobalFeatures:
    embedding = stored.astype('float32')
    return GlobalFeatures(unit_features(embedding), embedding=embedding)

  def draw(self, stored: np.ndarray) -> np.ndarray:
    return stripes(stored)

  def fidelity(self, asked: np.ndarray, again: np.ndarray) -> dict[str, float]:
    return {'cosine': cosine(asked, again)}
