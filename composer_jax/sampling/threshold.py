"""Bringing a predicted x_0 into the range of the data."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from composer_jax.sampling.loop import Threshold


def static(limit: jax.Array | float = 1.0) -> Threshold:
  """Clips to [-limit, limit]; the limit may be traced."""

  def threshold(x_0: jax.Array) -> jax.Array:
    return jnp.clip(x_0, -limit, limit)

  return threshold


def dynamic(
  percentile: jax.Array | float, ceiling: jax.Array | float = math.inf
) -> Threshold:
  """Dynamic thresholding (Saharia et al. 2022, arXiv 2205.11487, section 2.3).

  Each image is clipped to [-s, s] and divided by s, where s is that percentile of its
  absolute values, at least 1. Under strong guidance few values then saturate.

  Args:
    percentile: from 0 to 1, may be traced.
    ceiling: s is at most this, 1 or more, may be traced; at 1 it is `static()`.
  """

  def threshold(x_0: jax.Array) -> jax.Array:
    own = tuple(range(1, x_0.ndim))
    s = jnp.quantile(jnp.abs(x_0), percentile, axis=own, keepdims=True)
    s = jnp.clip(s, 1, ceiling)
    return jnp.clip(x_0, -s, s) / s

  return threshold
