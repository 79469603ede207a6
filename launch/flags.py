"""Flags that describe a job, and the targets that it can be given to."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from launch import gke, local, queued_resource, ray_job, slurm
from launch import job as job_lib
from launch.job import Job


class Target(Protocol):
  """A module of this folder that renders jobs for one kind of machine."""

  Options: Any

  def render(self, job: Job, options: Any) -> dict[str, str]:
    """File names and contents."""


TARGETS: dict[str, Any] = {
  'local': local,
  'slurm': slurm,
  'gke': gke,
  'queued-resource': queued_resource,
  'ray': ray_job,
}
"""Each is a `Target`; all but `local` also say what hands their files over."""

_JOB_FLAGS = {
  'topology': (
    'KIND:AxB',
    'TPU chips, or hosts and devices: v5p:4x4x8, gpu:4x8, cpu:2',
  ),
  'slices': ('N', 'TPU slices of that topology'),
  'image': ('IMAGE', 'container image'),
  'bucket': ('gs://NAME', f'mounted at {job_lib.MOUNT}'),
  'volume': ('CLAIM', 'persistent volume, mounted there instead'),
  'workdir': ('DIR', 'folder of the run; runs/NAME if not given'),
  'max_restarts': ('N', 'failures after which all processes start again (3)'),
  'grace_seconds': ('N', 'time to save before the kill (120)'),
}
_NUMBERS = ('slices', 'max_restarts', 'grace_seconds')


def _dashed(field: str) -> str:
  return '--' + field.replace('_', '-')


def options_help(target: str) -> str:
  """What the options of a target mean, in its own words."""
  documentation = inspect.getdoc(TARGETS[target].Options) or ''
  return documentation.partition('Attributes:\n')[2]


def add_flags(parser: argparse.ArgumentParser, target: str) -> None:
  """Adds all flags that describe a job for a target, besides its name and config."""
  parser.add_argument(
    '--job', type=pathlib.Path, metavar='FILE', help='fields as YAML or JSON; flags win'
  )
  for field, (metavar, text) in _JOB_FLAGS.items():
    kind = int if field in _NUMBERS else str
    parser.add_argument(_dashed(field), type=kind, metavar=metavar, help=text)
  parser.add_argument(
    '--spot',
    action='store_true',
    default=None,
    help='machines that may be taken away, for less',
  )
  parser.add_argument(
    '--env',
    action='append',
    metavar='NAME[=VALUE]',
    help='a variable of the processes; secret:NAME/KEY as its value names a secret',
  )
  group = parser.add_argument_group(f'options of {target}')
  for option in dataclasses.fields(TARGETS[target].Options):
    kind = int if isinstance(option.default, int) else str
    group.add_argument(_dashed(option.name), type=kind, metavar=option.name.upper())


def overrides(rest: Sequence[str]) -> list[str]:
  """`field=value` of each `--config.field=value`.

  Raises:
    ValueError: there is another flag.
  """
  for word in rest:
    if not word.startswith('--config.') or '=' not in word:
      raise ValueError(f'{word!r} is not a flag; expected --config.field=value.')
  return [word.removeprefix('--config.') for word in rest]


def described(
  flags: argparse.Namespace,
  target: str,
  extra: Sequence[str],
  defaults: Mapping[str, Any] | None = None,
  **known: Any,
) -> tuple[Job, Any]:
  """The job that flags and the file of `--job` describe.

  Args:
    flags: with those of `add_flags`.
    target: its name.
    extra: `field=value`, after those of the file.
    defaults: fields of the job for which the file and the flags may say otherwise.
    **known: fields of the job for which they may not; None says nothing.

  Returns:
    The job, and the options of the target.

  Raises:
    ValueError: a field is missing, unknown or wrong; names it.
    FileNotFoundError: there is no such file.
    IsADirectoryError: it is a folder.
  """
  given = dict(defaults or {})
  if flags.job:
    given |= job_lib.read(flags.job)
  sections = {name: given.pop(name, None) for name in TARGETS}
  own = {} if sections[target] is None else sections[target]
  if not isinstance(own, dict):
    raise ValueError(f'--job={flags.job}: {target} is {own!r}; expected an object.')
  for field in (*_JOB_FLAGS, 'spot'):
    if (value := getattr(flags, field)) is not None:
      given[field] = value
  given |= {name: value for name, value in known.items() if value is not None}
  job = job_lib.from_dict(given)
  environment = dict(job.environment) | dict(map(job_lib.variable, flags.env or ()))
  job = dataclasses.replace(
    job, overrides=(*job.overrides, *extra), environment=environment
  )
  return job, _options(target, own, flags)


def _options(target: str, section: dict[str, Any], flags: argparse.Namespace) -> Any:
  kind = TARGETS[target].Options
  fields = {field.name: field for field in dataclasses.fields(kind)}
  for name, value in section.items():
    if name not in fields:
      raise ValueError(
        f'{target}.{name} is no option; expected any of {", ".join(fields) or "none"}.'
      )
    expected = type(fields[name].default)
    if type(value) is not expected:
      raise ValueError(
        f'{target}.{name} is {value!r}; expected {expected.__name__}, so quote text'
        ' that YAML reads otherwise.'
      )
  asked = {name: getattr(flags, name) for name in fields}
  section = section | {k: v for k, v in asked.items() if v is not None}
  for name, value in section.items():
    if isinstance(value, str):
      job_lib.check_text(f'{target}.{name}', value)
  return kind(**section)
