"""The target `slurm`: a batch script for a cluster with GPUs, or with CPUs."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
import shlex

from launch import restarts
from launch.job import SECRET, Job, check_setup


@dataclasses.dataclass(frozen=True)
class Options:
  """What only this target is told.

  Attributes:
    partition: of the cluster; the default one if empty.
    account: whom the time is charged to.
    time: limit of one allocation, such as `24:00:00`.
    cpus_per_task: processor cores of each process; 0 leaves it to the cluster.
    setup: a line of shell that runs first, such as `source .venv/bin/activate`.
    mounts: folders that a container sees besides the one where `sbatch` is called, with
      commas between them, such as `/shared,/scratch`.
  """

  partition: str = ''
  account: str = ''
  time: str = '24:00:00'
  cpus_per_task: int = 0
  setup: str = ''
  mounts: str = ''

  def __post_init__(self):
    for name in ('partition', 'account'):
      if not re.fullmatch(r'[\w.,-]*', value := getattr(self, name)):
        raise ValueError(f'{name} is {value!r}; expected the name of one.')
    if not re.fullmatch(r'(\d+-)?\d+(:\d{2}){0,2}', self.time):
      raise ValueError(
        f'time is {self.time!r}; expected a limit such as 24:00:00 or 2-00:00:00.'
      )
    if self.cpus_per_task < 0:
      raise ValueError(
        f'cpus_per_task is {self.cpus_per_task}; expected a number, 0 or more.'
      )
    check_setup(self.setup)
    if not re.fullmatch(r'(/[\w./-]+(,/[\w./-]+)*)?', self.mounts):
      raise ValueError(
        f'mounts is {self.mounts!r}; expected absolute folders with commas between'
        ' them, such as /shared,/scratch.'
      )

  @property
  def folders(self) -> list[str]:
    """The folders of `mounts`."""
    return self.mounts.split(',') if self.mounts else []


SCRIPT = """\
#!/usr/bin/env bash
{directives}
set -uo pipefail

# {name}: {config} on {topology}.
# Started again by Slurm after a preemption or the time limit, and by the loop below
# after a failure. All processes always start together.

# Told to stop, the processes save; this script has to wait for that.
trap : TERM
{prologue}
failures=0
while true; do
  code=0
  srun {srun} \\
  {command} || code=$?
  case $code in
    0) exit 0 ;;
    {saved})
      echo 'Saved; going back into the queue.'
      scontrol requeue "$SLURM_JOB_ID"
      # Requeueing ends this script; it must not end as a success before that.
      sleep 300
      exit {saved}
      ;;
  esac
  failures=$((failures + 1))
  echo "Ended with code $code, failure $failures." >&2
  if ((failures > {max_restarts})); then
    echo 'Gave up after {max_restarts} restarts; the cause is above.' >&2
    exit "$code"
  fi
  sleep 10
done
"""


def render(job: Job, options: Options) -> dict[str, str]:
  """The batch script.

  Args:
    job: on `gpu:NODESxGPUS`, one process for each GPU, as JAX expects under Slurm; or
      on `cpu:NODES`.
    options: of the cluster.

  Returns:
    File names and contents.

  Raises:
    ValueError: the job needs what such a cluster does not have.
  """
  job.refuse('slurm', bucket='', volume='', slices=1, spot=False)
  kind = job.topology.kind
  if kind not in ('cpu', 'gpu') or (kind == 'cpu' and job.topology.shape[1] != 1):
    raise ValueError(
      f'topology is {job.topology}; the target slurm takes gpu:NODESxGPUS or cpu:NODES.'
    )
  tasks = job.topology.devices_per_host
  wanted = {
    'job-name': job.name,
    'nodes': job.topology.hosts,
    'ntasks-per-node': tasks,
    'gpus-per-node': tasks if kind == 'gpu' else 0,
    'cpus-per-task': options.cpus_per_task,
    'partition': options.partition,
    'account': options.account,
    'time': options.time,
    'output': f'{job.name}-%j.log',
    'open-mode': 'append',
    # To the processes, not to this script: before the time limit.
    'signal': f'TERM@{job.grace_seconds}',
  }
  directives = [f'#SBATCH --{name}={value}' for name, value in wanted.items() if value]
  directives.append('#SBATCH --requeue')
  # One that dies takes the others along; otherwise they would wait for it.
  srun = ['--kill-on-bad-exit=1']
  if job.image:
    _check_seen(job, options)
    mounts = ['"$PWD:$PWD"', *(f'{folder}:{folder}' for folder in options.folders)]
    srun += [
      f'--container-image={shlex.quote(job.image)}',
      f'--container-mounts={",".join(mounts)}',
      '--container-workdir="$PWD"',
    ]
  text = SCRIPT.format(
    directives='\n'.join(directives),
    name=job.name,
    config=job.config,
    topology=job.topology,
    prologue=_prologue(job, options),
    srun=' '.join(srun),
    command=job.shell_command.replace('\n', '\n  '),
    saved=restarts.SAVED,
    max_restarts=job.max_restarts,
  )
  return {f'{job.name}.sbatch': text}


def _check_seen(job: Job, options: Options) -> None:
  """Refuses folders that a container does not see."""
  here = pathlib.Path.cwd()
  seen = [str(here), *options.folders]
  used = {'workdir': job.workdir}
  used |= dict(override.split('=', 1) for override in job.overrides)
  for name in ('workdir', 'data.path'):
    path = pathlib.Path(os.path.normpath(used.get(name, '')))
    if path.is_absolute() and not any(path.is_relative_to(folder) for folder in seen):
      raise ValueError(
        f'{name} is {used[name]!r}, which the container does not see; expected it below'
        f' {here} or a folder of mounts. Give --mounts.'
      )


def _prologue(job: Job, options: Options) -> str:
  """Variables and the setup, as lines of shell."""
  lines = []
  for name, value in job.environment.items():
    if value is None:
      lines.append(f': "${{{name}:?set it where you call sbatch}}"\nexport {name}')
    elif value.startswith(SECRET):
      raise ValueError(
        f'environment variable {name} is {value!r}; Slurm keeps no secrets. Set it'
        f' where you call sbatch, and give --env {name}.'
      )
    else:
      lines.append(f'export {name}={shlex.quote(value)}')
  if options.setup:
    lines.append(f'{{\n  {options.setup}\n}} || exit')
  return '\n'.join(['', *lines, '']) if lines else ''


def start_command(job: Job, folder: pathlib.Path) -> list[str]:
  """What hands the files over that were rendered into a folder."""
  return ['sbatch', f'{folder}/{job.name}.sbatch']
