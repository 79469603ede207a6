"""The mesh of devices, and where batches lie on it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from composer_jax.sharding.rules import MESH_AXES, AxisRules


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """The mesh of devices; one size can be -1 and takes what is left.

  Attributes:
    data: devices along which the batch is split.
    fsdp: devices along which batch, parameters and optimiser state are split.
    tensor: devices along which the inside of blocks is split.
    spatial: devices along which a U-Net's images are split by rows, for images that
      are too large for one of them.
    rings: whether TPUs may pass weights on from one to the next in training while they
      compute with what has arrived (collective matrix products, Wang et al. 2023). The
      parts that convolutions then work with are narrow, so that it takes longer.
    kernel_target: how good the compiler of TPUs wants a convolution's kernel to be, by
      its own estimate, before it stops looking for a better one in training. 1 finds
      the best and takes much longer to compile than 0.96; 0.9 is poor.
    rules: which axes of arrays lie along which of these.
  """

  data: int = -1
  fsdp: int = 1
  tensor: int = 1
  spatial: int = 1
  rings: bool = False
  kernel_target: float = 0.96
  rules: AxisRules = AxisRules()

  def __post_init__(self):
    if not 0.5 <= self.kernel_target <= 1:
      raise ValueError(
        f'config.mesh.kernel_target is {self.kernel_target}; expected 0.5 to 1.'
      )
    for name in MESH_AXES:
      size = getattr(self, name)
      if size < 1 and size != -1:
        raise ValueError(
          f'config.mesh.{name} is {size}; expected at least 1, or -1 for the devices'
          ' that are left.'
        )

  def for_sampling(self) -> MeshConfig:
    """That of a trained model: what does not split images splits batch and weights."""
    return dataclasses.replace(self, data=1, fsdp=-1, tensor=1)

  @property
  def least(self) -> int:
    """The fewest devices that it needs."""
    return math.prod(size for name in MESH_AXES if (size := getattr(self, name)) > 0)

  def sizes(self, count: int) -> tuple[int, ...]:
    """The sizes of the axes over `count` devices.

    Raises:
      ValueError: the sizes do not multiply to the number of devices.
    """
    sizes = [getattr(self, name) for name in MESH_AXES]
    if sizes.count(-1) > 1:
      raise ValueError('Only one of config.mesh.data, fsdp, tensor, spatial can be -1.')
    if -1 in sizes:
      sizes[sizes.index(-1)] = count // math.prod(s for s in sizes if s != -1)
    if math.prod(sizes) != count:
      given = ', '.join(f'{name} {getattr(self, name)}' for name in MESH_AXES)
      raise ValueError(
        f'config.mesh is {given}; expected sizes whose product is {count}, the number'
        ' of devices.'
      )
    return tuple(sizes)


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
  """A mesh over all devices, or over those given.

  Along `data`, neighbours may lie in different slices, which only the network of the
  data centre joins; the other axes stay within one.

  Raises:
    ValueError: the sizes do not multiply to the number of devices, or `data` cannot be
      spread over the slices.
  """
  devices = jax.devices() if devices is None else devices
  data, *others = config.sizes(len(devices))
  slices = len({getattr(device, 'slice_index', 0) for device in devices})
  # An axis may take a part of a dimension of the torus, such as half of 16 x 16 chips.
  split = {'allow_split_physical_axes': True}
  if data % slices == 0 and slices > 1:
    grid = mesh_utils.create_hybrid_device_mesh(
      (data // slices, *others), (slices, 1, 1, 1), devices, **split
    )
  elif slices == 1 or devices[0].platform != 'tpu':
    grid = mesh_utils.create_device_mesh((data, *others), devices, **split)
  else:
    raise ValueError(
      f'config.mesh.data is {data}; expected a multiple of {slices}, the number of'
      ' slices.'
    )
  return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def abstract_mesh(config: MeshConfig, count: int) -> AbstractMesh:
  """The mesh that `count` devices would make."""
  return AbstractMesh(config.sizes(count), MESH_AXES)


def compiler_options(config: MeshConfig, mesh: Mesh) -> dict[str, bool | float] | None:
  """What the compiler of a training step is told that it does not do by itself."""
  if mesh.devices.flat[0].platform != 'tpu':
    return None
  options: dict[str, bool | float] = {}
  if config.kernel_target < 1:
    options['xla_jf_convolution_performance_target'] = config.kernel_target
  if not config.rings:
    for kind in ('all_gather', 'reduce_scatter'):
      options[f'xla_tpu_enable_windowed_einsum_for_{kind}'] = False
  return options


def batch_sharding(mesh: Mesh, rules: AxisRules) -> NamedSharding:
  """Batches are split along their first axis."""
  return NamedSharding(mesh, P(rules.batch))


def replicated(mesh: Mesh) -> NamedSharding:
  """The same on every device."""
  return NamedSharding(mesh, P())


def check_batch(sizes: Mapping[str, int], rules: AxisRules, batch_size: int) -> None:
  """Refuses a global batch that the devices of a mesh do not divide.

  Args:
    sizes: of the axes of the mesh.
    rules: which of them split batches.
    batch_size: rows of the global batch.

  Raises:
    ValueError: the devices do not divide the batch.
  """
  devices = math.prod(sizes[axis] for axis in rules.batch)
  if batch_size % devices:
    raise ValueError(
      f'config.data.batch_size is {batch_size}; expected a multiple of {devices}, the'
      f' devices that share it ({" x ".join(rules.batch)}).'
    )


def local_rows(mesh: Mesh, rules: AxisRules, batch_size: int) -> list[int]:
  """The rows of a global batch that devices of this process hold.

  Raises:
    ValueError: the devices do not divide the batch.
  """
  check_batch(mesh.shape, rules, batch_size)
  sharding = batch_sharding(mesh, rules)
  held: Any = sharding.addressable_devices_indices_map((batch_size,)).values()
  rows = {row for (index,) in held for row in range(batch_size)[index]}
  return sorted(rows)


def batch_placer(
  mesh: Mesh, rules: AxisRules, batch_size: int
) -> Callable[[dict[str, np.ndarray]], dict[str, jax.Array]]:
  """Makes a function that puts this process's rows of a global batch on its devices.

  It takes arrays with a row for each of `local_rows`.

  Args:
    mesh: the mesh.
    rules: which of its axes split batches.
    batch_size: rows of the global batch.
  """
  sharding = batch_sharding(mesh, rules)
  place = {row: i for i, row in enumerate(local_rows(mesh, rules, batch_size))}

  def put(array: np.ndarray) -> jax.Array:
    def part(index: Any) -> np.ndarray:
      rows = range(batch_size)[index[0]]
      return array[place[rows[0]] : place[rows[-1]] + 1]

    shape = (batch_size, *array.shape[1:])
    return jax.make_array_from_callback(shape, sharding, part)

  return lambda batch: {name: put(array) for name, array in batch.items()}
