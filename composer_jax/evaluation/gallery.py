"""Images that are made to be looked at: what a wish leaves open, and mixtures.

A wish names, for each condition, the held-out image that lends it. So the conditions
of one composed image can come from several.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from composer_jax import conditions as conditions_lib
from composer_jax.evaluation.fidelity import Compose, HeldOut

NUM_SEEDS = 4
"""Images made from the same conditions."""
MIXED_SIDE = 3
"""Images on each side of a table that mixes two conditions."""


@dataclasses.dataclass(frozen=True)
class Wish:
  """One image to compose.

  Attributes:
    lenders: held-out image by name of the condition that is taken from it.
    seed: of the noise.
  """

  lenders: dict[str, int]
  seed: int


@dataclasses.dataclass(frozen=True)
class Strip:
  """The same conditions of one image, with several seeds.

  Attributes:
    index: of the held-out image.
    title: which conditions.
    wishes: one a seed.
  """

  index: int
  title: str
  wishes: list[Wish]


@dataclasses.dataclass(frozen=True)
class Mixture:
  """A table that takes one condition from its rows and another from its columns.

  Attributes:
    local: name of the local condition.
    loose: name of the global one.
    rows: held-out images that lend the first.
    columns: others, that lend the second.
    wishes: row by row.
  """

  local: str
  loose: str
  rows: list[int]
  columns: list[int]
  wishes: list[Wish]


def strips(held_out: HeldOut, shown: int) -> list[Strip]:
  """For each image, everything asked for, then the global conditions alone."""
  everything = [c.name for c in held_out.conditions]
  groups = {'everything': everything}
  loose = [c.name for c in held_out.conditions if not c.local]
  if 0 < len(loose) < len(everything):
    groups['global conditions only'] = loose
  return [
    Strip(
      index,
      title,
      # Far from the seeds that `measure` uses, so that no image comes twice.
      [
        Wish(dict.fromkeys(names, index), int(held_out.seeds[index]) + 1_000_000 * n)
        for n in range(1, NUM_SEEDS + 1)
      ],
    )
    for index in range(shown)
    for title, names in groups.items()
  ]


def mixtures(held_out: HeldOut, shown: int) -> list[Mixture]:
  """One table for each local condition with each global one."""
  side = min(MIXED_SIDE, shown // 2)
  tables = []
  for local in (c.name for c in held_out.conditions if c.local):
    for loose in (c.name for c in held_out.conditions if not c.local):
      # Only an image that has the condition can lend it.
      rows = np.flatnonzero(held_out.present[local][:shown])[:side].tolist()
      able = np.flatnonzero(held_out.present[loose][:shown]).tolist()
      columns = [index for index in able if index not in rows][:side]
      wishes = [
        Wish({local: row, loose: column}, int(held_out.seeds[row]))
        for row in rows
        for column in columns
      ]
      if wishes:
        tables.append(Mixture(local, loose, rows, columns, wishes))
  return tables


def grant(held_out: HeldOut, compose: Compose, wishes: Sequence[Wish]) -> np.ndarray:
  """Composes one image for each wish: uint8 (N, S, S, 3)."""
  wanted = {name for wish in wishes for name in wish.lenders}
  stored, kept = {}, {}
  for condition in conditions_lib.by_name(wanted):
    name = condition.name
    # A wish without the condition gets any value, which `kept` then switches off.
    lenders = [wish.lenders.get(name, 0) for wish in wishes]
    asked = np.array([name in wish.lenders for wish in wishes])
    stored[name] = held_out.asked[name][lenders]
    kept[name] = asked & held_out.present[name][lenders]
  return compose(stored, kept, seeds=np.array([wish.seed for wish in wishes]))
