"""The mesh of devices, and where batches and weights lie on it."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXES = ('data', 'fsdp')
SPATIAL = 'spatial'
"""The axis that splits images by their rows; only meshes that sample have it."""


def mesh_sizes(data: int, fsdp: int, count: int) -> tuple[int, int]:
  """The sizes of the axes over `count` devices; -1 takes what is left.

  Raises:
    ValueError: the sizes do not multiply to the number of devices.
  """
  sizes = [data, fsdp]
  if sizes.count(-1) > 1:
    raise ValueError('Only one of mesh.data and mesh.fsdp can be -1.')
  if -1 in sizes:
    rest = math.prod(s for s in sizes if s != -1)
    sizes[sizes.index(-1)] = count // rest
  if math.prod(sizes) != count:
    raise ValueError(
      f'mesh.data x mesh.fsdp is {sizes[0]} x {sizes[1]}; expected a product of'
      f' {count}, the number of devices.'
    )
  return sizes[0], sizes[1]


def make_mesh(data: int = -1, fsdp: int = 1, spatial: int = 1) -> Mesh:
  """A mesh over all devices: (data, fsdp), or (data, fsdp, spatial) to split images.

  Raises:
    ValueError: the sizes do not multiply to the number of devices.
  """
  count = jax.device_count()
  if count % spatial:
    raise ValueError(
      f'mesh.spatial is {spatial}; expected a divisor of {count}, the number of'
      ' devices. Ask for another number with --spatial, or spatial= in Python; 1 does'
      ' not split the images.'
    )
  sizes: tuple[int, ...] = mesh_sizes(data, fsdp, count // spatial)
  axes: tuple[str, ...] = AXES
  if spatial > 1:
    sizes, axes = (*sizes, spatial), (*axes, SPATIAL)
  types = (jax.sharding.AxisType.Auto,) * len(axes)
  return jax.make_mesh(sizes, axes, axis_types=types)


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Batches are split over all devices along their first axis."""
  return NamedSharding(mesh, P(AXES))


def split_rows(mesh: Mesh, images: jax.Array) -> jax.Array:
  """Within a jitted function, spreads (B, H, W, C) by H over the spatial devices.

  The compiler follows through the layers and has neighbours exchange the rows that a
  convolution reaches over to. Images stay as they are on a mesh without such devices.
  """
  if SPATIAL not in mesh.shape:
    return images
  sharding = NamedSharding(mesh, P(None, SPATIAL))
  return jax.lax.with_sharding_constraint(images, sharding)


def replicated(mesh: Mesh) -> NamedSharding:
  """The same on every device."""
  return NamedSharding(mesh, P())


def weight_shardings(mesh: Mesh | AbstractMesh, tree: Any) -> Any:
  """Splits each weight along its longest axis that the fsdp devices divide.

  Args:
    mesh: the mesh.
    tree: arrays or shapes; scalars and small axes stay whole.

  Returns:
    A NamedSharding for each leaf.
  """
  devices = mesh.shape['fsdp']

  def sharding(leaf: Any) -> NamedSharding:
    axes: list[str | None] = [None] * leaf.ndim
    fitting = [i for i in range(leaf.ndim) if leaf.shape[i] % devices == 0]
    if devices > 1 and fitting:
      axes[max(fitting, key=lambda i: leaf.shape[i])] = 'fsdp'
    return NamedSharding(mesh, P(*axes))

  return jax.tree.map(sharding, tree)


def put_batch(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
  """Puts this process's part of a global batch on its devices."""
  sharding = batch_sharding(mesh)
  return {
    name: jax.make_array_from_process_local_data(sharding, array)
    for name, array in batch.items()
  }
