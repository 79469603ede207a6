"""The folder that an import leaves: like that of a run, whole or not at all."""

from __future__ import annotations

import pathlib
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx

from composer_jax.checkpoints import FOLDER
from composer_jax.config import Config
from composer_jax.files import read_json, whole_folder, write_json, write_text
from composer_jax.models.tokenizer import Tokenizer
from composer_jax.safetensors_files import (
  SafetensorsFiles,
  digest,
  open_weights,
)
from composer_jax.trained import INPUTS

STEP = 0
"""The step whose checkpoint imported weights are: none was taken here."""

BUFFERED = 2**22
"""Bytes that are gathered before they are written; the default holds a whole model."""

_DESCRIPTIONS = (
  'config.json',
  'preprocessor_config.json',
  'vocab.json',
  'merges.txt',
  'tokenizer.json',
)


class Model(NamedTuple):
  """What was read of a published model.

  Attributes:
    config: as for training it.
    weights: NumPy arrays.
    tokenizer: of a dual encoder; None for other models.
    condition_shapes: of a U-Net, the stored shape of each condition that it knows.
  """

  config: Config
  weights: nnx.State
  tokenizer: Tokenizer | None = None
  condition_shapes: Mapping[str, tuple[int, ...]] = {}


class Kind(NamedTuple):
  """How models of one kind are published.

  Attributes:
    read: reads a folder of the kind, of which the weights are open already.
    subfolder: where a pipeline of several models has it.
    companion: folder beside it with more of its weights, if there is one.
  """

  read: Callable[[pathlib.Path, SafetensorsFiles], Model]
  subfolder: str | None = None
  companion: str | None = None


def import_model(
  name: str, kind: Kind, source: pathlib.Path, out: pathlib.Path
) -> dict[str, Any]:
  """Makes a model folder of published weights.

  Args:
    name: of the kind of model, to note down.
    kind: how to read it.
    source: the published folder, or that of a pipeline which holds it.
    out: the folder to make. If it is there it must be empty, or hold the same import,
      which is then left as it is.

  Returns:
    Where it came from, as `inputs.json` has it under `imported`.

  Raises:
    FileNotFoundError: the source lacks a file.
    FileExistsError: something else is in `out`.
    ValueError: the source is damaged, unsafe to open, or not supported.
  """
  if kind.subfolder and (source / kind.subfolder).is_dir():
    source = source / kind.subfolder
  folders = [source]
  if kind.companion:
    folders.append(source.absolute().parent / kind.companion)
  for folder in folders:
    if not folder.is_dir():
      raise FileNotFoundError(f'{folder} is no folder; expected one with config.json.')
  opened = [open_weights(folder) for folder in folders]
  imported = origin(name, folders, opened)
  if _is_there(out, imported):
    return imported
  files = opened[0]
  if len(opened) > 1:
    files = SafetensorsFiles(source, [path for one in opened for path in one.paths])
  model = kind.read(source, files)
  with whole_folder(out) as part:
    _write(part, out.absolute().name, model, imported)
  return imported


def origin(
  kind: str, folders: Sequence[pathlib.Path], opened: Sequence[SafetensorsFiles]
) -> dict[str, Any]:
  """Where a model came from: kind, folder, licence, digests of its files.

  Args:
    kind: name of the kind.
    folders: that hold it, the main one first.
    opened: the weights in each.
  """
  source = folders[0].absolute()
  digests: dict[str, str] = {}
  for folder, files in zip(folders, opened, strict=True):
    described = [folder / n for n in _DESCRIPTIONS if (folder / n).is_file()]
    own = {path.name: digest(path) for path in described} | files.digests()
    beside = '' if folder is folders[0] else f'{folder.name}/'
    digests |= {f'{beside}{name}': value for name, value in own.items()}
  # The card of a pipeline stands above the folders of its models.
  licence = stated_licence(source) or stated_licence(source.parent)
  return {'kind': kind, 'from': source.name, 'licence': licence, 'digests': digests}


def stated_licence(folder: pathlib.Path) -> str | None:
  """The licence that the folder's README states in its head, as model cards do."""
  path = folder / 'README.md'
  if not path.is_file():
    return None
  text = path.read_text('utf-8', errors='replace')
  head = re.match(r'\ufeff?---[ \t]*\r?\n(.*?)^---', text, re.DOTALL | re.MULTILINE)
  if head is None:
    return None
  # `license_name` is there where `license` is only "other".
  for field in ('license_name', 'license'):
    found = re.search(rf'^{field}:[ \t]*(\S.*?)\s*$', head[1], re.MULTILINE)
    if found:
      return found[1].strip('\'"')
  return None


def _is_there(out: pathlib.Path, imported: dict[str, Any]) -> bool:
  """Whether the very same import is there already; refuses anything else."""
  if not out.exists() or (out.is_dir() and not any(out.iterdir())):
    return False
  known = (out / INPUTS).is_file()
  advice = 'Give another --out.'
  if known and read_json(out / INPUTS, (), advice).get('imported') == imported:
    return True
  raise FileExistsError(
    f'{out} holds something else than this import; give another --out.'
  )


def _write(
  folder: pathlib.Path, name: str, model: Model, imported: dict[str, Any]
) -> None:
  """Writes a model into an empty folder that is to be called `name`."""
  if model.tokenizer is not None:
    model.tokenizer.save(folder / 'tokenizer')
  write_weights(folder / FOLDER / str(STEP) / 'ema', model.weights)
  flags = {'--kind': imported['kind'], '--from': imported['from'], '--out': name}
  words = [word for flag in flags.items() for word in flag]
  inputs = {
    'condition_shapes': dict(model.condition_shapes),
    'encoders': {},
    'imported': imported,
    'command': shlex.join(['composer-jax', 'import', *words]),
  }
  write_json(folder / INPUTS, inputs)
  write_text(folder / 'config.json', model.config.to_json())  # Nothing opens without.


def write_weights(folder: pathlib.Path, weights: nnx.State) -> None:
  """Writes arrays as a checkpoint's item, with little memory beside them.

  `Checkpoints.save` copies all arrays first, so that training may go on meanwhile.
  """
  kinds = ocp.type_handlers
  registry = kinds.create_type_handler_registry(
    (np.ndarray, kinds.NumpyHandler(deepcopy_host_arrays=False)),
    (jax.Array, kinds.ArrayHandler()),  # Without it, the library complains.
  )
  handler = ocp.PyTreeCheckpointHandler(type_handler_registry=registry)
  args = ocp.args.PyTreeSave(weights, ocdbt_target_data_file_size=BUFFERED)
  checkpointer = ocp.Checkpointer(handler)
  try:
    checkpointer.save(folder.absolute(), args=args)
  finally:
    checkpointer.close()
