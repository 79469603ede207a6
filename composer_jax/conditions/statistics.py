"""Mean and deviation of embeddings, by which a prior normalises them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np


class EmbeddingStatistics(NamedTuple):
  """What normalises embeddings.

  Attributes:
    mean: of each coordinate, float32 (D,).
    std: standard deviation of each coordinate, float32 (D,), above 0.
  """

  mean: np.ndarray
  std: np.ndarray


def embedding_statistics(batches: Iterable[np.ndarray]) -> EmbeddingStatistics:
  """Mean and standard deviation of embeddings, in one pass and float64.

  Batches are merged by the pairwise update of Chan et al., "Algorithms for Computing
  the Sample Variance", 1983, equation 2.1, which does not cancel where the mean is
  large.

  Args:
    batches: float (B, D), B of any size; samples without an embedding left out.

  Returns:
    Of all rows together. The deviation is the population's (divided by the count); a
    coordinate that is always the same gets 1, and so is normalised to 0.

  Raises:
    ValueError: there is no embedding, one is not finite, or the shapes do not agree.
  """
  count = 0
  mean = squares = np.zeros(0)
  for batch in batches:
    rows = np.asarray(batch, np.float64)
    if rows.ndim != 2 or (count and rows.shape[1:] != mean.shape):
      width = mean.size if count else 'D'
      raise ValueError(
        f'A batch of embeddings has shape {rows.shape}; expected (B, {width}).'
      )
    if not np.isfinite(rows).all():
      bad = int((~np.isfinite(rows).all(axis=1)).sum())
      raise ValueError(
        f'{bad} of {len(rows)} embeddings of a batch are not finite; make them anew.'
      )
    if not len(rows):
      continue
    if not count:
      mean = squares = np.zeros(rows.shape[1])
    total = count + len(rows)
    rows_mean = rows.mean(axis=0)
    delta = rows_mean - mean
    within = np.square(rows - rows_mean).sum(axis=0)
    squares = squares + within + np.square(delta) * (count * len(rows) / total)
    mean = mean + delta * (len(rows) / total)
    count = total
  if not count:
    raise ValueError('There are no embeddings; expected at least one.')
  std = np.sqrt(squares / count)
  # Sums of equal numbers round: what is left is far below the numbers' own rounding.
  std = np.where(std > 1e-9 * np.abs(mean), std, 1)
  return EmbeddingStatistics(mean.astype(np.float32), std.astype(np.float32))
