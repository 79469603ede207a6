"""Pose transfer: someone or something in the pose of another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from composer_jax.composer import Composer
from composer_jax.tasks.parts import LOOKS, known, take_apart

POSE = ('instances', 'depth')


def pose_transfer(
  composer: Composer,
  subjects: np.ndarray,
  poses: np.ndarray,
  *,
  seeds: np.ndarray,
  sampling: Mapping[str, Any] | None = None,
) -> np.ndarray:
  """Draws what some images show in the outlines of others.

  Args:
    composer: the model.
    subjects: uint8 (B, S, S, 3): their embedding and colours are taken.
    poses: uint8 (B, S, S, 3): their instances and depth are taken.
    seeds: integers (B,).
    sampling: as `Composer.compose` takes it.

  Returns:
    uint8 (B, S, S, 3).
  """
  stored = take_apart(composer, subjects, known(composer, LOOKS))
  stored |= take_apart(composer, poses, known(composer, POSE))
  return composer.compose(stored, seeds=seeds, sampling=sampling)
