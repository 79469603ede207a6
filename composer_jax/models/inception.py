"""The Inception v3 whose features the Frechet Inception distance compares.

Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", 2015,
arXiv:1512.00567, as in the TensorFlow graph of 2015-12-05 that Heusel et al. 2017
(arXiv:1706.08500) took FID from. PyTorch-FID and torch-fidelity publish its weights for
PyTorch. It departs from torchvision's network of the same name: averages leave the
margin out, the last block takes the largest instead of the average, pixels are
(x - 128) / 128, and there are 1008 classes.

Modules and parameters bear the names of those weights, but for Flax's own `kernel`,
`scale`, `mean` and `var`.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
from flax import nnx
from jax import numpy as jnp

SIZE = 299
"""Side of the square input in pixels."""

FEATURES = 2048
"""Width of what comes out."""

CLASSES = 1008
"""Classes that the network told apart when it was trained."""

# Others, such as TF32 or bfloat16 passes, would move the distances.
_PRECISION = jax.lax.Precision.HIGHEST


def resize(images: jax.Array) -> jax.Array:
  """Prepares stored images for `Inception`.

  The filter is bicubic and antialiased, and its result stays unrounded, as Parmar et
  al. 2022 ("On Aliased Resizing and Surprising Subtleties in GAN Evaluation",
  arXiv:2104.11222; their clean-fid) recommend. Figures of tools that follow the first
  implementation, which interpolates between four pixels, are others.

  Args:
    images: uint8 sRGB (B, H, W, 3), of any size; the aspect is not kept.

  Returns:
    float32 (B, 299, 299, 3) in [0, 255].

  Raises:
    TypeError: if the images are not uint8.
    ValueError: if they are not a batch of colour images.
  """
  if images.dtype != jnp.uint8:
    raise TypeError(f'images are {images.dtype}; give uint8 sRGB.')
  if images.ndim != 4 or images.shape[3] != 3 or 0 in images.shape:
    raise ValueError(f'images have shape {images.shape}; give (B, H, W, 3).')
  x = jnp.asarray(images, jnp.float32)
  if x.shape[1:3] != (SIZE, SIZE):
    shape = (x.shape[0], SIZE, SIZE, 3)
    x = jax.image.resize(x, shape, 'cubic', antialias=True, precision=_PRECISION)
    # The cubic filter overshoots at edges.
    x = jnp.clip(x, 0, 255)
  return x


class Convolution(nnx.Module):
  """A convolution without bias, batch normalisation by stored moments, and ReLU."""

  def __init__(
    self,
    inputs: int,
    outputs: int,
    size: tuple[int, int],
    *,
    stride: int = 1,
    padding: Literal['SAME', 'VALID'] = 'SAME',
    rngs: nnx.Rngs,
  ):
    self.conv = nnx.Conv(
      inputs,
      outputs,
      size,
      strides=stride,
      padding=padding,
      use_bias=False,
      kernel_init=nnx.initializers.he_normal(),
      precision=_PRECISION,
      rngs=rngs,
    )
    self.bn = nnx.BatchNorm(outputs, use_running_average=True, epsilon=1e-3, rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    return nnx.relu(self.bn(self.conv(x)))


@dataclasses.dataclass(frozen=True)
class Layer:
  """A convolution of a block.

  Attributes:
    name: of its weights, within the block.
    outputs: channels.
    size: height and width of the kernel.
  """

  name: str
  outputs: int
  size: tuple[int, int] = (1, 1)


@dataclasses.dataclass(frozen=True)
class Block:
  """Branches side by side on one input, whose outputs become channels side by side.

  Attributes:
    branches: each of them layers one after another. Two layers in one place both take
      what is before them, and their outputs become channels side by side.
    pool: what the last branch takes of 3 x 3 pixels before its 1 x 1 convolution. An
      average leaves the margin out.
    projected: channels of that convolution; None leaves it out, and halves the image:
      that pool, and the last layer of each branch, then have a stride of 2 and no
      margin.
  """

  branches: tuple[tuple[Layer | tuple[Layer, Layer], ...], ...]
  pool: Literal['average', 'largest'] = 'average'
  projected: int | None = None


def _block_a(projected: int) -> Block:
  return Block(
    (
      (Layer('branch1x1', 64),),
      (Layer('branch5x5_1', 48), Layer('branch5x5_2', 64, (5, 5))),
      (
        Layer('branch3x3dbl_1', 64),
        Layer('branch3x3dbl_2', 96, (3, 3)),
        Layer('branch3x3dbl_3', 96, (3, 3)),
      ),
    ),
    projected=projected,
  )


def _block_b() -> Block:
  return Block(
    (
      (Layer('branch3x3', 384, (3, 3)),),
      (
        Layer('branch3x3dbl_1', 64),
        Layer('branch3x3dbl_2', 96, (3, 3)),
        Layer('branch3x3dbl_3', 96, (3, 3)),
      ),
    ),
    pool='largest',
  )


def _block_c(width: int) -> Block:
  return Block(
    (
      (Layer('branch1x1', 192),),
      (
        Layer('branch7x7_1', width),
        Layer('branch7x7_2', width, (1, 7)),
        Layer('branch7x7_3', 192, (7, 1)),
      ),
      (
        Layer('branch7x7dbl_1', width),
        Layer('branch7x7dbl_2', width, (7, 1)),
        Layer('branch7x7dbl_3', width, (1, 7)),
        Layer('branch7x7dbl_4', width, (7, 1)),
        Layer('branch7x7dbl_5', 192, (1, 7)),
      ),
    ),
    projected=192,
  )


def _block_d() -> Block:
  return Block(
    (
      (Layer('branch3x3_1', 192), Layer('branch3x3_2', 320, (3, 3))),
      (
        Layer('branch7x7x3_1', 192),
        Layer('branch7x7x3_2', 192, (1, 7)),
        Layer('branch7x7x3_3', 192, (7, 1)),
        Layer('branch7x7x3_4', 192, (3, 3)),
      ),
    ),
    pool='largest',
  )


def _block_e(pool: Literal['average', 'largest']) -> Block:
  return Block(
    (
      (Layer('branch1x1', 320),),
      (
        Layer('branch3x3_1', 384),
        (Layer('branch3x3_2a', 384, (1, 3)), Layer('branch3x3_2b', 384, (3, 1))),
      ),
      (
        Layer('branch3x3dbl_1', 448),
        Layer('branch3x3dbl_2', 384, (3, 3)),
        (Layer('branch3x3dbl_3a', 384, (1, 3)), Layer('branch3x3dbl_3b', 384, (3, 1))),
      ),
    ),
    pool=pool,
    projected=192,
  )


BLOCKS: dict[str, tuple[int, Block]] = {
  'Mixed_5b': (192, _block_a(32)),
  'Mixed_5c': (256, _block_a(64)),
  'Mixed_5d': (288, _block_a(64)),
  'Mixed_6a': (288, _block_b()),
  'Mixed_6b': (768, _block_c(128)),
  'Mixed_6c': (768, _block_c(160)),
  'Mixed_6d': (768, _block_c(160)),
  'Mixed_6e': (768, _block_c(192)),
  'Mixed_7a': (768, _block_d()),
  'Mixed_7b': (1280, _block_e('average')),
  'Mixed_7c': (2048, _block_e('largest')),
}
"""In order: the channels that go into each block, and the block."""


class Mixed(nnx.Module):
  """A `Block` over (B, H, W, inputs)."""

  def __init__(self, inputs: int, block: Block, rngs: nnx.Rngs):
    self.block = block
    halves = block.projected is None
    for branch in block.branches:
      width = inputs
      for place in branch:
        layers = place if isinstance(place, tuple) else (place,)
        last = halves and place is branch[-1]
        for layer in layers:
          module = Convolution(
            width,
            layer.outputs,
            layer.size,
            stride=2 if last else 1,
            padding='VALID' if last else 'SAME',
            rngs=rngs,
          )
          setattr(self, layer.name, module)
        width = sum(layer.outputs for layer in layers)
    if block.projected is not None:
      self.branch_pool = Convolution(inputs, block.projected, (1, 1), rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    found = []
    for branch in self.block.branches:
      h = x
      for place in branch:
        layers = place if isinstance(place, tuple) else (place,)
        h = jnp.concatenate([getattr(self, layer.name)(h) for layer in layers], -1)
      found.append(h)
    return jnp.concatenate([*found, self._pooled(x)], -1)

  def _pooled(self, x: jax.Array) -> jax.Array:
    halves = self.block.projected is None
    strides, padding = ((2, 2), 'VALID') if halves else ((1, 1), 'SAME')
    if self.block.pool == 'largest':
      x = nnx.max_pool(x, (3, 3), strides, padding)
    else:
      x = nnx.avg_pool(x, (3, 3), strides, padding, count_include_pad=False)
    return x if halves else self.branch_pool(x)


class Inception(nnx.Module):
  """Images to features, in float32 throughout.

  Untrained as constructed; see `weights.inception_weights`. Moments are stored, not of
  the batch: what comes out of an image does not depend on the others.
  """

  def __init__(self, rngs: nnx.Rngs):
    three = (3, 3)
    self.Conv2d_1a_3x3 = Convolution(3, 32, three, stride=2, padding='VALID', rngs=rngs)
    self.Conv2d_2a_3x3 = Convolution(32, 32, three, padding='VALID', rngs=rngs)
    self.Conv2d_2b_3x3 = Convolution(32, 64, three, rngs=rngs)
    self.Conv2d_3b_1x1 = Convolution(64, 80, (1, 1), rngs=rngs)
    self.Conv2d_4a_3x3 = Convolution(80, 192, three, padding='VALID', rngs=rngs)
    for name, (inputs, block) in BLOCKS.items():
      setattr(self, name, Mixed(inputs, block, rngs))
    self.fc = nnx.Linear(FEATURES, CLASSES, precision=_PRECISION, rngs=rngs)

  def __call__(self, images: jax.Array) -> jax.Array:
    """Features of images.

    Args:
      images: float32 sRGB (B, 299, 299, 3) in [0, 255], as `resize` gives.

    Returns:
      float32 (B, 2048), none negative: the average over the last block's pixels.

    Raises:
      ValueError: if the images have another shape.
    """
    if images.ndim != 4 or images.shape[1:] != (SIZE, SIZE, 3):
      raise ValueError(
        f'images have shape {images.shape}; give (B, {SIZE}, {SIZE}, 3), as'
        ' inception.resize does.'
      )
    x = (jnp.asarray(images, jnp.float32) - 128) / 128
    x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
    x = nnx.max_pool(x, (3, 3), (2, 2))
    x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))
    x = nnx.max_pool(x, (3, 3), (2, 2))
    for name in BLOCKS:
      x = getattr(self, name)(x)
    return x.mean(axis=(1, 2))

  def logits(self, features: jax.Array) -> jax.Array:
    """Features (B, 2048) to logits of classes, float32 (B, 1008)."""
    return self.fc(features)
