"""Which conditions each training sample keeps (Composer, section 2.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from composer_jax.conditions.condition import Condition

DROP_ALL = 0.1
KEEP_ALL = 0.1


def draw_kept(
  key: jax.Array,
  conditions: Sequence[Condition],
  present: Mapping[str, jax.Array],
  keep_one: float = 0.0,
) -> dict[str, jax.Array]:
  """Draws the kept conditions of each sample of a batch.

  With probability 0.1 a sample loses all, with 0.1 it keeps all, with `keep_one` it
  keeps any one alone, otherwise it loses each one independently with the condition's
  own rate.

  Args:
    key: random key.
    conditions: the conditions that the model knows.
    present: bool (B,) for each condition that the data has at all; a condition
      that is missing here counts as dropped.
    keep_one: probability of a single condition, of those that the sample has; 0 as
      published, at most 0.8.

  Returns:
    bool (B,) for each name in `present` that the model knows.
  """
  known = [c for c in conditions if c.name in present]
  if not known:
    return {}
  batch = present[known[0].name].shape[0]
  fate_key, each_key = jax.random.split(key)
  fate = jax.random.uniform(fate_key, (batch,))
  draws = jax.random.uniform(each_key, (len(conditions), batch))
  there = [present.get(c.name, jnp.zeros(batch, bool)) for c in conditions]
  single = jnp.argmax(jnp.where(jnp.stack(there), draws, -1), axis=0)
  bounds = (DROP_ALL, DROP_ALL + KEEP_ALL, DROP_ALL + KEEP_ALL + keep_one)
  lost, whole, lone = (fate < bound for bound in bounds)
  kept = {}
  for index, condition in enumerate(conditions):
    if condition.name not in present:
      continue
    independent = draws[index] >= condition.drop_rate
    keep = jnp.select([lost, whole, lone], [False, True, single == index], independent)
    kept[condition.name] = keep & present[condition.name]
  return kept
