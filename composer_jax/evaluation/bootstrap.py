"""Bootstrap confidence intervals of a mean.

Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), section 13.3: the
percentile interval.
"""

from __future__ import annotations

import dataclasses

import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 10_000

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
