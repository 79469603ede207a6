"""What is known of an image before it is denoised, and how well."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from composer_jax.conditions.condition import Condition
from composer_jax.diffusion.resolution import average, enlarge


class Guess(NamedTuple):
  """Images as far as they are known.

  Attributes:
    image: float (B, S, S, 3), the best guess.
    spread: standard deviation of the images around it, a scalar or (B, S, S, 1).
  """

  image: jax.Array
  spread: jax.Array | float


def first_guess(
  x_t: jax.Array,
  conditions: Sequence[Condition],
  stored: Mapping[str, jax.Array],
  kept: Mapping[str, jax.Array],
  *,
  given_spread: float,
  low_res: jax.Array | None = None,
  low_res_spread: float = 0.0,
  details: int = 0,
) -> Guess | None:
  """The guess that a network starts from, see `diffusion.process.velocity_around`.

  Args:
    x_t: noisy images (B, S, S, 3), of which only the shape matters.
    conditions: that the model knows.
    stored: their values by name, (B, *shape), local ones on a grid of S or a multiple
      of it. A pixel counts as given where all that it averages over is.
    kept: by name, (B,): which samples follow the condition, 0 or False for none.
    given_spread: of images around the pixels that a condition gives; 0 leaves these
      to the network.
    low_res: enlarged low-resolution images (B, S, S, 3), or None.
    low_res_spread: of images around `low_res`; 0 leaves that to the network too.
    details: how many times larger `low_res` was made, to add to it what a condition
      that gives the brightness shows and that size could not; 0 adds nothing.

  Returns:
    None if nothing is guessed. Where only some pixels are, the others are 0 with a
    spread of 1, around which v is what it is without a guess.
  """
  if low_res is not None and low_res_spread:
    guess = Guess(low_res, low_res_spread)
    if details:
      guess = _sharpened(guess, conditions, stored, kept, details)
  elif given_spread:
    guess = Guess(jnp.zeros_like(x_t), 1.0)
  else:
    return None
  if not given_spread:
    return guess
  for condition, value, follow in _followed(conditions, stored, kept):
    given = condition.given(value)
    if given is not None:
      colour, where = (average(x, x_t.shape[1]) for x in given)
      where = (where > 1 - 1e-6) & follow
      image = jnp.where(where, colour, guess.image)
      guess = Guess(image, jnp.where(where, given_spread, guess.spread))
  return guess


def _followed(
  conditions: Sequence[Condition],
  stored: Mapping[str, jax.Array],
  kept: Mapping[str, jax.Array],
) -> Iterator[tuple[Condition, jax.Array, jax.Array]]:
  """The conditions that are there, their values, and who follows: bool (B, 1, 1, 1)."""
  for condition in conditions:
    if condition.name in stored and condition.name in kept:
      follow = kept[condition.name] != 0
      yield condition, stored[condition.name], follow.reshape(-1, 1, 1, 1)


def _sharpened(
  guess: Guess,
  conditions: Sequence[Condition],
  stored: Mapping[str, jax.Array],
  kept: Mapping[str, jax.Array],
  scale: int,
) -> Guess:
  """Adds to all channels what the brightness has and its own enlargement has not."""
  image, side = guess.image, guess.image.shape[1]
  for condition, value, follow in _followed(conditions, stored, kept):
    gray = condition.gray(value)
    if gray is not None:
      gray = average(gray, side)
      finer = gray - enlarge(average(gray, side // scale), side)
      image += jnp.where(follow, finer, 0)
  return guess._replace(image=image)
