"""The page of a report: its pictures, its drawings, its template."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import numpy as np

from composer_jax import conditions as conditions_lib
from composer_jax.evaluation.curves import Curve, draw_svg
from composer_jax.evaluation.fidelity import HeldOut, Outcome
from composer_jax.evaluation.gallery import Mixture, Strip
from composer_jax.images import encode_png


def render(
  report: Mapping[str, Any],
  held_out: HeldOut,
  outcomes: Sequence[Outcome],
  made: Sequence[tuple[Strip | Mixture, np.ndarray]],
  curves: Sequence[Curve],
) -> str:
  """The whole of `index.html`.

  Args:
    report: the contents of `report.json`.
    held_out: what it was measured on.
    outcomes: what was composed from each condition alone, then from all together.
    made: what was composed only to be looked at.
    curves: of the training.
  """
  return template('report.html.jinja').render(
    report=report,
    sets=[
      (title, report[key])
      for title, key in (('Each alone', 'alone'), ('All together', 'together'))
      if report[key]
    ],
    works=_works(report, held_out, outcomes, made),
    tables=[
      _table(report, held_out, one, images)
      for one, images in made
      if isinstance(one, Mixture)
    ],
    stages=drawn(curves),
  )


def template(name: str) -> jinja2.Template:
  """A template of this package."""
  environment = jinja2.Environment(
    loader=jinja2.PackageLoader('composer_jax', 'evaluation'),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
  )
  environment.filters |= {'figure': figure, 'places': _places, 'words': _words}
  return environment.get_template(name)


def drawn(curves: Sequence[Curve]) -> dict[str, list[dict[str, Any]]]:
  """Curves by stage, as drawings."""
  stages: dict[str, list[dict[str, Any]]] = {}
  for curve in curves:
    one = {'name': curve.name, 'svg': draw_svg(curve), 'log': curve.logarithmic}
    stages.setdefault(curve.stage, []).append(one)
  return stages


def _works(
  report: Mapping[str, Any],
  held_out: HeldOut,
  outcomes: Sequence[Outcome],
  made: Sequence[tuple[Strip | Mixture, np.ndarray]],
) -> list[dict[str, Any]]:
  """What the page shows of each held-out image."""
  parts = [o for o in outcomes if len(o.given) == 1]
  together = [o for o in outcomes if len(o.given) > 1]
  return [
    {
      'name': _name(report, index),
      'original': uri(held_out.images[index]),
      'all': uri(together[0].images[index]) if together else None,
      'parts': [_part(held_out, outcome, index) for outcome in parts],
      'strips': [
        (one.title, [uri(image) for image in images])
        for one, images in made
        if isinstance(one, Strip) and one.index == index
      ],
    }
    for index in range(report['settings']['shown'])
  ]


def _part(held_out: HeldOut, outcome: Outcome, index: int) -> dict[str, Any]:
  """One condition of one image, and what was composed from it alone."""
  (name,) = outcome.given
  fidelity = outcome.fidelities.get(name)
  metric = score = None
  if fidelity is not None and index in fidelity.indices:
    place = int(np.flatnonzero(fidelity.indices == index)[0])
    metric = fidelity.headline.name
    score = float(fidelity.headline.asked.values[place])
  return {
    'name': name,
    'drawn': _draw(held_out, name, index),
    'composed': uri(outcome.images[index]),
    'metric': metric,
    'score': score,
  }


def _table(
  report: Mapping[str, Any], held_out: HeldOut, mixture: Mixture, images: np.ndarray
) -> dict[str, Any]:
  each = iter(images)

  def lender(name: str, index: int) -> dict[str, Any]:
    return {'name': _name(report, index), 'drawn': _draw(held_out, name, index)}

  return {
    'local': mixture.local,
    'loose': mixture.loose,
    'columns': [lender(mixture.loose, index) for index in mixture.columns],
    'rows': [
      lender(mixture.local, index)
      | {'cells': [uri(next(each)) for _ in mixture.columns]}
      for index in mixture.rows
    ],
  }


def _name(report: Mapping[str, Any], index: int) -> str:
  image = report['images'][index]
  return image['text'] or image['key'] or f'image {index + 1}'


def _draw(held_out: HeldOut, name: str, index: int) -> str | None:
  if not held_out.present[name][index]:
    return None
  (condition,) = conditions_lib.by_name([name])
  return uri(condition.draw(held_out.asked[name][index]))


def uri(pixels: np.ndarray) -> str:
  """A uint8 picture as an address that holds it."""
  return 'data:image/png;base64,' + base64.b64encode(encode_png(pixels)).decode()


def _places(metric: Mapping[str, Any]) -> dict[str, float]:
  """Where the figures of a metric lie on an axis on which better is further right.

  Returns:
    Per cent from the left, by name such as `asked_low`.
  """
  ends = ('low', 'mean', 'high')
  kinds = ('asked', 'shuffled', 'ceiling')
  points = {f'{kind}_{end}': metric[kind][end] for kind in kinds for end in ends}
  # Zero belongs to the axis, so that the length of a gap can be judged by eye.
  low, high = min(0.0, *points.values()), max(0.0, *points.values())
  width = (high - low) or 1.0
  places = {name: 100 * (value - low) / width for name, value in points.items()}
  if not metric['higher_is_better']:
    flipped = {'low': 'high', 'mean': 'mean', 'high': 'low'}
    places = {
      f'{kind}_{flipped[end]}': 100 - places[f'{kind}_{end}']
      for kind in kinds
      for end in ends
    }
  return {name: round(place, 2) for name, place in places.items()}


def _words(name: str) -> str:
  """A name from the code, as text."""
  return name.replace('_', ' ')


def figure(value: float) -> str:
  """A number as the page and the terminal show it."""
  return f'{value:.1f}' if abs(value) >= 10 else f'{value:.2f}'
