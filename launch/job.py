"""The one description of a training job that every target renders."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
import shlex
from collections.abc import Mapping
from typing import Any

import yaml

from launch import restarts
from launch import topology as topology_lib
from launch.topology import Topology

MOUNT = '/mnt/composer'
"""Where a job finds its bucket or volume."""

SECRET = 'secret:'
"""Begins the value of a variable that names a secret instead of holding it."""

KUBERNETES_NAME = r'[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?'
"""Pattern of what Kubernetes takes as a name."""

_SECRET_WORDS = (
  *('TOKEN', 'KEY', 'PASSWORD', 'PASSWD', 'PASSPHRASE'),
  *('SECRET', 'CREDENTIAL', 'CREDENTIALS'),
)
_NO_SECRETS = ('FILE', 'PATH', 'DIR', 'ID')
"""Last words of variables that only say where or which a secret is."""


@dataclasses.dataclass(frozen=True)
class Job:
  """One training run, wherever it takes place.

  Attributes:
    name: lower-case letters, digits and hyphens; names what the target makes of it.
    config: config file, such as `configs/demo/base.py`.
    topology: hosts and devices.
    overrides: `field=value`, as in `--config.field=value`.
    slices: TPU slices of that topology, joined by the data-centre network.
    image: container image.
    bucket: Cloud Storage bucket, such as `gs://mine`, that is mounted at `MOUNT`.
    volume: claim of a persistent volume that is mounted there instead.
    workdir: folder of the run. A relative one is in the bucket or volume, if there is
      one, else where the job starts.
    environment: variables. A value of None takes the one of where the job is started;
      `secret:NAME/KEY` refers to a secret of the target.
    max_restarts: failures after which all processes are started again.
    grace_seconds: time to save between the notice to stop and the kill.
    spot: whether to take machines that may be taken away at any time, for less.
  """

  name: str
  config: str
  topology: Topology
  overrides: tuple[str, ...] = ()
  slices: int = 1
  image: str = ''
  bucket: str = ''
  volume: str = ''
  workdir: str = ''
  environment: Mapping[str, str | None] = dataclasses.field(default_factory=dict)
  max_restarts: int = 3
  grace_seconds: int = 120
  spot: bool = False

  def __post_init__(self):
    for field in ('name', 'config', 'image', 'bucket', 'volume', 'workdir'):
      check_text(field, getattr(self, field))
    # Pods are called NAME-slice-0-0-abcde, and names of hosts have 63 letters at most.
    if not re.fullmatch(r'[a-z]([a-z0-9-]{0,38}[a-z0-9])?', self.name):
      raise ValueError(
        f'name is {self.name!r}; expected up to 40 lower-case letters, digits and'
        ' hyphens, a letter first.'
      )
    for field, low in (('slices', 1), ('max_restarts', 0), ('grace_seconds', 1)):
      value = getattr(self, field)
      if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise ValueError(f'{field} is {value!r}; expected a number, {low} or more.')
    if not self.config:
      raise ValueError('config is empty; give a file, such as configs/demo/base.py.')
    if self.slices > 1 and self.topology.kind in ('cpu', 'gpu'):
      raise ValueError(
        f'slices is {self.slices} and topology {self.topology}; expected 1, as only'
        ' TPUs come in slices.'
      )
    if self.bucket and self.volume:
      raise ValueError(
        f'bucket is {self.bucket!r} and volume {self.volume!r}; expected one of them.'
      )
    if self.bucket and not re.fullmatch(
      r'gs://[a-z0-9][a-z0-9._-]+[a-z0-9]', self.bucket
    ):
      raise ValueError(
        f'bucket is {self.bucket!r}; expected gs://NAME without a folder, as folders'
        ' are named in workdir and in overrides.'
      )
    if not re.fullmatch('[A-Za-z0-9._/:@#-]*', self.image):
      raise ValueError(
        f'image is {self.image!r}; expected letters, digits and ._/:@#- only.'
      )
    if self.volume and not re.fullmatch(KUBERNETES_NAME, self.volume):
      raise ValueError(
        f'volume is {self.volume!r}; expected the name of a claim, of lower-case'
        " letters, digits, '-' and '.'."
      )
    self._check_workdir()
    for override in self.overrides:
      check_text('an override', override)
      if not re.fullmatch(r'[A-Za-z_][\w.]*=(?s:.*)', override):
        raise ValueError(
          f'override {override!r}; expected field=value, such as train.steps=1000.'
        )
    for name, value in self.environment.items():
      _check_variable(name, value)

  def _check_workdir(self) -> None:
    """Refuses a folder that is not in the bucket or volume, if there is one."""
    path = pathlib.PurePosixPath(self.workdir)
    outside = path.is_absolute() and not path.is_relative_to(MOUNT)
    if (self.bucket or self.volume) and (outside or '..' in path.parts):
      raise ValueError(
        f'workdir is {self.workdir!r}, outside of the bucket or volume; expected a'
        f" relative folder, or one below {MOUNT}, without '..'."
      )

  @property
  def directory(self) -> str:
    """The folder of the run, as its processes see it."""
    workdir = self.workdir or f'runs/{self.name}'
    if (self.bucket or self.volume) and not workdir.startswith('/'):
      return f'{MOUNT}/{workdir}'
    return workdir

  @property
  def command(self) -> list[str]:
    """What every process runs; again and again, until it exits with 0."""
    return [
      'composer-jax',
      'train',
      f'--config={self.config}',
      f'--workdir={self.directory}',
      *(f'--config.{override}' for override in self.overrides),
      f'{restarts.PREEMPTED_FLAG}={restarts.SAVED}',
    ]

  @property
  def shell_command(self) -> str:
    """The command as lines of a shell script."""
    first, second, *rest = map(shlex.quote, self.command)
    return ' \\\n  '.join([f'{first} {second}', *rest])

  def refuse(self, target: str, **unused: Any) -> None:
    """Refuses fields that a target has no use for.

    Args:
      target: its name.
      **unused: fields, with the only value that they may have.

    Raises:
      ValueError: a field has another value.
    """
    for name, value in unused.items():
      if getattr(self, name) != value:
        raise ValueError(
          f'{name} is {getattr(self, name)!r}, which the target {target} has no use'
          ' for; leave it out.'
        )

  def require(self, target: str, *names: str) -> None:
    """Refuses a job that lacks a field which a target needs.

    Raises:
      ValueError: a field is empty.
    """
    for name in names:
      if not getattr(self, name):
        raise ValueError(
          f'{name} is empty; the target {target} needs it. Give --{name}.'
        )


def check_text(name: str, text: str) -> None:
  """Refuses line breaks and other control characters, which end lines of scripts.

  Raises:
    ValueError: there is one; names it, but not the text, which may be a secret.
  """
  if found := re.search(r'[\x00-\x1f\x7f-\x9f\u2028\u2029]', text):
    raise ValueError(
      f'{name} holds {found[0]!r}; expected one line, without control characters.'
    )


def check_setup(setup: str) -> None:
  """Refuses a line of shell that would take what follows it along.

  Raises:
    ValueError: its quotes are not balanced, or it ends in a backslash.
  """
  try:
    shlex.split(setup, comments=True)
  except ValueError as error:
    raise ValueError(
      f'setup is {setup!r}; expected a whole line of shell: {error}.'
    ) from None


def _check_variable(name: str, value: str | None) -> None:
  if not re.fullmatch(r'[A-Za-z_]\w*', name, re.ASCII):
    raise ValueError(f'environment variable {name!r}; expected letters, digits, _.')
  if value is None:
    return
  if not isinstance(value, str):
    raise ValueError(
      f'environment variable {name} is {value!r}; expected text, so quote it in YAML.'
    )
  check_text(f'environment variable {name}', value)
  words = name.upper().split('_')
  secret = 'PASS' in words or any(word.endswith(_SECRET_WORDS) for word in words)
  if value.startswith(SECRET):
    if not re.fullmatch(r'secret:[\w.-]+/[\w.-]+', value):
      raise ValueError(
        f'environment variable {name} is {value!r}; expected secret:NAME/KEY.'
      )
  elif secret and words[-1] not in _NO_SECRETS and not value.startswith('/'):
    raise ValueError(
      f'environment variable {name} looks like a secret, and its value would stand in'
      f' files; expected {name}=secret:NAME/KEY if the target keeps secrets, as gke and'
      f' queued-resource do, else {name} alone to take the value that it has there.'
    )


def variable(text: str) -> tuple[str, str | None]:
  """Reads `NAME=VALUE`, or `NAME` for a variable that is passed through."""
  name, equals, value = text.partition('=')
  return name, value if equals else None


def from_dict(values: Mapping[str, Any]) -> Job:
  """Makes a job of fields, as a job file or flags give them.

  Args:
    values: by name. `topology` is text; `overrides` is a sequence of `field=value`, or
      an object of fields; `environment` is an object, or a sequence of `NAME=VALUE`.

  Raises:
    ValueError: a field is unknown, missing, or has a bad value; names it.
  """
  fields = {field.name: field for field in dataclasses.fields(Job)}
  if unknown := [name for name in values if name not in fields]:
    raise ValueError(
      f'{unknown[0]!r} is no field of a job; expected any of {", ".join(fields)}.'
    )
  for name in ('name', 'config', 'topology'):
    if not values.get(name):
      raise ValueError(f'{name} is missing; give --{name}, or a --job file with it.')
  made = dict(values)
  for name, value in values.items():
    kind = type(fields[name].default)
    if kind in (str, bool) and not isinstance(value, kind):
      raise ValueError(f'{name} is {value!r}; expected {kind.__name__}.')
    if name in ('name', 'config', 'topology') and not isinstance(value, str):
      raise ValueError(f'{name} is {value!r}; expected text.')
  made['topology'] = topology_lib.parse(values['topology'])
  overrides = values.get('overrides', ())
  if isinstance(overrides, Mapping):
    if empty := [name for name, value in overrides.items() if value is None]:
      raise ValueError(
        f"override {empty[0]} has no value; give one, in quotes if it is 'None'."
      )
    overrides = [f'{name}={value}' for name, value in overrides.items()]
  made['overrides'] = tuple(map(str, _sequence('overrides', overrides)))
  environment = values.get('environment', {})
  if not isinstance(environment, Mapping):
    words = map(str, _sequence('environment', environment))
    environment = dict(variable(word) for word in words)
  made['environment'] = dict(environment)
  return Job(**made)


def _sequence(name: str, value: Any) -> list[Any]:
  if not isinstance(value, list | tuple):
    raise ValueError(f'{name} is {value!r}; expected a list or an object.')
  return list(value)


def read(path: pathlib.Path) -> dict[str, Any]:
  """The fields of a job file, YAML or JSON, not yet checked.

  Raises:
    FileNotFoundError: there is no such file.
    IsADirectoryError: it is a folder.
    ValueError: it is no object of fields.
  """
  try:
    values = yaml.safe_load(path.read_text('utf-8'))
  except FileNotFoundError:
    raise FileNotFoundError(f'--job={path}: there is no such file.') from None
  except IsADirectoryError:
    raise IsADirectoryError(
      f'--job={path} is a folder; expected a file, such as {path}/job.json.'
    ) from None
  except (yaml.YAMLError, UnicodeDecodeError) as error:
    raise ValueError(f'--job={path} is no YAML or JSON: {error}.') from error
  if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
    raise ValueError(f'--job={path}: expected an object of fields, such as name: base.')
  return values


def to_json(job: Job, options: Mapping[str, Any] | None = None) -> str:
  """All fields, as `read` and `from_dict` take them back.

  Args:
    job: what has them.
    options: of targets, by the name of the target; `from_dict` knows none of them.
  """
  values = {field.name: getattr(job, field.name) for field in dataclasses.fields(job)}
  values['topology'] = str(job.topology)
  values['environment'] = dict(job.environment)
  values |= options or {}
  return json.dumps(values, indent=2, ensure_ascii=False) + '\n'
