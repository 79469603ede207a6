"""Noise schedules: how fast an image turns into noise."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

Kind = Literal['cosine', 'linear']


@dataclasses.dataclass(frozen=True)
class Schedule:
  """A discrete variance-preserving noise schedule.

  Attributes:
    betas: float64 (T,), variances of the forward steps.
    alphas_cumprod: float64 (T,), the share of the image's variance that is left
      at each step: q(x_t | x_0) = N(sqrt(a_t) x_0, (1 - a_t) I), DDPM eq. 4.
  """

  betas: np.ndarray
  alphas_cumprod: np.ndarray


def make_schedule(kind: Kind, num_steps: int = 1000) -> Schedule:
  """Builds a named schedule.

  Args:
    kind: `cosine` (Nichol and Dhariwal 2021, eq. 17, betas capped at 0.999) or
      `linear` (Ho et al. 2020, 1e-4 to 0.02 at 1000 steps, scaled for others).
    num_steps: T.

  Raises:
    ValueError: the kind is unknown or there are fewer than two steps.
  """
  if num_steps < 2:
    raise ValueError(f'diffusion.num_steps is {num_steps}; expected at least 2.')
  if kind == 'cosine':
    time = np.arange(num_steps + 1, dtype=np.float64) / num_steps
    left = np.cos((time + 0.008) / 1.008 * np.pi / 2) ** 2
    betas = np.minimum(1 - left[1:] / left[:-1], 0.999)
  elif kind == 'linear':
    scale = 1000 / num_steps
    betas = np.linspace(scale * 1e-4, scale * 0.02, num_steps, dtype=np.float64)
    if betas[-1] >= 1:
      raise ValueError(
        f'diffusion.num_steps is {num_steps}; a linear schedule needs more than 20.'
      )
  else:
    raise ValueError(f'diffusion.schedule is {kind!r}; expected "cosine" or "linear".')
  return Schedule(betas, np.cumprod(1 - betas))
