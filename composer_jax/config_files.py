"""A config file plus `--config.field=value` overrides."""

from __future__ import annotations

import dataclasses
import difflib
import pathlib
import re
import runpy
from typing import Any

from ml_collections import config_dict

from composer_jax.config import MODELS, Config, from_dict
from composer_jax.files import read_json
from composer_jax.models.unet import UNetConfig


def find(path: str) -> pathlib.Path:
  """A config file, from the working folder or from those that are installed.

  Raises:
    FileNotFoundError: it is in neither place; lists what is installed.
  """
  given = pathlib.Path(path)
  if given.is_file():
    return given
  installed = pathlib.Path(__file__).parent.parent
  if (installed / path).is_file():
    return installed / path
  known = sorted(
    str(p.relative_to(installed))
    for p in (installed / 'configs').rglob('*.py')
    if p.name != '__init__.py' and p.parent.name != 'sweeps'
  )
  raise FileNotFoundError(
    f'--config={path}: no such file; installed configs are {", ".join(known)}.'
  )


def run(file: pathlib.Path, *arguments: str, like: str) -> Any:
  """What `get_config()` of a Python file returns.

  Args:
    file: the file.
    arguments: of `get_config`.
    like: an example of such a file, for errors.

  Raises:
    ValueError: the file cannot be run, or has no such function; names it.
  """
  try:
    get_config = runpy.run_path(str(file)).get('get_config')
    made = get_config(*arguments) if get_config else None
  except Exception as error:  # Whatever the file's own code raises.
    cause = ' '.join(str(error).split())
    raise ValueError(
      f'{file} cannot be read; {type(error).__name__}: {cause}.'
    ) from error
  if get_config is None:
    raise ValueError(f'{file} has no function get_config(); see {like}.')
  return made


def _defaults(kind: Any) -> dict[str, Any]:
  """What a dataclass fills in by itself, by field; inner dataclasses are dicts too."""
  found: dict[str, Any] = {}
  for field in dataclasses.fields(kind):
    if dataclasses.is_dataclass(field.default):
      found[field.name] = _defaults(field.default)
    elif field.default is not dataclasses.MISSING:
      found[field.name] = field.default
  return found


def _read(text: str) -> dict[str, Any]:
  """The fields of a config file, completed so that each of them can be overridden.

  Args:
    text: `FILE`, or `FILE:ARGUMENT` for a file whose `get_config` takes one.
  """
  path, colon, argument = text.partition('.py:')
  file = find(path + '.py' if colon else text)
  made = run(file, *[argument] * bool(colon), like='configs/demo/base.py')
  try:
    given = config_dict.ConfigDict(dict(made)).to_dict()
  except (AttributeError, TypeError, ValueError) as error:
    raise ValueError(
      f'{file} is no training config, as its get_config() gives {made!r:.80}; see'
      ' configs/demo/base.py.'
    ) from error
  fields = {'model': _defaults(MODELS.get(given.get('stage'), UNetConfig))}
  fields |= _defaults(Config)
  for name, value in given.items():
    inner = fields.get(name)
    mergeable = isinstance(inner, dict) and isinstance(value, dict)
    fields[name] = inner | value if mergeable else value
  return fields


def _check_name(override: str, fields: dict[str, Any]) -> None:
  """Refuses `--config.field=value` of a field that there is not."""
  found = re.match(r'--config\.([\w.]+)', override)
  path, inner = 'config', fields
  for name in found[1].split('.') if found else ():
    if not isinstance(inner, dict):
      raise ValueError(
        f'--{path}.{name}: {path} has no fields; its value is {inner!r}.'
      )
    if name not in inner:
      near = difflib.get_close_matches(name, inner, n=1)
      meant = f' Did you mean {path}.{near[0]}?' if near else ''
      raise ValueError(
        f'--{path}.{name} is not a field; expected any of {", ".join(inner)}.{meant}'
      )
    path, inner = f'{path}.{name}', inner[name]


def parse(argv: list[str]) -> Config:
  """Reads `--config FILE --config.field=value ...`, as ml_collections does.

  Raises:
    ValueError: a flag or a value is wrong; names it.
    FileNotFoundError: the config file does not exist.
  """
  from absl import flags
  from ml_collections import config_flags

  path, overrides = None, []
  rest = iter(argv)
  for argument in rest:
    if argument == '--config':
      path = next(rest, None)
    elif argument.startswith('--config='):
      path = argument.removeprefix('--config=')
    else:
      overrides.append(argument)
  if path is None:
    raise ValueError('--config FILE is missing, such as --config configs/demo/base.py.')
  fields = _read(path)
  for override in overrides:
    _check_name(override, fields)
  words = ['composer-jax', *overrides]
  values = flags.FlagValues()
  try:
    holder = config_flags.DEFINE_config_dict(
      'config',
      config_dict.ConfigDict(fields),
      flag_values=values,
      sys_argv=words,
    )
    leftover = values(words)[1:]
  except (flags.Error, AttributeError, KeyError, TypeError) as error:
    raise ValueError(f'{error}') from error
  if leftover:
    raise ValueError(f'{leftover[0]!r} is not a flag; expected --config.field=value.')
  return from_dict(holder.value.to_dict())


def load(path: str | pathlib.Path) -> Config:
  """Reads a `config.json`, as training writes it."""
  path = pathlib.Path(path)
  return from_dict(read_json(path, ('stage', 'model'), 'Train in another folder.'))
