"""AdamW or Muon, with warm-up, optional cool-down, and clipping."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax import contrib

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
  """Clipping, AdamW or Muon, and decay at unit rate; the step applies `learning_rate`.

  Vectors (biases, scales) are not decayed, as is usual.
  """
  if config.name == 'muon':
    update = contrib.muon(
      -1.0,  # Updates are subtracted here, and added in optax.
      adam_b1=config.beta1,
      adam_b2=config.beta2,
      muon_weight_dimension_numbers=_kernels,
      consistent_rms=config.muon_rms,
      ns_steps=config.muon_iterations,
      preconditioning='aol',  # Saves an iteration (Boissin et al. 2025).
    )
  else:
    update = optax.scale_by_adam(config.beta1, config.beta2)
  return optax.chain(
    optax.clip_by_global_norm(config.clip_norm),
    update,
    optax.add_decayed_weights(config.weight_decay, _matrices),
  )


def _matrices(params: optax.Params) -> optax.Params:
  def matrix(path: tuple[Any, ...], p: jax.Array) -> bool:
    # Of scanned layers the vectors are stacked, and so look like matrices.
    names = {getattr(part, 'key', None) for part in path}
    return p.ndim > 1 and not names & {'bias', 'scale'}

  return jax.tree_util.tree_map_with_path(matrix, params)


def _kernels(params: optax.Params) -> optax.Params:
  """Convolutions (3, 3, in, out) as matrices (9 in, out), nothing else."""
  kernel = contrib.MuonDimensionNumbers((0, 1, 2), 3)
  return jax.tree.map(lambda p: kernel if p.ndim == 4 else None, params)
