"""`composer-jax describe`: what a config's model is made of, without making it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from composer_jax import config_files
from composer_jax.describe import Description, Row, describe


def _short(number: float) -> str:
  """1234567 as 1.23M."""
  units = iter(('', 'k', 'M', 'G', 'T', 'P'))
  unit = next(units)
  while number >= 1000:
    number, unit = number / 1000, next(units)
  return f'{number:.3g}{unit}'


def table(found: Description, depth: int) -> str:
  """Rows of parameters with the sums of their modules, `depth` names deep at most."""
  modules: dict[str, list[Row]] = {}
  for row in found.rows:
    parts = row.path.split('/')
    modules.setdefault('/'.join(parts[:depth]), []).append(row)
  lines = [('module', 'shape', 'parameters', 'FLOPs an image', 'sharding')]
  for name, rows in modules.items():
    alone = rows[0] if len(rows) == 1 and rows[0].path == name else None
    split = {_words(axis) for row in rows for axis in row.sharding if axis}
    whole = [_words(axis) for axis in alone.sharding] if alone else sorted(split)
    lines.append(
      (
        name,
        ' x '.join(map(str, alone.shape)) if alone else f'{len(rows)} arrays',
        f'{sum(row.parameters for row in rows):,}',
        _short(sum(row.flops for row in rows)),
        ', '.join(whole),
      )
    )
  attention = found.forward_flops - sum(row.flops for row in found.rows)
  lines.append(('(between activations)', '', '', _short(attention), ''))
  total = (f'{found.parameters:,}', _short(found.forward_flops))
  lines.append(('total', '', *total, ''))
  return _aligned(lines)


def _words(axes: str | tuple[str, ...] | None) -> str:
  """Axes of the mesh along one axis of an array."""
  return axes if isinstance(axes, str) else '+'.join(axes or ('-',))


def _aligned(lines: Sequence[Sequence[str]]) -> str:
  widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
  return '\n'.join(
    '  '.join(
      cell.rjust(width) if i in (2, 3) else cell.ljust(width)
      for i, (cell, width) in enumerate(zip(line, widths, strict=True))
    ).rstrip()
    for line in lines
  )


def main(argv: list[str]) -> int:
  """Runs the verb; returns its exit status."""
  parser = argparse.ArgumentParser(
    prog='composer-jax describe',
    description='Modules of a model, their parameters, FLOPs and sharding; nothing'
    ' is allocated.',
    epilog='Fields of the config are set with --config.field=value.',
    allow_abbrev=False,
  )
  parser.add_argument('--config', metavar='FILE', help='such as configs/paper/prior.py')
  parser.add_argument('--devices', type=int, help='to shard over')
  parser.add_argument('--depth', type=int, default=2, help='names deep; 99 for all')
  parser.add_argument('--json', action='store_true', help='totals and all arrays')
  flags, rest = parser.parse_known_args(argv)
  if min(flags.depth, 1 if flags.devices is None else flags.devices) < 1:
    parser.error('--devices and --depth are at least 1')
  given = [f'--config={flags.config}'] if flags.config else []
  found = describe(config_files.parse([*given, *rest]), flags.devices)
  if flags.json:
    rows = [vars(row) for row in found.rows]
    totals = {
      'parameters': found.parameters,
      'forward_flops': found.forward_flops,
      'arrays': rows,
    }
    print(json.dumps(totals, indent=2))
  else:
    print(table(found, flags.depth))
  return 0
