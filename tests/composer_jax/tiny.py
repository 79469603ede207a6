"""Models small enough to sample in a moment, with random weights."""

from __future__ import annotations

import jax
import numpy as np
from flax import nnx

from composer_jax import conditions
from composer_jax.composer import Composer
from composer_jax.config import Config, DiffusionConfig, SampleConfig
from composer_jax.models.unet import UNetConfig
from composer_jax.sampling.cascade import Denoising
from composer_jax.training.stages import Diffusion

SIZE = 8
TOKENS, WIDTH = 3, 8
NAMES = tuple(c.name for c in conditions.ALL)
EMBEDDED = {'caption': (TOKENS + 1, WIDTH), 'semantics': (WIDTH,)}


def shapes_of(names=NAMES, size=SIZE):
  chosen = conditions.by_name(names)
  return {c.name: EMBEDDED.get(c.name, c.spec(size).shape) for c in chosen}


def denoising(seed=0, names=NAMES, model=(), diffusion=(), maps=SIZE, **sample):
  """A stage; `model` and `diffusion` are changes of its config."""
  config = Config(
    'diffusion',
    UNetConfig(
      **{
        'image_size': SIZE,
        'fold': 2,
        'channels': 8,
        'multipliers': (1,),
        'blocks': 1,
        'attention': (True,),
        'head_width': 8,
        'dropout': 0.0,
        'conditions': tuple(names),
        'context_width': 8,
        'local_hidden': 4,
        'local_width': 4,
        'dtype': 'float32',
      }
      | dict(model)
    ),
    diffusion=DiffusionConfig(**dict(diffusion)),
    sample=SampleConfig(**{'steps': 3, 'guidance': 1.5, 'eta': 0.5} | sample),
  )
  shapes = shapes_of(names, maps)
  graphs = []

  def build():
    graph, weights = nnx.split(Diffusion(config, shapes).init(jax.random.key(0)))
    graphs.append(graph)
    return weights

  # Initial weights would not do: the last layer begins with zeros.
  rng = np.random.default_rng(seed)
  weights = jax.tree.map(
    lambda leaf: jax.numpy.asarray(0.3 * rng.normal(size=leaf.shape), leaf.dtype),
    jax.eval_shape(build),
  )
  return Denoising(config, shapes, graphs[0], weights)


def composer_of(seed=0, **sample):
  """A composer of one stage that knows every condition."""
  return Composer([denoising(seed, **sample)], None)
