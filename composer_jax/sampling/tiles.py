"""Denoising in overlapping tiles, for images that a device cannot hold at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

# A tree of arrays (B, H, H, C) that show the same images, each at an H of its own.
Images = TypeVar('Images')


def corners(size: int, tile: int, overlap: int) -> np.ndarray:
  """Where tiles begin along a side: from 0, the last one where it ends with the side.

  Args:
    size: of the side, at least `tile`.
    tile: side of a tile.
    overlap: of neighbours, less than `tile`; the last two may overlap more.
  """
  return np.minimum(np.arange(0, size - overlap, tile - overlap), size - tile)


def blending(size: int, tile: int, overlap: int) -> np.ndarray:
  """How much each tile counts in each of its pixels along a side.

  It falls linearly over the overlap towards its ends, where a network sees least of
  what is around.

  Returns:
    float32 (tiles, tile); those of all tiles add up to one in each pixel of the side.
  """
  middle = np.arange(tile) + 0.5
  # At least half a pixel, which all pixels have: so no overlap is a plain mean.
  ramp = np.minimum(np.minimum(middle, tile - middle), max(overlap, 0.5))
  starts = corners(size, tile, overlap)
  total = np.zeros(size)
  for start in starts:
    total[start : start + tile] += ramp
  shares = [ramp / total[start : start + tile] for start in starts]
  return np.array(shares, np.float32)


def in_tiles(
  network: Callable[[Images], jax.Array],
  images: Images,
  size: int,
  tile: int,
  overlap: int,
) -> jax.Array:
  """Passes images through a network tile by tile, and blends what it gives.

  One tile of all images is in the network at a time. The result is that of the whole
  images as far as the network looks no further than its tile: it is another where
  normalisation or attention take in all of the image.

  Args:
    network: maps images and all that goes with them to float32 (B, S, S, C).
    images: a tree of arrays (B, H, H, any), H such that tiles begin and end between
      its pixels.
    size: S, in pixels.
    tile: side of the tiles in the same pixels.
    overlap: of neighbouring tiles, less than `tile`.
  """
  if tile >= size:
    return network(images)
  starts = jnp.asarray(corners(size, tile, overlap))
  shares = jnp.asarray(blending(size, tile, overlap))

  def cut(x: jax.Array, row: jax.Array, column: jax.Array) -> jax.Array:
    side = x.shape[1]
    square = (len(x), tile * side // size, tile * side // size, x.shape[-1])
    corner = (0, row * side // size, column * side // size, 0)
    return jax.lax.dynamic_slice(x, corner, square)

  def give(place: jax.Array) -> jax.Array:
    row, column = starts[place]
    return network(jax.tree.map(lambda x: cut(x, row, column), images))

  def add(total: jax.Array, place: jax.Array) -> tuple[jax.Array, None]:
    made, (row, column) = give(place), starts[place]
    down, along = shares[place]
    made = made * down[:, None, None] * along[:, None]
    corner = (0, row, column, 0)
    there = jax.lax.dynamic_slice(total, corner, made.shape)
    return jax.lax.dynamic_update_slice(total, there + made, corner), None

  places = jnp.stack(jnp.indices((len(starts),) * 2), axis=-1).reshape(-1, 2)
  shape = jax.eval_shape(give, places[0])
  empty = jnp.zeros((shape.shape[0], size, size, shape.shape[-1]), shape.dtype)
  return jax.lax.scan(add, empty, places)[0]
