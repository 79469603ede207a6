"""What a model is made of and what it costs, without allocating any of it."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, Var
from jax.sharding import AbstractMesh

from composer_jax.conditions import by_name
from composer_jax.config import Config
from composer_jax.models.unet import UNet
from composer_jax.sharding.mesh import AXES, mesh_sizes, weight_shardings
from composer_jax.training.stages import Diffusion, DualEncoder, PriorDiffusion


@dataclasses.dataclass(frozen=True)
class Row:
  """One array of parameters.

  Attributes:
    path: of the parameter, such as `down/0/block/conv_in/kernel`.
    shape: of the array.
    parameters: numbers in it.
    flops: of a forward pass over one image in which it takes part.
    sharding: the mesh axis, or None, of each of its axes.
  """

  path: str
  shape: tuple[int, ...]
  parameters: int
  flops: int
  sharding: tuple[str | None, ...]


@dataclasses.dataclass(frozen=True)
class Description:
  """A model, array by array.

  Attributes:
    rows: its parameters in order.
    forward_flops: multiplications and additions of all matrix products and
      convolutions of a forward pass over one image, those of attention included.
  """

  rows: tuple[Row, ...]
  forward_flops: int

  @property
  def parameters(self) -> int:
    return sum(row.parameters for row in self.rows)


def describe(config: Config, devices: int = 1) -> Description:
  """Describes the model of a config.

  Args:
    config: of the run.
    devices: how many the weights would be sharded over.
  """
  build, forward, inputs = _stage(config)
  graph, weights = nnx.split(nnx.eval_shape(build))
  paths, leaves = [], []
  for path, leaf in jax.tree_util.tree_flatten_with_path(weights)[0]:
    paths.append(jax.tree_util.keystr(path[:-1], simple=True, separator='/'))
    leaves.append(leaf)
  structure = jax.tree.structure(weights)

  def run(leaves: list[jax.Array], inputs: Any) -> Any:
    return forward(nnx.merge(graph, jax.tree.unflatten(structure, leaves)), inputs)

  flops = flops_by_argument(run, leaves, inputs)
  mesh = AbstractMesh(mesh_sizes(config.mesh.data, config.mesh.fsdp, devices), AXES)
  shardings = weight_shardings(mesh, leaves)
  rows = tuple(
    Row(
      path,
      leaf.shape,
      math.prod(leaf.shape),
      flops[index],
      tuple(sharding.spec) + (None,) * (leaf.ndim - len(sharding.spec)),
    )
    for index, (path, leaf, sharding) in enumerate(
      zip(paths, leaves, shardings, strict=True)
    )
  )
  return Description(rows, sum(flops.values()))


def _stage(
  config: Config,
) -> tuple[Callable[[], Any], Callable[[Any, Any], Any], dict[str, Any]]:
  """How a model is built, how it is run, and abstract inputs for one image."""
  key = jax.random.key(0)

  def array(shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((1, *shape), dtype)

  if config.stage == 'dual_encoder':
    clip = config.clip
    side = clip.image_size
    inputs = {
      'images': array((side, side, 3)),
      'tokens': array((clip.context_length,), jnp.int32),
    }

    def embed(model: Any, given: Any) -> Any:
      images = model.image_embedding(given['images'])
      return images, model.text_embedding(given['tokens'])

    return lambda: DualEncoder(config).init(key), embed, inputs

  if config.stage == 'prior':
    prior = config.prior
    width = prior.embed_width
    tensors: dict[str, Any] = {
      'x_t': array((width,)),
      't': array((), jnp.int32),
      'words': array((prior.num_tokens, width)),
      'sentence': array((width,)),
      'word_mask': None,
      'kept': array((), bool),
    }
    return lambda: PriorDiffusion(config).init(key), lambda m, x: m(**x), tensors

  unet = config.unet
  specs = {c.name: c.spec(unet.image_size) for c in by_name(unet.conditions)}
  shapes = {name: spec.shape for name, spec in specs.items()}
  image = (unet.image_size, unet.image_size, 3)
  given: dict[str, Any] = {
    'x_t': array(image),
    't': array((), jnp.int32),
    'stored': {n: array(spec.shape, spec.dtype) for n, spec in specs.items()},
    'kept': {name: array((), bool) for name in specs},
    'low_res': array(image) if unet.low_res_size else None,
    'level': array((), jnp.int32) if unet.low_res_size else None,
  }

  def denoise(model: UNet, given: Any) -> Any:
    return model(**given)

  return lambda: Diffusion(config, shapes).init(key), denoise, given


def flops_by_argument(
  function: Callable[..., Any], leaves: list[Any], *rest: Any
) -> Counter[int | None]:
  """Counts the matrix products and convolutions of a function, two for each multiply.

  Args:
    function: of a list of arrays and the rest; it is traced, not run.
    leaves: abstract arrays.
    *rest: more abstract arguments.

  Returns:
    Operations by the index of the leaf that takes part in them, None for those in
    which none does, such as the scores of attention.
  """
  closed = jax.make_jaxpr(function)(leaves, *rest)
  origins = {var: index for index, var in enumerate(closed.jaxpr.invars[: len(leaves)])}
  return _count(closed.jaxpr, origins)


# What gives the same numbers in another shape or dtype.
_SAME = {
  'broadcast_in_dim',
  'convert_element_type',
  'copy',
  'reshape',
  'squeeze',
  'transpose',
}


def _count(jaxpr: Jaxpr, origins: dict[Var, int]) -> Counter[int | None]:
  """Counts one jaxpr; `origins` says which of its variables are which leaf."""
  found: Counter[int | None] = Counter()
  for equation in jaxpr.eqns:
    name, parameters = equation.primitive.name, equation.params
    of = [None if isinstance(v, Literal) else origins.get(v) for v in equation.invars]
    known = [origin for origin in of if origin is not None]
    if name in ('dot_general', 'conv_general_dilated'):
      found[known[0] if known else None] += _operations(equation)
    elif name in _SAME and known:
      origins[equation.outvars[0]] = known[0]
    inner = [
      value.jaxpr if isinstance(value, ClosedJaxpr) else value
      for value in jax.tree.leaves(
        list(parameters.values()), is_leaf=lambda v: isinstance(v, (ClosedJaxpr, Jaxpr))
      )
      if isinstance(value, (ClosedJaxpr, Jaxpr))
    ]
    for part in inner:
      # Arguments of a call are its last ones: conditionals begin with an index.
      passed = zip(reversed(part.invars), reversed(of), strict=False)
      inside = {var: origin for var, origin in passed if origin is not None}
      times = parameters.get('length', 1)
      for origin, count in _count(part, inside).items():
        found[origin] += times * count
  return found


def _operations(equation: Any) -> int:
  """Multiplications and additions of a matrix product or a convolution."""
  left, right = (v.aval.shape for v in equation.invars)
  result = math.prod(equation.outvars[0].aval.shape)
  if equation.primitive.name == 'dot_general':
    (contracted, _), _ = equation.params['dimension_numbers']
    return 2 * result * math.prod(left[axis] for axis in contracted)
  kernel = equation.params['dimension_numbers'].rhs_spec
  return 2 * result * math.prod(right) // right[kernel[0]]
