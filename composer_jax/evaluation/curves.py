"""Training curves as SVG that stands inside a page and takes on its colours."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
from typing import Any
from xml.sax.saxutils import escape

import numpy as np

METRICS = 'metrics.jsonl'

_WIDTH, _HEIGHT = 480, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 12, 28
_MOST_POINTS = 400


@dataclasses.dataclass(frozen=True)
class Curve:
  """One number, logged while a stage trained.

  Attributes:
    stage: name of the run, such as `base`.
    name: of the number, such as `loss`.
    steps: int64 (N,), rising.
    values: float64 (N,), all finite.
  """

  stage: str
  name: str
  steps: np.ndarray
  values: np.ndarray

  @property
  def logarithmic(self) -> bool:
    """Whether the values are positive and span more than a factor of four."""
    return bool(self.values.min() > 0 and self.values.max() > 4 * self.values.min())


def read_curves(model_dir: str | os.PathLike[str]) -> list[Curve]:
  """The curves of all stages of a model.

  Args:
    model_dir: a folder with a folder for each stage, which holds `metrics.jsonl`.
      A line of it is an object with `step` and any numbers.

  Returns:
    Stage by stage in the order in which they began, losses first. Numbers that
    never change are left out.
  """
  paths = pathlib.Path(model_dir).glob(f'*/{METRICS}')
  curves = []
  for path in sorted(paths, key=lambda path: (_began(path), path)):
    own = [c for c in _read(path) if len(c.steps) > 1 and np.ptp(c.values) > 0]
    curves += sorted(own, key=lambda curve: ('loss' not in curve.name, curve.name))
  return curves


def _began(path: pathlib.Path) -> float:
  """When a run began, if it says so, or else when it last wrote."""
  for row in _rows(path):
    if isinstance(row.get('time'), float):
      return row['time']
  return path.stat().st_mtime


def _rows(path: pathlib.Path) -> list[dict]:
  rows = []
  for line in path.read_text('utf-8', errors='replace').splitlines():
    try:
      row = json.loads(line)
    except json.JSONDecodeError:
      continue  # A run that was killed leaves half a line behind.
    if isinstance(row, dict) and isinstance(row.get('step'), int):
      rows.append(row)
  return rows


def _read(path: pathlib.Path) -> list[Curve]:
  points: dict[str, dict[int, float]] = {}
  for row in _rows(path):
    for name, value in row.items():
      is_number = isinstance(value, int | float) and not isinstance(value, bool)
      if name in ('step', 'time') or not is_number or not math.isfinite(value):
        continue
      # A resumed run logs some steps twice; the later line is the one that counts.
      points.setdefault(name, {})[row['step']] = float(value)
  return [
    Curve(
      path.parent.name,
      name,
      np.array(sorted(by_step)),
      np.array([by_step[step] for step in sorted(by_step)]),
    )
    for name, by_step in points.items()
  ]


def smooth(values: np.ndarray) -> np.ndarray:
  """Running mean that forgets: half of its weight lies in the last 2% of (N,)."""
  keep = 0.5 ** (1 / max(1.0, 0.02 * len(values)))
  total, weight, smoothed = 0.0, 0.0, []
  for value in values:
    total, weight = keep * total + value, keep * weight + 1
    smoothed.append(total / weight)
  return np.array(smoothed)


def draw_svg(curve: Curve) -> str:
  """An `<svg>` element: the raw values faint, the smoothed ones bold.

  Colours are those of the surrounding page: `currentColor` for text, and the CSS
  variables `--accent` and `--rule`.
  """
  log = curve.logarithmic
  height = np.log10(curve.values) if log else curve.values
  low, high = _bounds(height)
  first, last = float(curve.steps[0]), float(curve.steps[-1])

  def x(step: Any) -> Any:
    return _LEFT + (step - first) / (last - first) * (_WIDTH - _LEFT - _RIGHT)

  def y(value: Any) -> Any:
    inner = _HEIGHT - _TOP - _BOTTOM
    return _TOP + (1 - np.clip((value - low) / (high - low), 0, 1)) * inner

  parts = []
  for tick, label in _log_ticks(low, high) if log else _ticks(low, high):
    parts.append(
      f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(tick):.1f}"'
      f' y2="{y(tick):.1f}" stroke="var(--rule)"/><text x="{_LEFT - 8}"'
      f' y="{y(tick) + 4:.1f}" text-anchor="end">{label}</text>'
    )
  for tick, label in _ticks(first, last, count=4):
    parts.append(
      f'<text x="{x(tick):.1f}" y="{_HEIGHT - 8}" text-anchor="middle">{label}</text>'
    )
  xs, raw, bold = x(curve.steps), y(height), y(smooth(height))
  parts.append(
    f'<path d="{_path(xs, raw)}" stroke="var(--accent)" stroke-opacity=".25"/>'
    f'<path d="{_path(xs, bold)}" stroke="var(--accent)" stroke-width="2"/>'
  )
  label = escape(
    f'{curve.stage}, {curve.name} by step: from {curve.values[0]:.3g} at step'
    f' {curve.steps[0]} to {curve.values[-1]:.3g} at step {curve.steps[-1]}.',
    {'"': '&quot;'},
  )
  return (
    f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}"'
    ' fill="none" stroke-linejoin="round">'
    f'<g class="plot">{"".join(parts)}</g></svg>'
  )


def _bounds(height: np.ndarray) -> tuple[float, float]:
  """The range to show: one wild first step must not flatten all others."""
  low, high = np.quantile(height, (0.002, 0.998)) if len(height) > 50 else (
    height.min(), height.max(),
  )  # fmt: skip
  margin = 0.05 * (high - low) or max(abs(high), 1.0) * 0.05
  return float(low - margin), float(high + margin)


def _ticks(low: float, high: float, count: int = 5) -> list[tuple[float, str]]:
  """Round numbers within a range, and how they are written."""
  rough = (high - low) / count
  power = 10 ** math.floor(math.log10(rough))
  step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
  values = np.arange(math.ceil(low / step), math.floor(high / step) + 1) * step
  return [(float(value), _number(float(value))) for value in values]


def _log_ticks(low: float, high: float) -> list[tuple[float, str]]:
  """1, 2, 5 of each decade, or whole decades where those are many."""
  factors = (1, 2, 5) if high - low < 2.5 else (1,)
  decades = range(math.floor(low), math.ceil(high) + 1)
  # A float has no whole negative powers to lose: 2e-3 prints as 0.002.
  values = [factor * 10.0**decade for decade in decades for factor in factors]
  ticks = [(math.log10(v), _number(v)) for v in values if low <= math.log10(v) <= high]
  if len(ticks) > 1:
    return ticks
  # Less than a decade in view, so round numbers of the values themselves.
  return [(math.log10(v), label) for v, label in _ticks(10**low, 10**high)]


def _number(value: float) -> str:
  if abs(value) >= 10_000:
    return f'{value / 1000:g}k'
  return f'{value:.4g}'


def _path(xs: np.ndarray, ys: np.ndarray) -> str:
  index = np.unique(np.linspace(0, len(xs) - 1, _MOST_POINTS).round().astype(int))
  points = (f'{x:.1f},{y:.1f}' for x, y in zip(xs[index], ys[index], strict=True))
  return 'M' + 'L'.join(points)
