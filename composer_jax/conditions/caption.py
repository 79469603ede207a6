"""Caption: the word and sentence embeddings of a text, by a dual encoder."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from composer_jax.conditions.condition import Condition, Encoder, GlobalFeatures, Spec
from composer_jax.conditions.semantics import cosine, stripes, unit_features


class Caption(Condition):
  """What is said of the image: T word states, then the sentence, in one array."""

  name = 'caption'
  local = False
  embedded = True
  from_text = True
  higher_is_better = {'clip_score': True}

  def spec(self, size: int) -> Spec:
    # Tokens and width are the encoder's; these are CLIP ViT-L/14's.
    return Spec(
      shape=(78, 768),
      dtype='float16',
      low=-100,
      high=100,
      unit='77 word states, zero for padding, then the sentence embedding',
      source='text side of the dual encoder',
    )

  def embed(
    self, encoder: Encoder, images: np.ndarray, captions: list[str]
  ) -> np.ndarray:
    words, sentence = encoder.embed_captions(captions)
    if words.shape[-1] != sentence.shape[-1]:
      raise ValueError(
        'A caption is stored as one array, so the text width'
        f' ({words.shape[-1]}) of the dual encoder must equal its embedding width'
        f' ({sentence.shape[-1]}); train the encoder with equal widths.'
      )
    stored = np.concatenate([words, sentence[:, None]], axis=1)
    said = np.array([bool(caption) for caption in captions])
    return np.where(said[:, None, None], stored, 0).astype(np.float16)

  def present(self, stored: jax.Array | np.ndarray) -> jax.Array:
    return jnp.any(stored != 0, axis=(-2, -1))

  def features(self, stored: jax.Array) -> GlobalFeatures:
    stored = stored.astype('float32')
    words, sentence = stored[:, :-1], stored[:, -1]
    return GlobalFeatures(unit_features(sentence), words, sentence)

  def draw(self, stored: np.ndarray) -> np.ndarray:
    return stripes(stored[-1])

  def fidelity(self, asked: np.ndarray, again: np.ndarray) -> dict[str, float]:
    """Cosine of the sentence and the generated image's embedding."""
    return {'clip_score': cosine(asked[-1], again)}
