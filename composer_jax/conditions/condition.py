"""What a condition is: the protocol that the eight of them implement."""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, ClassVar, NamedTuple, Protocol

import jax
import numpy as np

from composer_jax.images import Picture

# Shapes in this package: B batch, S side of the prepared image in pixels, C channels,
# D width of an embedding, T tokens.


@dataclasses.dataclass(frozen=True)
class Spec:
  """The type of a stored condition.

  Attributes:
    shape: sizes without the batch axis.
    dtype: NumPy dtype name.
    low: smallest value.
    high: largest value.
    unit: what the numbers measure.
    null: the value that stands for an absent condition.
    source: how it is extracted, so that a stand-in is never taken for more.
  """

  shape: tuple[int, ...]
  dtype: str
  low: float
  high: float
  unit: str
  source: str
  null: float = 0.0

  def to_json(self) -> dict[str, Any]:
    return dataclasses.asdict(self)


class Encoder(Protocol):
  """A trained dual encoder of images and captions, such as CLIP."""

  width: int
  num_tokens: int

  def embed_images(self, images: np.ndarray) -> np.ndarray:
    """uint8 (B, S, S, 3) to float32 (B, D), of any length."""

  def embed_captions(self, captions: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Captions to word states (B, T, D), zeros for padding, and sentences (B, D)."""


class GlobalFeatures(NamedTuple):
  """What a global condition tells the U-Net.

  Attributes:
    vector: (B, D), projected and added to the timestep embedding.
    tokens: (B, T, D) cross-attention context, or None.
    embedding: the vector as its encoder gave it, for models that learned from such;
      None where no encoder did.
  """

  vector: jax.Array
  tokens: jax.Array | None = None
  embedding: jax.Array | None = None


class Condition(abc.ABC):
  """One factor of an image: its type, extraction, encoding, drawing, fidelity.

  Class attributes:
    name: the key of the condition in records, batches, configs and commands.
    local: a map aligned with the pixels, rather than one vector an image.
    stored: written into records; otherwise drawn anew from the image, with a
      random key, each time a record is read.
    from_text: made from the caption rather than from the pixels.
    embedded: made by a trained `Encoder` rather than by `extract`.
    drop_rate: probability of dropping it alone in joint training
      (Composer, section 2.2).
    extra_tokens: number of context tokens that the vector is projected to.
    higher_is_better: for each name that `fidelity` returns, in the same order.
  """

  name: ClassVar[str]
  local: ClassVar[bool] = True
  stored: ClassVar[bool] = True
  embedded: ClassVar[bool] = False
  from_text: ClassVar[bool] = False
  drop_rate: ClassVar[float] = 0.5
  extra_tokens: ClassVar[int] = 0
  higher_is_better: ClassVar[dict[str, bool]]

  @abc.abstractmethod
  def spec(self, size: int) -> Spec:
    """The stored type for images of `size` x `size` pixels."""

  def extract(self, picture: Picture, rng: np.random.Generator) -> np.ndarray:
    """Measures the condition in a square picture; see `spec` for the result."""
    raise NotImplementedError(f'{self.name} needs a trained encoder.')

  def embed(
    self, encoder: Encoder, images: np.ndarray, captions: list[str]
  ) -> np.ndarray:
    """Batched extraction by a trained encoder, for `embedded` conditions.

    Args:
      encoder: the trained dual encoder.
      images: uint8 (B, S, S, 3).
      captions: B captions, '' where there is none.

    Returns:
      (B, *shape) of the stored dtype.
    """
    raise NotImplementedError(f'{self.name} is not made by an encoder.')

  def present(self, stored: jax.Array | np.ndarray) -> jax.Array:
    """Whether each sample of a batch has the condition at all: bool (B,)."""
    return jax.numpy.ones(stored.shape[:1], bool)

  @abc.abstractmethod
  def features(self, stored: jax.Array) -> jax.Array | GlobalFeatures:
    """Network input for a batch of stored values.

    Returns:
      A (B, S, S, C) map in about [-1, 1] for a local condition, `GlobalFeatures` for
      a global one.
    """

  def given(self, stored: jax.Array) -> tuple[jax.Array, jax.Array] | None:
    """The pixels of the image that the condition gives outright.

    Returns:
      Their colours, float (B, S, S, 3) in [-1, 1], and where they are, (B, S, S, 1)
      from 0 to 1; None for a condition that gives no pixels.
    """
    del stored
    return None

  def gray(self, stored: jax.Array) -> jax.Array | None:
    """How bright the image is at each pixel, as far as the condition gives it.

    Returns:
      Float (B, S, S, 1) in [-1, 1], by whatever weights of the channels; None for a
      condition that does not give it.
    """
    del stored
    return None

  @abc.abstractmethod
  def draw(self, stored: np.ndarray) -> np.ndarray:
    """A picture of one stored value for people: uint8 sRGB (height, width, 3)."""

  @abc.abstractmethod
  def fidelity(self, asked: np.ndarray, again: np.ndarray) -> dict[str, float]:
    """How well a generated image keeps one asked-for value.

    Args:
      asked: the stored value that was asked for.
      again: the same condition extracted again from the generated image, with a
        generator in the same state; for an `embedded` condition the image
        embedding (D,) of the generated image.

    Returns:
      Metric names, the first the one to headline, to values.
    """
