from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from composer_jax.config import OptimizerConfig
from composer_jax.training.optimizer import learning_rate, make_optimizer


def rate(config, step, total=1000):
  return float(learning_rate(config, jnp.asarray(step), jnp.asarray(total, float)))


def test_warm_up_is_linear_and_reaches_the_full_rate():
  config = OptimizerConfig(learning_rate=2.0, warmup_steps=4)
  rates = [rate(config, step) for step in range(6)]
  assert rates == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0, 2.0])


def test_without_cool_down_the_rate_stays():
  config = OptimizerConfig(learning_rate=2.0, warmup_steps=1)
  assert rate(config, 999) == 2.0


def test_cool_down_falls_linearly_to_nothing_over_its_share():
  config = OptimizerConfig(learning_rate=1.0, warmup_steps=1, cooldown=0.5)
  rates = [rate(config, step, total=100) for step in (0, 49, 50, 75, 99, 100)]
  assert rates == pytest.approx([1, 1, 1, 0.5, 0.02, 0], abs=1e-6)


def test_updates_equal_those_of_optax_adamw_after_clipping():
  config = OptimizerConfig(weight_decay=0.1, clip_norm=0.5, beta1=0.8, beta2=0.95)
  params = {'w': jnp.arange(6.0).reshape(2, 3), 'b': jnp.ones(3)}
  reference = optax.chain(
    optax.clip_by_global_norm(0.5),
    optax.adamw(
      1.0,
      b1=0.8,
      b2=0.95,
      weight_decay=0.1,
      mask={'w': True, 'b': False},
    ),
  )
  ours, theirs = make_optimizer(config), reference
  our_state, their_state = ours.init(params), theirs.init(params)
  for seed in range(3):
    grads = jax.tree.map(
      lambda p, seed=seed: 3 * jax.random.normal(jax.random.key(seed), p.shape), params
    )
    our_updates, our_state = ours.update(grads, our_state, params)
    their_updates, their_state = theirs.update(grads, their_state, params)
    for name in params:
      np.testing.assert_allclose(-our_updates[name], their_updates[name], rtol=1e-5)


def orthogonalised(matrix, steps):
  """The Newton-Schulz iteration of Jordan et al. 2024, in float64.

  Rows start at the lengths of an almost orthogonal layer (Prach and Lampert 2022).
  """
  x = matrix / np.sqrt(np.abs(matrix @ matrix.T).sum(axis=1, keepdims=True))
  for _ in range(steps):
    gram = x @ x.T
    x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
  return x


@pytest.mark.parametrize('iterations', [3, 4])
def test_muon_orthogonalises_kernels_and_leaves_all_else_to_adam(iterations):
  config = OptimizerConfig(
    name='muon',
    muon_rms=0.5,
    muon_iterations=iterations,
    clip_norm=1e9,
    beta1=0.8,
  )
  shapes = {'kernel': (3, 3, 4, 6), 'dense': (5, 7), 'bias': (6,)}
  keys = dict(zip(shapes, jax.random.split(jax.random.key(0), 3), strict=True))
  grads = {name: jax.random.normal(keys[name], shape) for name, shape in shapes.items()}
  params = jax.tree.map(jnp.ones_like, grads)
  optimizer = make_optimizer(config)
  updates, _ = optimizer.update(grads, optimizer.init(params), params)
  kernel = np.asarray(grads['kernel'], np.float64).reshape(36, 6)
  # Its RMS is that of an orthogonal matrix times muon_rms sqrt(36).
  wanted = orthogonalised(kernel.T, iterations).T * 0.5 * np.sqrt(36)
  np.testing.assert_allclose(updates['kernel'].reshape(36, 6), wanted, atol=2e-3)
  for name in ('dense', 'bias'):  # Adam's first step goes by the sign alone.
    ratio = np.asarray(updates[name]) / np.sign(grads[name])
    np.testing.assert_allclose(ratio, ratio.flat[0], rtol=1e-4)
    assert ratio.flat[0] > 0


def test_vectors_that_are_stacked_by_a_scan_are_not_decayed_either():
  config = OptimizerConfig(weight_decay=0.1)
  params = {
    'layers': {
      'norm': {'scale': jnp.ones((5, 4)), 'bias': jnp.ones((5, 4))},
      'dense': {'kernel': jnp.ones((5, 4, 4)), 'bias': jnp.ones((5, 4))},
    }
  }
  optimizer = make_optimizer(config)
  still = jax.tree.map(jnp.zeros_like, params)
  updates, _ = optimizer.update(still, optimizer.init(params), params)
  layers = updates['layers']
  np.testing.assert_allclose(layers['dense']['kernel'], 0.1, rtol=1e-5)
  for vector in (*layers['norm'].values(), layers['dense']['bias']):
    np.testing.assert_array_equal(vector, 0)


def test_muon_decays_matrices_and_kernels_only():
  config = OptimizerConfig(name='muon', weight_decay=0.1)
  params = {
    'kernel': jnp.ones((3, 3, 2, 2)),
    'dense': jnp.ones((2, 2)),
    'b': jnp.ones(2),
  }
  optimizer = make_optimizer(config)
  still = jax.tree.map(jnp.zeros_like, params)
  updates, _ = optimizer.update(still, optimizer.init(params), params)
  np.testing.assert_allclose(updates['kernel'], 0.1, rtol=1e-5)
  np.testing.assert_allclose(updates['dense'], 0.1, rtol=1e-5)
  np.testing.assert_array_equal(updates['b'], 0)
