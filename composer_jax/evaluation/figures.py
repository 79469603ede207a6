"""A figure of a model: its interval, its baseline, its difference to another one's."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from composer_jax.evaluation.bootstrap import (
  Estimate,
  Replicated,
  estimate,
  jackknife,
  paired,
  replicated,
)


@dataclasses.dataclass(frozen=True)
class Figure:
  """One figure.

  Attributes:
    name: such as `palette cosine`.
    higher_is_better: whether larger values are better ones.
    value: the figure with its 95% interval; a mean over images, or one of a whole set.
    count: images that it is of.
    indices: int (count,), the held-out images that the values of a mean belong to.
    beside: what it is to be held against, or None.
    baseline: what that is, such as `shuffled`.
    real: whether that is of real images, which is to be come near to and not to beat.
  """

  name: str
  higher_is_better: bool
  value: Estimate | Replicated
  count: int
  indices: np.ndarray | None = None
  beside: Estimate | Replicated | None = None
  baseline: str = ''
  real: bool = False

  @property
  def apart(self) -> bool | None:
    """Whether it is better than its baseline and their intervals do not overlap.

    None if there is none to beat.
    """
    if self.beside is None or self.real:
      return None
    if self.higher_is_better:
      return self.value.low > self.beside.high
    return self.value.high < self.beside.low

  def to_json(self) -> dict[str, Any]:
    """Plain values; those of each image too, where it is a mean."""
    plain: dict[str, Any] = {
      'name': self.name,
      'higher_is_better': self.higher_is_better,
      'count': self.count,
      'apart': self.apart,
      **_ends(self.value),
    }
    if isinstance(self.value, Estimate):
      plain['values'] = self.value.values.tolist()
    if self.beside is not None:
      plain['beside'] = {'what': self.baseline, **_ends(self.beside)}
    return plain


def _ends(value: Estimate | Replicated) -> dict[str, float]:
  return {name: float(getattr(value, name)) for name in ('mean', 'low', 'high')}


def key(group: str, name: str) -> str:
  """The name of a figure of a wish or task in logs, such as `all/palette_cosine`."""
  return f'{group}/{re.sub("[^0-9A-Za-z]+", "_", name).strip("_")}'


def of_images(
  name: str,
  values: np.ndarray,
  *,
  higher_is_better: bool = True,
  beside: np.ndarray | None = None,
  baseline: str = '',
  real: bool = False,
  indices: np.ndarray | None = None,
) -> Figure:
  """The mean of a value that each image has.

  Args:
    name: of the figure.
    values: float or bool (N,).
    higher_is_better: whether larger ones are better.
    beside: float (M,), of which the mean is the baseline.
    baseline: what that is.
    real: whether that is of real images.
    indices: of the images, int (N,); all in order if None.
  """
  return Figure(
    name,
    higher_is_better,
    estimate(values),
    len(values),
    np.arange(len(values)) if indices is None else indices,
    None if beside is None else estimate(beside),
    baseline,
    real,
  )


def of_sets(
  name: str,
  figure: Callable[[np.ndarray], float],
  count: int,
  *,
  higher_is_better: bool = False,
  beside: Callable[[np.ndarray], float] | None = None,
  baseline: str = '',
  share: bool = False,
) -> Figure:
  """A figure of two sets as a whole, beside the same of real images.

  Args:
    name: of the figure.
    figure: of the indices of images that take part, as in `bootstrap.jackknife`.
    count: of images.
    higher_is_better: whether larger values are better.
    beside: likewise, of the baseline.
    baseline: what that is.
    share: whether it is within 0 and 1, and so are the ends of its interval.
  """

  def sure(of: Callable[[np.ndarray], float]) -> Replicated:
    found = jackknife(of, count)
    if not share:
      return found
    return dataclasses.replace(found, low=max(found.low, 0), high=min(found.high, 1))

  return Figure(
    name,
    higher_is_better,
    sure(figure),
    count,
    None,
    None if beside is None else sure(beside),
    baseline,
    real=True,
  )


def difference(a: Figure, b: Figure) -> Estimate | Replicated | None:
  """A - b of the same images and seeds, with the interval of the difference.

  Means are compared image by image, others group by group, so what makes an image easy
  for both cancels.

  Returns:
    None if they have no images in common or are of different kinds.
  """
  if isinstance(a.value, Replicated) and isinstance(b.value, Replicated):
    return replicated(
      a.value.mean - b.value.mean, a.value.replicates - b.value.replicates
    )
  if not (isinstance(a.value, Estimate) and isinstance(b.value, Estimate)):
    return None
  assert a.indices is not None and b.indices is not None  # Means have them.
  _, here, there = np.intersect1d(a.indices, b.indices, return_indices=True)
  if not len(here):
    return None
  return paired(a.value.values[here], b.value.values[there])
