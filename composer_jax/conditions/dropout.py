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
) -> dict[str, jax.Array]:
  """Draws the kept conditions of each sample of a batch.

  With probability 0.1 a sample loses all, with 0.1 it keeps all, otherwise it
  loses each one independently with the condition's own rate.

  Args:
    key: random key.
    conditions: the conditions that the model knows.
    present: bool (B,) for each condition that the data has at all; a condition
      that is missing here counts as dropped.

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
  kept = {}
  for index, condition in enumerate(conditions):
    if condition.name not in present:
      continue
    alone = draws[index] >= condition.drop_rate
    keep = jnp.where(fate < DROP_ALL, False, alone)
    keep = jnp.where((fate >= DROP_ALL) & (fate < DROP_ALL + KEEP_ALL), True, keep)
    kept[condition.name] = keep & present[condition.name]
  return kept
