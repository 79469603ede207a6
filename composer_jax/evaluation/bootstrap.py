"""Confidence intervals: of a mean by the bootstrap, of other figures by the jackknife.

Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), section 13.3: the
percentile interval. Kott, "The Delete-a-Group Jackknife" (2001).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import scipy

CONFIDENCE = 0.95
RESAMPLES = 10_000
GROUPS = 10
"""Parts of a sample, of which the jackknife leaves out one at a time."""

_DRAWS_AT_ONCE = 4_000_000
"""Numbers held at a time: 10,000 resamples of many values would fill the memory."""


@dataclasses.dataclass(frozen=True)
class Estimate:
  """A mean and how sure it is.

  Attributes:
    values: what was averaged, float64 (N,).
    mean: their mean.
    low: lower end of the 95% interval of the mean.
    high: upper end.
  """

  values: np.ndarray
  mean: float
  low: float
  high: float

  def __str__(self) -> str:
    return f'{self.mean:.3g} [{self.low:.3g}, {self.high:.3g}]'


def interval(
  values: np.ndarray,
  *,
  confidence: float = CONFIDENCE,
  resamples: int = RESAMPLES,
  seed: int = 0,
) -> tuple[float, float]:
  """Percentile bootstrap interval of the mean.

  Args:
    values: float (N,), at least one, all finite.
    confidence: share of such intervals that hold the true mean.
    resamples: number of bootstrap samples.
    seed: of the resampling; the same seed gives the same interval.

  Returns:
    Its lower and upper end. One value alone gives an interval without width.

  Raises:
    ValueError: there are no values, one is not finite, or an option is out of range.
  """
  values = np.asarray(values, np.float64)
  if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
    raise ValueError(
      f'values: shape {values.shape}, {np.isfinite(values).sum()} finite; expected'
      ' one axis and at least one value, all finite.'
    )
  if not 0 < confidence < 1 or resamples < 1:
    raise ValueError(
      f'confidence {confidence}, resamples {resamples}; expected a share between 0'
      ' and 1 and at least one resample.'
    )
  rng = np.random.default_rng(seed)
  rows = max(1, _DRAWS_AT_ONCE // len(values))
  means = np.concatenate([
    values[rng.integers(len(values), size=(min(rows, resamples - start), len(values)))]
    .mean(axis=1)
    for start in range(0, resamples, rows)
  ])  # fmt: skip
  tail = (1 - confidence) / 2
  low, high = np.quantile(means, (tail, 1 - tail))
  return float(low), float(high)


def estimate(values: np.ndarray, *, seed: int = 0) -> Estimate:
  """The mean of float (N,) values with its 95% interval; see `interval`."""
  values = np.asarray(values, np.float64)
  low, high = interval(values, seed=seed)
  return Estimate(values, float(values.mean()), low, high)


def paired(a: np.ndarray, b: np.ndarray, *, seed: int = 0) -> Estimate:
  """The mean of a - b, where a[i] and b[i] were measured on the same thing.

  What makes one image easy in both cancels, so this is a finer test than two
  separate intervals.

  Raises:
    ValueError: they differ in shape, or as `interval` does.
  """
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  if a.shape != b.shape:
    raise ValueError(f'Pairs of shapes {a.shape} and {b.shape}, expected equal ones.')
  return estimate(a - b, seed=seed)


@dataclasses.dataclass(frozen=True)
class Replicated:
  """A figure of a whole sample, and how sure it is.

  Attributes:
    replicates: the figure without each of the groups, float64 (GROUPS,).
    mean: the figure of all.
    low: lower end of its 95% interval.
    high: upper end.
  """

  replicates: np.ndarray
  mean: float
  low: float
  high: float

  def __str__(self) -> str:
    return f'{self.mean:.3g} [{self.low:.3g}, {self.high:.3g}]'


def jackknife(
  figure: Callable[[np.ndarray], float], count: int, *, seed: int = 0
) -> Replicated:
  """A figure that is no mean, such as a distance between sets, with its interval.

  The delete-a-group jackknife (Kott 2001): the figure is taken of all samples, then
  without each of `GROUPS` random parts of them. Unlike the bootstrap it takes no sample
  twice, which such distances would mistake for a smaller spread.

  Args:
    figure: of the indices of samples.
    count: number of samples, at least two for each group.
    seed: of the groups; figures of the same samples and seed share them.

  Raises:
    ValueError: there are too few samples.
  """
  if count < 2 * GROUPS:
    raise ValueError(f'{count} samples, expected at least {2 * GROUPS}.')
  everyone = np.arange(count)
  groups = np.random.default_rng(seed).permutation(count) % GROUPS
  values = [figure(everyone[groups != group]) for group in range(GROUPS)]
  return replicated(figure(everyone), np.array(values, np.float64))


def replicated(mean: float, replicates: np.ndarray) -> Replicated:
  """The interval that jackknife replicates give, with Student's t of GROUPS - 1."""
  spread = (GROUPS - 1) / GROUPS * np.square(replicates - replicates.mean()).sum()
  reach = float(scipy.stats.t.ppf((1 + CONFIDENCE) / 2, GROUPS - 1) * np.sqrt(spread))
  return Replicated(replicates, mean, mean - reach, mean + reach)
