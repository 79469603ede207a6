"""Equal layers one after another: unrolled, or stacked and scanned.

A stack is one layer whose parameters have a leading axis, one entry a layer. `lax.scan`
runs over that axis, so that any number of layers is traced and compiled as one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

Layer = TypeVar('Layer', bound=nnx.Module)
Params = Mapping[Any, Any]


def make_layers(
  make: Callable[[jax.Array], Layer], key: jax.Array, count: int, *, scan: bool
) -> Layer | nnx.List[Layer]:
  """Makes layers with the same weights whether they are scanned or not.

  Args:
    make: one layer from a random key.
    key: random key of all of them.
    count: how many.
    scan: whether to stack them.

  Returns:
    A stack, or a list of `count` layers.
  """
  keys = jax.random.split(key, count)
  if scan:
    return nnx.vmap(make)(keys)
  return nnx.List(make(key) for key in keys)


def run_layers(
  layers: Layer | nnx.List[Layer],
  body: Callable[[Layer, jax.Array, Any], jax.Array],
  x: jax.Array,
  each: Any = None,
) -> jax.Array:
  """Passes x through all layers.

  Args:
    layers: of `make_layers`.
    body: `(layer, x, part) -> x` of equal shape and dtype.
    x: what enters the first layer.
    each: tree of arrays with a leading layer axis, such as random keys; `part` is what
      is each layer's own.

  Returns:
    What leaves the last layer.
  """
  if isinstance(layers, nnx.List):
    for index, layer in enumerate(layers):
      x = body(layer, x, _entry(each, index))
    return x
  graph, stacked = nnx.split(layers)

  def step(x: jax.Array, inputs: tuple[nnx.State, Any]) -> tuple[jax.Array, None]:
    params, part = inputs
    return body(nnx.merge(graph, params), x, part), None

  return jax.lax.scan(step, x, (stacked, each))[0]


def stack_layers(params: Params, *path: str | int) -> dict[Any, Any]:
  """Parameters of unrolled layers to those of a stack.

  Args:
    params: nested dict of arrays, as `nnx.to_pure_dict` gives.
    path: keys that lead to the layers, a dict from 0, 1, ... to the parameters of
      each; none if `params` is that dict.

  Returns:
    A nested dict in which one dict of arrays with a leading layer axis stands for the
    layers. All else is shared with `params`.

  Raises:
    ValueError: the path leads to no layers, or their names or shapes differ.
  """
  return _replaced(params, path, _stack)


def unstack_layers(params: Params, *path: str | int) -> dict[Any, Any]:
  """The inverse of `stack_layers`.

  Raises:
    ValueError: the path leads to no stack, or its arrays have no common leading axis.
  """
  return _replaced(params, path, _unstack)


def _replaced(
  params: Params,
  path: tuple[str | int, ...],
  convert: Callable[[Params, str], dict[Any, Any]],
  walked: tuple[str | int, ...] = (),
) -> dict[Any, Any]:
  where = '.'.join(map(str, walked)) or 'params'
  if not isinstance(params, Mapping) or (path and path[0] not in params):
    known = list(params) if isinstance(params, Mapping) else type(params).__name__
    wanted = f'the key {path[0]!r}' if path else 'a dict'
    raise ValueError(f'{where} holds {known}; expected {wanted}.')
  if not path:
    return convert(params, where)
  first, *rest = path
  inner = _replaced(params[first], tuple(rest), convert, (*walked, first))
  return {**params, first: inner}


def _stack(layers: Params, where: str) -> dict[Any, Any]:
  if not layers or set(layers) != set(range(len(layers))):
    raise ValueError(
      f'{where} holds {list(layers)}; expected layers numbered from 0. Those of a'
      ' stack are stacked already.'
    )
  shapes = [_shapes(layers[index]) for index in range(len(layers))]
  for index, found in enumerate(shapes):
    differing = sorted(dict(found.items() ^ shapes[0].items()))
    if differing:
      raise ValueError(
        f'Layers 0 and {index} of {where} differ in {", ".join(differing)}; only'
        ' layers of the same parameters and shapes can be stacked.'
      )
  parts = [layers[index] for index in range(len(layers))]
  return jax.tree.map(lambda *values: jnp.stack(values), *parts)


def _unstack(stack: Params, where: str) -> dict[Any, Any]:
  shapes = _shapes(stack)
  counts = {shape[:1] for shape in shapes.values()}
  if len(counts) != 1 or counts == {()}:
    raise ValueError(
      f'{where} holds {shapes}; expected arrays with one common leading layer axis.'
    )
  ((count,),) = counts
  return {index: _entry(stack, index) for index in range(count)}


def _entry(tree: Any, index: int) -> Any:
  return jax.tree.map(lambda values: values[index], tree)


def _shapes(params: Params) -> dict[str, tuple[int, ...]]:
  leaves = jax.tree_util.tree_leaves_with_path(params)
  return {
    jax.tree_util.keystr(path, simple=True, separator='.'): tuple(leaf.shape)
    for path, leaf in leaves
  }
