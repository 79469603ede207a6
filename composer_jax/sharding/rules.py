"""Which axes of arrays lie along which axes of the mesh.

Parameters and activations name their axes by what they mean (logical axes). A table of
rules gives each name axes of the mesh, so that a model says nothing of devices, and
another layout is another table.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax
from flax import nnx
from flax.core import spmd
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

MESH_AXES = ('data', 'fsdp', 'tensor', 'spatial')

Axes = tuple[str | None, ...]
"""The logical axis of each axis of an array, or None; of its last ones, if fewer."""


@dataclasses.dataclass(frozen=True)
class AxisRules:
  """Axes of the mesh for each logical axis.

  An array is split along them as far as its sizes allow: by the rule of each axis, from
  the first to the last, if the devices divide it and no axis before it has them.

  Attributes:
    batch: of activations.
    rows: of images.
    features: of parameters: what enters or leaves a block, which is what fully sharded
      data parallelism splits.
    hidden: of parameters and activations: what is inside a block alone, as channels
      between its two convolutions or heads of attention (tensor parallelism).
    smallest: parameters with fewer numbers are whole on every device, as gathering
      them takes longer than it saves.
  """

  batch: tuple[str, ...] = ('data', 'fsdp')
  rows: tuple[str, ...] = ('spatial',)
  features: tuple[str, ...] = ('fsdp',)
  hidden: tuple[str, ...] = ('tensor',)
  smallest: int = 2**16

  def table(self) -> dict[str, tuple[str, ...]]:
    """Logical axis to axes of the mesh."""
    return {name: axes for name, axes in vars(self).items() if name != 'smallest'}

  def __post_init__(self):
    for name, axes in self.table().items():
      if unknown := [axis for axis in axes if axis not in MESH_AXES]:
        raise ValueError(
          f'config.mesh.rules.{name} names {unknown[0]!r}; expected axes of the mesh,'
          f' which are {", ".join(MESH_AXES)}.'
        )


def partition(
  axes: Axes, shape: tuple[int, ...], rules: AxisRules, mesh: Mesh | AbstractMesh
) -> P:
  """How an array is split.

  Args:
    axes: its logical axes.
    shape: of the array.
    rules: the table.
    mesh: sizes of the devices' axes.
  """
  table = rules.table()
  named = (None,) * (len(shape) - len(axes)) + axes
  taken: set[str] = set()
  split: list[tuple[str, ...] | None] = []
  for name, size in zip(named, shape, strict=True):
    found = tuple(a for a in table[name] if mesh.shape[a] > 1) if name else ()
    devices = math.prod(mesh.shape[axis] for axis in found)
    fits = found and not size % devices and not taken & set(found)
    split.append(found if fits else None)
    taken |= set(found if fits else ())
  return P(*split)


def weight_shardings(mesh: Mesh | AbstractMesh, tree: Any, rules: AxisRules) -> Any:
  """Where parameters, or what an optimiser keeps of each of them, lie.

  Args:
    mesh: the mesh.
    tree: arrays or shapes; an `nnx.Variable` says its logical axes as `axes`, and all
      else is whole on every device.
    rules: the table.

  Returns:
    A NamedSharding for each leaf.
  """

  def place(node: Any) -> Any:
    named = node.get_metadata('axes', ()) if isinstance(node, nnx.Variable) else ()

    def sharding(leaf: Any) -> NamedSharding:
      axes = named if math.prod(leaf.shape) >= rules.smallest else ()
      return NamedSharding(mesh, partition(axes, leaf.shape, rules, mesh))

    return jax.tree.map(sharding, node)

  return jax.tree.map(place, tree, is_leaf=lambda node: isinstance(node, nnx.Variable))


@contextlib.contextmanager
def laid_out(mesh: Mesh | None, rules: AxisRules) -> Iterator[None]:
  """Within it, while a function is traced, `constrain` follows a table of rules.

  Args:
    mesh: of the function's devices; None to leave all to the compiler.
    rules: the table.
  """
  if mesh is None:
    yield
    return
  with (
    jax.sharding.use_abstract_mesh(mesh.abstract_mesh),
    spmd.logical_axis_rules(tuple(rules.table().items())),
  ):
    yield


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
  """Tells the compiler how an activation is split; without `laid_out`, nothing.

  Args:
    x: any array.
    axes: logical axes of its last axes.
  """
  table: Any = spmd.get_logical_axis_rules()
  if not table:
    return x
  rules = AxisRules(**dict(table))
  mesh = jax.sharding.get_abstract_mesh()
  return jax.lax.with_sharding_constraint(x, partition(axes, x.shape, rules, mesh))
