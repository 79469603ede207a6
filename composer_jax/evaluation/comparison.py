"""Runs of a sweep beside each other: a table and a plot."""

from __future__ import annotations

import csv
import dataclasses
import io
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from composer_jax.evaluation.curves import Curve, read_curves, smooth
from composer_jax.files import read_json, write_json, write_text


@dataclasses.dataclass(frozen=True)
class Row:
  """What is known of one run.

  Attributes:
    name: of its folder.
    state: `missing`, `running`, `stopped`, `failed` or `finished`.
    values: fields that tell it from the others.
    curve: the metric by step, or None if it has not been measured twice yet.
    evaluated: the metric as `composer-jax evaluate` found it, or None.
  """

  name: str
  state: str
  values: Mapping[str, Any]
  curve: Curve | None
  evaluated: float | None = None

  @property
  def steps(self) -> int | None:
    """The last step at which the metric was measured."""
    return int(self.curve.steps[-1]) if self.curve else None

  @property
  def last(self) -> float | None:
    """The metric in the end, smoothed as the plot shows it, or as evaluated."""
    if self.evaluated is not None:
      return self.evaluated
    return float(smooth(self.curve.values)[-1]) if self.curve else None


def read_rows(
  out: pathlib.Path,
  states: Mapping[str, str],
  values: Mapping[str, Mapping[str, Any]],
  metric: str,
  goal: str,
) -> list[Row]:
  """The runs of a sweep, best first; those without a measurement are last.

  Args:
    out: folder of the folders of the runs.
    states: state of each run, by name.
    values: fields that tell it from the others, by name.
    metric: name of a number in `metrics.jsonl`, or of a figure that
      `composer-jax evaluate --out OUT/RUN/evaluation` found, which then counts.
    goal: `min` or `max`, whichever is better.
  """
  curves = {curve.stage: curve for curve in read_curves(out) if curve.name == metric}
  rows = [
    Row(
      name, states[name], values[name], curves.get(name), _evaluated(out / name, metric)
    )
    for name in states
  ]
  sign = 1 if goal == 'min' else -1
  return sorted(rows, key=lambda r: float('inf') if r.last is None else sign * r.last)


def _evaluated(run: pathlib.Path, metric: str) -> float | None:
  path = run / 'evaluation' / 'evaluation.json'
  if not path.is_file():
    return None
  return read_json(path, ('figures',), 'Evaluate again.')['figures'].get(metric)


def _cells(rows: Sequence[Row], metric: str) -> list[list[str]]:
  """A table with its heading; what is not known is empty."""
  fields = list(dict.fromkeys(field for row in rows for field in row.values))
  cells = [['run', *fields, 'state', 'steps', metric]]
  for row in rows:
    own = [str(row.values.get(field, '')) for field in fields]
    steps = '' if row.steps is None else str(row.steps)
    last = '' if row.last is None else f'{row.last:.5g}'
    cells.append([row.name, *own, row.state, steps, last])
  return cells


def table(rows: Sequence[Row], metric: str) -> str:
  """The table as aligned text."""
  cells = _cells(rows, metric)
  # A row's name repeats its values; its number finds it.
  shown = [[line[0][:3], *line[1:]] for line in cells]
  widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
  return '\n'.join(
    '  '.join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip()
    for line in shown
  )


def write_comparison(out: pathlib.Path, rows: Sequence[Row], metric: str) -> None:
  """Writes `comparison.csv`, `comparison.json`, and `comparison.png` if it has curves.

  Args:
    out: folder to write into.
    rows: best first.
    metric: what the curves show.
  """
  text = io.StringIO()
  csv.writer(text, lineterminator='\n').writerows(_cells(rows, metric))
  write_text(out / 'comparison.csv', text.getvalue())
  listed = [
    {
      'run': row.name,
      'values': dict(row.values),
      'state': row.state,
      'steps': row.steps,
      metric: row.last,
    }
    for row in rows
  ]
  write_json(out / 'comparison.json', listed)
  if curves := [row.curve for row in rows if row.curve]:
    _plot(curves, metric, out / 'comparison.png')


def _plot(curves: Sequence[Curve], metric: str, path: pathlib.Path) -> None:
  """Draws the metric by step, the best run first in the legend, as a PNG."""
  import matplotlib as mpl
  from matplotlib.figure import Figure

  figure = Figure(figsize=(9, 4.5), layout='constrained')
  axes = figure.subplots()
  colours = mpl.colormaps['viridis']
  for index, curve in enumerate(curves):
    colour = colours(index / max(len(curves) - 1, 1))
    axes.plot(curve.steps, curve.values, color=colour, alpha=0.25, linewidth=0.8)
    axes.plot(curve.steps, smooth(curve.values), color=colour, label=curve.stage)
  if all(curve.values.min() > 0 for curve in curves):
    axes.set_yscale('log' if any(c.logarithmic for c in curves) else 'linear')
  axes.set_xlabel('step')
  axes.set_ylabel(metric)
  axes.grid(alpha=0.3)
  # More than these would be taller than the plot; the table has all of them.
  handles, labels = axes.get_legend_handles_labels()
  figure.legend(handles[:20], labels[:20], loc='outside right upper', fontsize='small')
  figure.savefig(path, dpi=120)
