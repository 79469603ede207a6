"""The compiled sampler as a file that runs without any of this code.

StableHLO, serialised by `jax.export`: it is loaded with `jax.export.deserialize`, and
takes the weights as they lie in the safetensors files beside it.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from flax import nnx

from composer_jax.composer import Composer
from composer_jax.conditions import by_name
from composer_jax.files import write_json
from composer_jax.sampling.cascade import Denoising, trace_cascade
from composer_jax.sampling.guidance import Branch, Wish
from composer_jax.trained import tensor_name

PROGRAM, ABOUT = 'sampler.stablehlo', 'sampler.json'

PLATFORMS = ('cpu', 'cuda', 'tpu')

Arrays = Mapping[str, jax.Array]


def export_sampler(
  composer: Composer, folders: Mapping[str, Denoising], out: pathlib.Path, batch: int
) -> dict[str, Any]:
  """Writes the sampler of a whole cascade, and what it takes.

  Args:
    composer: the model.
    folders: its stages in order, by the names of their folders.
    out: where the two files go.
    batch: images that it makes at a time.

  Returns:
    The contents of `sampler.json`.
  """
  stages, blank = list(folders.values()), composer.empty_caption

  def sample(
    weights: Mapping[str, Arrays],
    stored: Arrays,
    kept: Arrays,
    seeds: jax.Array,
    guidance: jax.Array,
  ) -> jax.Array:
    states = [
      _from_tensors(stage.weights, weights[name]) for name, stage in folders.items()
    ]
    base = None
    if blank is not None:
      stored, kept, base = _completed(stored, kept, blank)
    wish = Wish((Branch(stored, kept),), jnp.ones((1, batch)), base)
    return trace_cascade(stages, states, wish, seeds, guidance)

  shape = jax.ShapeDtypeStruct
  known = by_name(composer.names)
  arguments = (
    {name: _to_shapes(stage.weights) for name, stage in folders.items()},
    {
      c.name: shape(
        (batch, *composer.condition_shapes[c.name]),
        c.spec(composer.condition_size).dtype,
      )
      for c in known
    },
    {c.name: shape((batch,), 'float32') for c in known},
    shape((batch,), 'uint32'),
    shape((), 'float32'),
  )
  exported = jax.export.export(jax.jit(sample), platforms=PLATFORMS)(*arguments)
  names = ('weights', 'stored', 'kept', 'seeds', 'guidance')
  about = {
    'platforms': list(PLATFORMS),
    'arguments': {
      name: jax.tree.map(lambda s: f'{s.dtype}{list(s.shape)}', argument)
      for name, argument in zip(names, arguments, strict=True)
      if name != 'weights'
    },
    'weights': 'float32, whatever the files have, by folder and by name in it',
    'kept': 'strength of each condition: 1 as trained, 0 where it is missing',
    'result': f'uint8[{batch}, {composer.image_size}, {composer.image_size}, 3]',
  }
  (out / PROGRAM).write_bytes(exported.serialize())
  write_json(out / ABOUT, about)
  return about


def _completed(
  stored: Arrays, kept: Arrays, blank: np.ndarray
) -> tuple[Arrays, Arrays, Branch]:
  """The empty caption where there is none, and as what guidance leads away from."""
  (caption,) = (c.name for c in by_name(['caption']))
  there = kept[caption] != 0
  empty = jnp.broadcast_to(blank, stored[caption].shape).astype(stored[caption].dtype)
  said = jnp.where(there[:, None, None], stored[caption], empty)
  whole = (
    {**stored, caption: said},
    {**kept, caption: jnp.where(there, kept[caption], 1)},
  )
  nothing = {name: jnp.zeros_like(value) for name, value in kept.items()}
  base = Branch(
    {**stored, caption: empty}, {**nothing, caption: jnp.ones_like(kept[caption])}
  )
  return *whole, base


def _to_shapes(weights: nnx.State) -> dict[str, jax.ShapeDtypeStruct]:
  flat: Any = nnx.to_flat_state(weights)
  return {
    tensor_name(path): jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    for path, leaf in flat
  }


def _from_tensors(like: nnx.State, tensors: Arrays) -> nnx.State:
  flat: Any = nnx.to_flat_state(like)
  return nnx.from_flat_state(
    [(path, leaf.replace(tensors[tensor_name(path)])) for path, leaf in flat]
  )
