"""Sweeps: many runs that differ in some fields of one config."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import pathlib
import random
import re
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
  from composer_jax import config_files  # It takes JAX seconds to be imported.

  given = config_files.run(path, like='configs/sweeps/')
  if not isinstance(given, Mapping):
    raise ValueError(
      f'{path}: get_config() returns {given!r}; expected a dict, see configs/sweeps/.'
    )
  try:
    return _sweep(given, extra)
  except ValueError as error:
    raise ValueError(f'{path}: {error}') from error


def _sweep(given: Mapping[str, Any], extra: Sequence[str]) -> Sweep:
  """The sweep that a file describes, with `field=value` that all its runs set."""
  if unknown := [name for name in given if name not in FIELDS]:
    raise ValueError(
      f'{unknown[0]!r} is no field of a sweep; expected {", ".join(FIELDS)}.'
    )
  given = {name: _plain(name, value) for name, value in given.items()}
  if not isinstance(config := given.get('config'), str):
    raise ValueError(
      f'config is {config!r}; expected a config file, such as configs/demo/base.py.'
    )
  if not isinstance(metric := given.get('metric', 'loss'), str):
    raise ValueError(f'metric is {metric!r}; expected a name, such as loss.')
  if (goal := given.get('goal', 'min')) not in ('min', 'max'):
    raise ValueError(f'goal is {goal!r}; expected min or max.')
  points = list(_points(given))
  if not points:
    raise ValueError(f'the sweep has no runs; expected one of {", ".join(SPACES)}.')
  varied = {field for point in points for field in point}
  for word in extra:
    if (field := word.partition('=')[0]) in varied:
      raise ValueError(
        f'--config.{word} is given, and the sweep varies {field}; leave out one of'
        ' them.'
      )
  overrides = _fields('overrides', given.get('overrides') or {})
  fixed = [f'{field}={_flag(value)}' for field, value in overrides.items()]
  units = tuple(
    Unit(
      _name(index, point),
      point,
      (*fixed, *extra, *(f'{field}={_flag(value)}' for field, value in point.items())),
    )
    for index, point in enumerate(points)
  )
  return Sweep(config, metric, goal, units)


def _plain(where: str, value: Any) -> Any:
  """A value as flags and JSON can hold it, so with NumPy's numbers as Python's."""
  if hasattr(value, 'tolist'):
    value = value.tolist()
  if isinstance(value, Mapping):
    if wrong := [field for field in value if not isinstance(field, str)]:
      raise ValueError(f'{where} has the field {wrong[0]!r}; expected text.')
    return {field: _plain(f'{where}[{field!r}]', v) for field, v in value.items()}
  if isinstance(value, list | tuple):
    made = [_plain(f'{where}[{index}]', v) for index, v in enumerate(value)]
    return made if isinstance(value, list) else tuple(made)
  if value is None or isinstance(value, str | int | float):
    return value
  raise ValueError(
    f'{where} is {value!r}; expected a number, text, True, False, None, or a list.'
  )


def _fields(where: str, value: Any) -> Mapping[str, Any]:
  if not isinstance(value, Mapping):
    raise ValueError(f'{where} is {value!r}; expected a dict of fields.')
  return value


def _points(given: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
  """The fields of each run."""
  explicit = given.get('explicit') or []
  if not isinstance(explicit, list | tuple):
    raise ValueError(f'explicit is {explicit!r}; expected a list of dicts of fields.')
  for index, point in enumerate(explicit):
    if (first := explicit.index(point)) < index:
      raise ValueError(
        f'explicit[{first}] and explicit[{index}] are both {point!r}; leave out one of'
        ' them.'
      )
    yield _fields(f'explicit[{index}]', point)
  grid = _fields('grid', given.get('grid') or {})
  for field, values in grid.items():
    if not isinstance(values, list | tuple) or not values:
      raise ValueError(f'grid[{field!r}] is {values!r}; expected a list of values.')
    words = [_flag(value) for value in values]  # For Python, True is 1.
    for word in words:
      if words.count(word) > 1:
        raise ValueError(f'grid[{field!r}] has {word} twice; leave out one of them.')
  if grid:
    for values in itertools.product(*grid.values()):
      yield dict(zip(grid, values, strict=True))
  if drawn := _fields('random', given.get('random') or {}):
    yield from _draws(drawn)


def _draws(drawn: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
  if unknown := set(drawn) ^ {'count', 'seed', 'fields'}:
    raise ValueError(
      f'random has {", ".join(drawn)}; expected count, seed and fields, so look at'
      f' {sorted(unknown)[0]}.'
    )
  count, seed = drawn['count'], drawn['seed']
  if not isinstance(count, int) or isinstance(count, bool) or count < 1:
    raise ValueError(f'random.count is {count!r}; expected a number, 1 or more.')
  if not isinstance(seed, int | float | str):
    raise ValueError(f'random.seed is {seed!r}; expected a number.')
  fields = _fields('random.fields', drawn['fields'])
  generator = random.Random(seed)
  for _ in range(count):
    yield {field: _draw(generator, field, draw) for field, draw in fields.items()}


def _draw(generator: random.Random, field: str, draw: Any) -> Any:
  kind, *arguments = draw if isinstance(draw, list | tuple) and draw else [None]
  if kind == 'choice' and arguments:
    return generator.choice(arguments)
  numbers = [a for a in arguments if isinstance(a, int | float) and math.isfinite(a)]
  if kind in ('uniform', 'log_uniform') and len(numbers) == len(arguments) == 2:
    low, high = numbers
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
