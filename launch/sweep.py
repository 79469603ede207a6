"""Sweeps: many runs that differ in some fields of one config."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import pathlib
import random
import re
import runpy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

SPACES = ('explicit', 'grid', 'random')
FIELDS = ('config', 'overrides', 'metric', 'goal', *SPACES)


@dataclasses.dataclass(frozen=True)
class Unit:
  """One run of a sweep.

  Attributes:
    name: of its folder, such as `003-learning_rate-0.001`.
    values: fields that tell it from the others.
    overrides: all fields that are set, as `field=value`.
  """

  name: str
  values: Mapping[str, Any]
  overrides: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Sweep:
  """What a sweep config asks for.

  Attributes:
    config: config file that all runs start from.
    metric: number in `metrics.jsonl` by which runs are compared.
    goal: `min` or `max`, whichever is better.
    units: the runs.
  """

  config: str
  metric: str
  goal: str
  units: tuple[Unit, ...]


def read(path: pathlib.Path, extra: Sequence[str] = ()) -> Sweep:
  """Reads a sweep config.

  It is a Python file whose `get_config()` returns a dict with `config`, a config file,
  and at least one of these:

  - `grid`: field to a sequence of values; all combinations are run.
  - `random`: `{'count': N, 'seed': S, 'fields': {field: draw}}`, where a draw is
    `('uniform', low, high)`, `('log_uniform', low, high)` or `('choice', a, b, ...)`.
    Between whole numbers, `uniform` draws whole numbers.
  - `explicit`: a sequence of dicts of fields.

  `overrides` is a dict of fields that all runs set. `metric` (`loss`) and `goal`
  (`min`) say how runs are compared. Fields are written as on the command line, such as
  `optimizer.learning_rate`.

  Args:
    path: of the file.
    extra: `field=value` that all runs set, after `overrides`.

  Raises:
    ValueError: the file is no sweep, or a space in it is none; names it.
  """
  get_config = runpy.run_path(str(path)).get('get_config')
  if get_config is None:
    raise ValueError(f'{path} has no function get_config(); see configs/sweeps/.')
  given = dict(get_config())
  if unknown := [name for name in given if name not in FIELDS]:
    raise ValueError(
      f'{path}: {unknown[0]!r} is no field of a sweep; expected {", ".join(FIELDS)}.'
    )
  if not isinstance(given.get('config'), str):
    raise ValueError(
      f'{path}: config is {given.get("config")!r}; expected a config file, such as'
      ' configs/demo/base.py.'
    )
  if (goal := given.get('goal', 'min')) not in ('min', 'max'):
    raise ValueError(f'{path}: goal is {goal!r}; expected min or max.')
  try:
    points = list(_points(given))
  except (ValueError, TypeError, AttributeError, KeyError) as error:
    raise ValueError(f'{path}: {error}') from error
  if not points:
    raise ValueError(f'{path} has no runs; expected one of {", ".join(SPACES)}.')
  fixed = [f'{k}={_flag(v)}' for k, v in dict(given.get('overrides', {})).items()]
  units = tuple(
    Unit(
      _name(index, point),
      point,
      (*fixed, *extra, *(f'{field}={_flag(value)}' for field, value in point.items())),
    )
    for index, point in enumerate(points)
  )
  return Sweep(given['config'], given.get('metric', 'loss'), goal, units)


def _points(given: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
  """The fields of each run."""
  for index, point in enumerate(given.get('explicit', ())):
    if not isinstance(point, Mapping):
      raise ValueError(f'explicit[{index}] is {point!r}; expected a dict of fields.')
    yield dict(point)
  grid = given.get('grid', {})
  for field, values in grid.items():
    if not isinstance(values, list | tuple) or not values:
      raise ValueError(f'grid[{field!r}] is {values!r}; expected a list of values.')
  if grid:
    for values in itertools.product(*grid.values()):
      yield dict(zip(grid, values, strict=True))
  if drawn := given.get('random'):
    if unknown := set(drawn) ^ {'count', 'seed', 'fields'}:
      raise ValueError(
        f'random has {", ".join(drawn)}; expected count, seed and fields, so look at'
        f' {sorted(unknown)[0]}.'
      )
    generator = random.Random(drawn['seed'])
    for _ in range(drawn['count']):
      yield {f: _draw(generator, f, draw) for f, draw in drawn['fields'].items()}


def _draw(generator: random.Random, field: str, draw: Sequence[Any]) -> Any:
  kind, *arguments = draw
  if kind == 'choice' and arguments:
    return generator.choice(arguments)
  if kind in ('uniform', 'log_uniform') and len(arguments) == 2:
    low, high = arguments
    if low < high and (kind == 'uniform' or low > 0):
      if kind == 'log_uniform':
        drawn = math.exp(generator.uniform(math.log(low), math.log(high)))
      elif isinstance(low, int) and isinstance(high, int):
        return generator.randint(low, high)
      else:
        drawn = generator.uniform(low, high)
      return float(f'{drawn:.4g}')  # What a person can read, and type again.
  raise ValueError(
    f"random.fields[{field!r}] is {draw!r}; expected ('uniform', LOW, HIGH),"
    " ('log_uniform', LOW, HIGH) with LOW above 0, or ('choice', A, B, ...)."
  )


def _flag(value: Any) -> str:
  """A value as `--config.field=` takes it."""
  return value if isinstance(value, str) else repr(value)


def _name(index: int, point: Mapping[str, Any]) -> str:
  words = [f'{field.split(".")[-1]}-{_flag(value)}' for field, value in point.items()]
  text = re.sub(r'[^\w.+]+', '-', '-'.join(words), flags=re.ASCII)
  return f'{index:03d}-{text[:60]}'.rstrip('-.')


def as_json(sweep: Sweep) -> dict[str, Any]:
  """All of a sweep, as it is kept beside its runs."""
  return json.loads(json.dumps(dataclasses.asdict(sweep)))


def check_same(sweep: Sweep, before: Mapping[str, Any], out: pathlib.Path) -> None:
  """Refuses to mix two sweeps in one folder; more runs at the end may be added.

  Raises:
    ValueError: a run is another one than before.
  """
  now = as_json(sweep)
  if now['config'] != before['config']:
    raise ValueError(
      f'{out} holds a sweep of {before["config"]}, and {now["config"]} is asked; use'
      ' another --out.'
    )
  for index, old in enumerate(before['units']):
    new = now['units'][index] if index < len(now['units']) else None
    if new != old:
      asked = new['overrides'] if new else 'no such run'
      raise ValueError(
        f'{out} holds another sweep: run {index} has {old["overrides"]} there, and'
        f' {asked} is asked; use another --out.'
      )
