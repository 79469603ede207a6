"""What a model is made of and what it costs, without allocating any of it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from composer_jax.config import Config
from composer_jax.diffusion.process import Coefficients
from composer_jax.flops import flops_by_argument
from composer_jax.models.unet import UNet
from composer_jax.sharding.mesh import abstract_mesh
from composer_jax.sharding.rules import weight_shardings
from composer_jax.training.stages import abstract_inputs


@dataclasses.dataclass(frozen=True)
class Row:
  """One array of parameters.

  Attributes:
    path: of the parameter, such as `down/0/block/conv_in/kernel`.
    shape: of the array.
    parameters: numbers in it.
    flops: of a forward pass over one image in which it takes part.
    sharding: the axis or axes of the mesh, or None, of each of its axes.
  """

  path: str
  shape: tuple[int, ...]
  parameters: int
  flops: int
  sharding: tuple[str | tuple[str, ...] | None, ...]


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


def describe(config: Config, devices: int | None = None) -> Description:
  """Describes the model of a config.

  Args:
    config: of the run.
    devices: how many the weights would be sharded over; by default the fewest that
      `config.mesh` needs.
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
  mesh = abstract_mesh(config.mesh, devices or config.mesh.least)
  shardings = jax.tree.leaves(weight_shardings(mesh, weights, config.mesh.rules))
  rows = tuple(
    Row(
      path,
      leaf.shape,
      math.prod(leaf.shape),
      flops[index],
      tuple(sharding.spec),
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
  one = dataclasses.replace(config.data, batch_size=1)
  stage, batch = abstract_inputs(dataclasses.replace(config, data=one))

  def build() -> Any:
    return stage.init(jax.random.key(0))

  def array(shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((1, *shape), dtype)

  if config.stage == 'dual_encoder':
    side = config.clip.image_size
    inputs = {'images': array((side, side, 3)), 'tokens': batch['tokens']}

    def embed(model: Any, given: Any) -> Any:
      images = model.image_embedding(given['images'])
      return images, model.text_embedding(given['tokens'])

    return build, embed, inputs

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
    return build, lambda m, x: m(**x), tensors

  unet = config.unet
  image = (unet.image_size, unet.image_size, 3)
  given: dict[str, Any] = {
    'x_t': array(image),
    't': array((), jnp.int32),
    'stored': {name: batch[name] for name in unet.conditions},
    'kept': {name: array((), bool) for name in unet.conditions},
    'low_res': array(image) if unet.low_res_size else None,
    'level': array((), jnp.int32) if unet.low_res_size else None,
  }

  def denoise(model: UNet, given: Any) -> Any:
    half = jnp.full((1, 1, 1, 1), 0.5**0.5)
    return model(**given, c=Coefficients(half, half))

  return build, denoise, given
