"""`composer-jax sweep`: runs that differ in some fields of one config, compared."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import os
import pathlib
import re
import shlex
from typing import Any

from composer_jax.commands.launch import resolved_config, write_files
from composer_jax.files import alone, read_json, write_json, write_text
from launch import flags as flags_lib
from launch import local, restarts
from launch import sweep as sweep_lib
from launch.job import Job
from launch.sweep import Sweep, Unit
from launch.sweep_runs import Runs, state

SWEEP_FILE = 'sweep.json'
RESOLVED_FILE = 'resolved.json'
"""All fields of the config of a run, as it was asked for."""

Jobs = dict[str, tuple[Job, Any]]
"""The job of each run by its name, with the options of its target."""

EPILOG = """Fields that all runs set are given with --config.field=value. Run again, it
goes on with the runs that have not finished. --compare needs the same fields.

examples:
  composer-jax sweep --config configs/sweeps/demo_grid.py --out runs/demo_grid \\
      --config.data.path=demo/data
  composer-jax sweep --config configs/sweeps/demo_grid.py --out runs/demo_grid \\
      --config.data.path=demo/data --compare
  composer-jax sweep --config configs/sweeps/base64_random.py --out runs/random \\
      --target slurm --topology gpu:4x8 --workdir /shared/random \\
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

  from composer_jax import config_files

  sweep = sweep_lib.read(config_files.find(flags.config), extra)
  out = flags.out
  if flags.compare:
    if not out.is_dir():
      raise FileNotFoundError(
        f'--out={out}: there is no such folder; expected that of a sweep.'
      )
    _check_same(sweep, out)
    _check_metric(sweep, out, flags.config)
    _compare(sweep, out)
    return 0
  jobs = {unit.name: _job(flags, sweep, unit) for unit in sweep.units}
  # All of them first: a slip in the last run should not cost the time of the others.
  resolved = {name: resolved_config(job) for name, (job, _) in jobs.items()}
  for job, options in jobs.values():
    flags_lib.TARGETS[flags.target].render(job, options)
  with alone(out, 'a sweep'):
    _check_same(sweep, out)
    for name, config in resolved.items():
      (out / name).mkdir(parents=True, exist_ok=True)
      write_text(out / name / RESOLVED_FILE, config.to_json())
    write_json(out / SWEEP_FILE, sweep_lib.as_json(sweep))
    if flags.target != 'local':
      return _write_jobs(flags.target, jobs, out)
    return _run(sweep, jobs, out, flags.parallel)


def _write_jobs(target: str, jobs: Jobs, out: pathlib.Path) -> int:
  """Writes the job of each run, and says how to start the first."""
  for name, (job, options) in jobs.items():
    write_files(target, job, options, out / name)
  first = next(iter(jobs))
  command = flags_lib.TARGETS[target].start_command(jobs[first][0], out / first)
  print(f'To start the first: {shlex.join(command)}')
  return 0


def _run(sweep: Sweep, jobs: Jobs, out: pathlib.Path, parallel: int) -> int:
  """Runs what has not finished, and compares all; returns the exit status."""
  runs = Runs(
    sweep.units,
    out,
    lambda unit, folder: local.supervisor_of(
      jobs[unit.name][0], folder / 'logs', terminal=False
    ),
    parallel,
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


def _base(out: pathlib.Path) -> str:
  """What the jobs of a sweep are called, each folder's differently.

  `runs/NAME` is NAME, if a job can be called so. Any other folder has a digest of its
  path at the end.
  """
  path = pathlib.PurePath(os.path.normpath(out))
  if not path.parts or path.parts[0] == '..':
    path = pathlib.PurePath(os.path.abspath(out))
  words = path.parts[-1:] if path.is_absolute() else path.parts
  if words[0] == 'runs':
    words = words[1:]
  base = re.sub('[^a-z0-9]+', '-', '-'.join(words).lower()).strip('-')
  if not base[:1].isalpha():
    base = f'sweep-{base}'.rstrip('-')
  # With the numbers of up to 9999 runs, 40 letters at most.
  if len(base) <= 35 and path.as_posix() == f'runs/{base}':
    return base
  digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:8]
  return f'{base[:26].rstrip("-")}-{digest}'


def _job(flags: argparse.Namespace, sweep: Sweep, unit: Unit) -> tuple[Job, Any]:
  """The job of one run, and the options of its target."""
  base = _base(flags.out)
  job, options = flags_lib.described(
    flags,
    flags.target,
    unit.overrides,
    {'topology': 'cpu:1'} if flags.target == 'local' else {},
    name=f'{base}-{unit.name.partition("-")[0]}',
    config=sweep.config,
  )
  folder = str(flags.out) if flags.target == 'local' else job.workdir or f'runs/{base}'
  return dataclasses.replace(job, workdir=f'{folder}/{unit.name}'), options


def _check_same(sweep: Sweep, out: pathlib.Path) -> None:
  """Refuses a folder that holds another sweep."""
  kept = out / SWEEP_FILE
  if kept.exists():
    before = read_json(kept, ['config', 'units'], 'Use another --out.')
    sweep_lib.check_same(sweep, before, out)


def _check_metric(sweep: Sweep, out: pathlib.Path, file: str) -> None:
  """Refuses a metric that no run has, if they have others."""
  from composer_jax.evaluation.curves import read_curves

  names = [unit.name for unit in sweep.units]
  found = {curve.name for curve in read_curves(out) if curve.stage in names}
  for name in names:
    path = out / name / 'evaluation' / 'evaluation.json'
    if path.is_file():
      found |= set(read_json(path, ['figures'], 'Evaluate again.')['figures'])
  if found and sweep.metric not in found:
    raise ValueError(
      f'{file}: metric is {sweep.metric!r}, which no run in {out} has; expected one of'
      f' {", ".join(sorted(found))}.'
    )


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
  write_comparison(out, rows, sweep.metric)
  print(table(rows, sweep.metric))
