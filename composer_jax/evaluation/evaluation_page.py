"""The page of an evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from composer_jax.evaluation.curves import Curve
from composer_jax.evaluation.page import drawn, template, uri


class Gallery(NamedTuple):
  """Pictures under each other, a column for each held-out image.

  Attributes:
    group: the wish or task that they are of.
    rows: what each row shows, and uint8 (N, S, S, 3).
  """

  group: str
  rows: Sequence[tuple[str, np.ndarray]]


def render(
  evaluation: Mapping[str, Any],
  galleries: Iterable[Gallery],
  curves: Sequence[Curve],
) -> str:
  """The whole of `index.html`.

  Args:
    evaluation: the contents of `evaluation.json`.
    galleries: of its wishes and tasks.
    curves: of the training.
  """
  shown = {
    gallery.group: [
      {'label': label, 'uris': [uri(image) for image in images]}
      for label, images in gallery.rows
    ]
    for gallery in galleries
  }
  return template('evaluation.html.jinja').render(
    evaluation=evaluation, galleries=shown, stages=drawn(curves)
  )
