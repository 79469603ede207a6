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
