from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from composer_jax.config import from_dict
from composer_jax.diffusion.schedule import make_schedule
from composer_jax.sampling.prior import Imagining
from composer_jax.training.stages import PriorDiffusion

WIDTH, TOKENS = 8, 3


@pytest.fixture(scope='module')
def config():
  return from_dict(
    {
      'stage': 'prior',
      'model': {
        'width': 16,
        'layers': 2,
        'heads': 2,
        'head_width': 8,
        'embed_width': WIDTH,
        'num_tokens': TOKENS,
        'dtype': 'float32',
      },
      'diffusion': {'prediction': 'x0'},
      'sample': {'steps': 4, 'guidance': 3.0, 'eta': 0.0},
    }
  )


@pytest.fixture(scope='module')
def model(config):
  """A prior with random weights and statistics."""
  graph, shapes = nnx.split(
    nnx.eval_shape(lambda: PriorDiffusion(config).init(jax.random.key(0)))
  )
  rng = np.random.default_rng(0)
  weights = jax.tree.map(
    lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), leaf.dtype), shapes
  )
  weights['std'] = weights['std'].replace(jnp.abs(weights['std'][...]) + 0.5)
  # So that the noise that it starts from shows in the result.
  kernel = weights['embedding_in']['kernel']
  weights['embedding_in']['kernel'] = kernel.replace(10 * kernel[...])
  return graph, weights


def captions(count):
  rng = np.random.default_rng(1)
  return rng.normal(size=(count, TOKENS + 1, WIDTH)).astype(np.float16)


def test_semantics_equal_a_plain_loop_over_the_steps(config, model):
  prior = nnx.merge(*model)
  stored = captions(2)
  made = Imagining(config, *model)(stored, np.array([5, 6]))
  alphas = make_schedule('cosine', 1000).alphas_cumprod
  times = [999, 749, 499, 249]
  keys = jax.vmap(jax.random.key)(jnp.asarray([5, 6], jnp.uint32))
  x = np.stack([jax.random.normal(jax.random.fold_in(k, 0), (WIDTH,)) for k in keys])
  x = x.astype(np.float64)
  text = jnp.asarray(stored, jnp.float32)
  for t, previous in zip(times, [*times[1:], None], strict=True):
    a, b = alphas[t], 1.0 if previous is None else alphas[previous]
    told, untold = (
      np.asarray(
        prior(
          jnp.asarray(x, jnp.float32),
          jnp.full(2, t),
          text[:, :-1],
          text[:, -1],
          None,
          jnp.full(2, kept),
        ),
        np.float64,
      )
      for kept in (True, False)
    )
    x_0 = untold + 3 * (told - untold)
    eps = (x - np.sqrt(a) * x_0) / np.sqrt(1 - a)
    x = np.sqrt(b) * x_0 + np.sqrt(1 - b) * eps
  wanted = x * np.asarray(prior.std[...]) + np.asarray(prior.mean[...])
  assert made.dtype == np.float16
  np.testing.assert_allclose(made, wanted, rtol=2e-3, atol=2e-3)


def test_guidance_leads_away_from_another_caption_where_one_is_given(config, model):
  stored, seeds = captions(2), np.array([5, 6])
  imagine = Imagining(config, *model)
  # Guidance of a caption away from itself is no guidance.
  alone = Imagining(
    dataclasses.replace(
      config, sample=dataclasses.replace(config.sample, guidance=1.0)
    ),
    *model,
  )
  same = imagine(np.stack([stored[0]] * 2), seeds, stored[0])
  wanted = alone(np.stack([stored[0]] * 2), seeds)
  np.testing.assert_allclose(same, wanted, rtol=1e-2, atol=1e-2)
  other = imagine(stored, seeds, stored[0])
  np.testing.assert_allclose(other[0], same[0], rtol=1e-2, atol=1e-2)
  assert np.abs(other[1] - imagine(stored, seeds)[1]).max() > 0.1


def test_another_seed_is_another_image_and_a_batch_changes_nothing(config, model):
  imagine = Imagining(config, *model)
  stored = captions(3)
  together = imagine(stored, np.array([1, 2, 3]))
  for row in range(3):
    alone = imagine(stored[row : row + 1], np.array([row + 1]))
    np.testing.assert_allclose(alone[0], together[row], atol=2e-3)
  other = imagine(stored, np.array([1, 2, 4]))
  np.testing.assert_array_equal(other[:2], together[:2])
  assert (other[2] != together[2]).any()


def test_a_caption_that_is_not_there_is_not_followed(config, model):
  imagine = Imagining(config, *model)
  nothing = np.zeros_like(captions(1))
  strong = Imagining(
    from_dict({**as_dict(config), 'sample': {'steps': 4, 'guidance': 9.0}}), *model
  )
  # Without a caption there is nothing to be guided by.
  np.testing.assert_array_equal(
    imagine(nothing, np.array([1])), strong(nothing, np.array([1]))
  )
  told = captions(1)
  one, two = imagine(told, np.array([1])), strong(told, np.array([1]))
  assert np.abs(one.astype(float) - two).max() > 0.01


def as_dict(config):
  return json.loads(config.to_json())
