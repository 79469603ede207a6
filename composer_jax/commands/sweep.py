"""`composer-jax sweep`: runs that differ in some fields of one config, compared."""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import re
import shlex
from typing import Any

from composer_jax.commands.launch import resolved_config, write_files
from composer_jax.files import read_json, write_json, write_text
from launch import flags as flags_lib
from launch import local, restarts
from launch import sweep as sweep_lib
from launch.job import Job
from launch.sweep import Sweep, Unit
from launch.sweep_runs import Runs, state

SWEEP_FILE = 'sweep.json'
RESOLVED_FILE = 'resolved.json'
"""All fields of the config of a run, as it was asked for."""

EPILOG = """Fields that all runs set are given with --config.field=value. Run again, it
goes on with the runs that have not finished.

examples:
  composer-jax sweep --config configs/sweeps/demo_grid.py --out runs/demo_grid \\
      --config.data.path=demo/data
  composer-jax sweep --config configs/sweeps/demo_grid.py --out runs/demo_grid --compare
  composer-jax sweep --config configs/sweeps/base64_random.py --out runs/random \\
      --target slurm --topology gpu:1x8 --workdir /shared/random \\
      --config.data.path=/shared/data
"""


def _parser(target: str) -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog='composer-jax sweep',
    description='Trains once for each point of a grid, of random draws, or of a list,'
    ' and compares the runs by a metric. One that fails does not stop the rest.',
    epilog=EPILOG,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument(
    '--config',
    required=True,
    metavar='FILE',
    help='such as configs/sweeps/demo_grid.py',
  )
  parser.add_argument('--out', type=pathlib.Path, required=True, metavar='DIR')
  parser.add_argument(
    '--target',
    choices=list(flags_lib.TARGETS),
    default='local',
    help='local runs the runs; the others write files that start one job a run',
  )
  parser.add_argument(
    '--parallel', type=int, default=1, metavar='N', help='local runs at a time'
  )
  parser.add_argument(
    '--compare', action='store_true', help='run nothing, write table and plot'
  )
  flags_lib.add_flags(parser, target)
  return parser


def _target(argv: list[str]) -> str:
  """The target, which decides what other flags there are."""
  early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
  early.add_argument('--target', default='local')
  named = early.parse_known_args(argv)[0].target
  return named if named in flags_lib.TARGETS else 'local'


def main(argv: list[str]) -> int:
  """Runs the verb; returns its exit status."""
  flags, rest = _parser(_target(argv)).parse_known_args(argv)
  extra = flags_lib.overrides(rest)

  from composer_jax import config as config_lib

  sweep = sweep_lib.read(config_lib.find(flags.config), extra)
  out = flags.out
  kept = out / SWEEP_FILE
  if kept.exists():
    before = read_json(kept, ['config', 'units'], 'Use another --out.')
    sweep_lib.check_same(sweep, before, out)
  if flags.compare:
    _compare(sweep, out)
    return 0
  jobs = {unit.name: _job(flags, sweep, unit) for unit in sweep.units}
  # All of them first: a slip in the last run should not cost the time of the others.
  resolved = {name: resolved_config(job) for name, (job, _) in jobs.items()}
  for job, options in jobs.values():
    flags_lib.TARGETS[flags.target].render(job, options)
  for name, config in resolved.items():
    (out / name).mkdir(parents=True, exist_ok=True)
    write_text(out / name / RESOLVED_FILE, config.to_json())
  write_json(kept, sweep_lib.as_json(sweep))
  if flags.target != 'local':
    for unit in sweep.units:
      write_files(flags.target, *jobs[unit.name], out / unit.name)
    first = sweep.units[0].name
    target = flags_lib.TARGETS[flags.target]
    command = target.start_command(jobs[first][0], out / first)
    print(f'To start the first: {shlex.join(command)}')
    return 0
  runs = Runs(
    sweep.units,
    out,
    lambda unit, folder: local.supervisor_of(
      jobs[unit.name][0], folder / 'logs', terminal=False
    ),
    flags.parallel,
  )
  complete = runs.run()
  _compare(sweep, out)
  if not complete:
    print('Interrupted; run again to go on.')
    return restarts.SAVED
  states = [state(out / unit.name) for unit in sweep.units]
  if failed := states.count('failed'):
    raise RuntimeError(f'{failed} of {len(states)} runs failed; run again to retry.')
  return 0


def _job(flags: argparse.Namespace, sweep: Sweep, unit: Unit) -> tuple[Job, Any]:
  """The job of one run, and the options of its target."""
  base = re.sub('[^a-z0-9]+', '-', flags.out.absolute().name.lower()).strip('-')
  if not base[:1].isalpha():
    base = f'sweep-{base}'
  job, options = flags_lib.described(
    flags,
    flags.target,
    unit.overrides,
    {'topology': 'cpu:1'} if flags.target == 'local' else {},
    name=f'{base[:36].rstrip("-")}-{unit.name[:3]}',
    config=sweep.config,
  )
  folder = str(flags.out) if flags.target == 'local' else job.workdir or f'runs/{base}'
  return dataclasses.replace(job, workdir=f'{folder}/{unit.name}'), options


def _compare(sweep: Sweep, out: pathlib.Path) -> None:
  """Writes the table and the plot, and prints the table."""
  from composer_jax.evaluation.comparison import read_rows, table, write_comparison

  rows = read_rows(
    out,
    {unit.name: state(out / unit.name) for unit in sweep.units},
    {unit.name: unit.values for unit in sweep.units},
    sweep.metric,
    sweep.goal,
  )
  out.mkdir(parents=True, exist_ok=True)
  write_comparison(out, rows, sweep.metric)
  print(table(rows, sweep.metric))
