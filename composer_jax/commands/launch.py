"""`composer-jax launch`: starts a training run on this machine or on a cluster."""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import shlex
import subprocess
from typing import TYPE_CHECKING, Any

from composer_jax.files import write_text
from launch import flags as flags_lib
from launch import job as job_lib
from launch import local
from launch.job import Job
from launch.supervisor import stopped_by_signals

if TYPE_CHECKING:
  from composer_jax.config import Config

EPILOG = """Fields of the config are set with --config.field=value.

examples:
  composer-jax launch local --name base --config configs/demo/base.py \\
      --topology cpu:2 --config.data.path=demo/data
  composer-jax launch slurm --name base --config configs/paper/base64_stage1.py \\
      --topology gpu:4x8 --partition gpu --config.data.path=/shared/data --dry-run
  composer-jax launch gke --name base --config configs/paper/base64_stage1.py \\
      --topology v5p:4x4x8 --image REGISTRY/composer-jax:1 --bucket gs://mine \\
      --env HF_TOKEN=secret:hf/token --config.data.path=/mnt/composer/data --dry-run
"""


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog='composer-jax launch',
    description='Writes the files that start a training run, and starts it.'
    ' `composer-jax launch TARGET --help` has the flags of a target.',
    epilog=EPILOG,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  targets = parser.add_subparsers(dest='target', required=True, metavar='TARGET')
  for name, module in flags_lib.TARGETS.items():
    what = (module.__doc__ or '').partition(': ')[2].splitlines()[0]
    options = flags_lib.options_help(name)
    meaning = f'what the options of {name} mean:\n{options}\n\n' if options else ''
    of_target = targets.add_parser(
      name,
      help=what,
      description=what[0].upper() + what[1:],
      epilog=meaning + EPILOG,
      formatter_class=argparse.RawDescriptionHelpFormatter,
      allow_abbrev=False,
    )
    of_target.add_argument('--name', help='of the job')
    of_target.add_argument(
      '--config', metavar='FILE', help='such as configs/demo/base.py'
    )
    of_target.add_argument(
      '--out', type=pathlib.Path, metavar='DIR', help='for the files; runs/NAME/launch'
    )
    of_target.add_argument(
      '--dry-run', action='store_true', help='write the files, start nothing'
    )
    flags_lib.add_flags(of_target, name)
  return parser


def main(argv: list[str]) -> int:
  """Runs the verb; returns its exit status."""
  flags, rest = _parser().parse_known_args(argv)
  job, options = flags_lib.described(
    flags,
    flags.target,
    flags_lib.overrides(rest),
    name=flags.name,
    config=flags.config,
  )
  resolved_config(job)  # Before anything is written.
  out = flags.out or pathlib.Path('runs', job.name, 'launch')
  write_files(flags.target, job, options, out)
  if flags.target == 'local':
    return _start_local(job, out, flags.dry_run)
  command = flags_lib.TARGETS[flags.target].start_command(job, out)
  if flags.dry_run:
    print(f'To start it: {shlex.join(command)}')
    return 0
  try:
    return subprocess.run(command, check=False).returncode
  except FileNotFoundError:
    raise FileNotFoundError(
      f'{command[0]} is not installed here. Where it is: {shlex.join(command)}'
    ) from None


def resolved_config(job: Job) -> Config:
  """The config of a job; refuses now what would fail once the machines are there."""
  from composer_jax import config_files
  from composer_jax.sharding.mesh import check_batch
  from composer_jax.sharding.rules import MESH_AXES

  given = [f'--config.{override}' for override in job.overrides]
  config = config_files.parse([f'--config={job.config}', *given])
  sizes = config.mesh.sizes(job.slices * job.topology.devices)
  axes = dict(zip(MESH_AXES, sizes, strict=True))
  check_batch(axes, config.mesh.rules, config.data.batch_size)
  config.data.require_path()
  return config


def write_files(target: str, job: Job, options: Any, out: pathlib.Path) -> None:
  """Renders a job into a folder, with its description as `job.json`."""
  files = flags_lib.TARGETS[target].render(job, options)
  out.mkdir(parents=True, exist_ok=True)
  description = job_lib.to_json(job, {target: dataclasses.asdict(options)})
  for name, text in {'job.json': description, **files}.items():
    write_text(out / name, text)
    print(f'Wrote {out / name}')


def _start_local(job: Job, out: pathlib.Path, dry_run: bool) -> int:
  if dry_run:
    print(f'{job.topology.hosts} processes would run: {shlex.join(job.command)}')
    return 0
  supervisor = local.supervisor_of(job, out)
  with stopped_by_signals(supervisor):
    return supervisor.run()
