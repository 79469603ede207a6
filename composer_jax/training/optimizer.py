"""AdamW with warm-up, optional cool-down, and clipping."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from composer_jax.config import OptimizerConfig


def learning_rate(
  config: OptimizerConfig, step: jax.Array, total_steps: jax.Array
) -> jax.Array:
  """The rate at a step: linear warm-up, constant, linear cool-down."""
  rate = jnp.minimum(1.0, (step + 1) / max(config.warmup_steps, 1))
  if config.cooldown > 0:
    left = (total_steps - step) / jnp.maximum(config.cooldown * total_steps, 1)
    rate = rate * jnp.clip(left, 0.0, 1.0)
  return config.learning_rate * rate


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
  """Clipping, then AdamW with unit rate; the step applies `learning_rate`.

  Vectors (biases, scales) are not decayed, as is usual.
  """
  return optax.chain(
    optax.clip_by_global_norm(config.clip_norm),
    optax.scale_by_adam(config.beta1, config.beta2),
    optax.add_decayed_weights(
      config.weight_decay, mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p)
    ),
  )
