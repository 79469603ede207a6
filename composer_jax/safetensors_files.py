"""Weights in safetensors files: one file, or the shards that an index names.

The format holds names, shapes, types and bytes, and nothing that could run. Pickles, in
which weights were published before, can, and are refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import safetensors

from composer_jax.files import read_json

STEMS = ('model', 'diffusion_pytorch_model')
"""Names of the weights in a folder of transformers, and in one of diffusers."""

PICKLES = ('.bin', '.pt', '.pth', '.ckpt', '.pkl', '.pickle')

DTYPES: dict[str, np.dtype] = {
  'BOOL': np.dtype(bool),
  'U8': np.dtype(np.uint8),
  'I8': np.dtype(np.int8),
  'I16': np.dtype(np.int16),
  'I32': np.dtype(np.int32),
  'I64': np.dtype(np.int64),
  'F16': np.dtype(np.float16),
  'BF16': np.dtype(ml_dtypes.bfloat16),
  'F32': np.dtype(np.float32),
  'F64': np.dtype(np.float64),
}
"""NumPy's types of those of the format that published weights have."""

# An archive, as torch saves today, and pickles of protocol 2 to 5.
_BEGIN_OF_PICKLES = (b'PK\x03\x04', b'\x80\x02', b'\x80\x03', b'\x80\x04', b'\x80\x05')

_ONE, _INDEX = '.safetensors', '.safetensors.index.json'

_AGAIN = 'Copy or download it again.'


class Entry(NamedTuple):
  """What a file says of a tensor.

  Attributes:
    file: that holds it.
    shape: as stored.
    dtype: as stored.
  """

  file: pathlib.Path
  shape: tuple[int, ...]
  dtype: np.dtype


class SafetensorsFiles:
  """Tensors by name, none of them read yet.

  Attributes:
    origin: what was opened, to name in messages.
    paths: of the files, in the order of their names.
    entries: by name of the tensor.
  """

  def __init__(self, origin: pathlib.Path, paths: Iterable[pathlib.Path]):
    """Reads the headers of files; see `open_weights`.

    Raises:
      OSError: a file cannot be opened.
      ValueError: a file is damaged or no safetensors file, holds a type that is not
        among `DTYPES`, or two of them hold one tensor.
    """
    self.origin = origin
    self.paths = sorted(paths)
    self.entries: dict[str, Entry] = {}
    for path in self.paths:
      for name, entry in _entries(path):
        if name in self.entries:
          raise ValueError(
            f'{name!r} is in {self.entries[name].file} and in {path}; expected it in'
            f' one of them. {_AGAIN}'
          )
        self.entries[name] = entry

  def read(self, name: str) -> np.ndarray:
    """One tensor, of its stored shape and dtype.

    The file is mapped into memory for this one tensor only: what was read of it before
    does not stay there.

    Raises:
      KeyError: there is no such tensor.
    """
    with _mapped(self.entries[name].file) as file:
      return file.get_tensor(name)

  def digests(self) -> dict[str, str]:
    """SHA-256 of each file, by name."""
    return {path.name: digest(path) for path in self.paths}


def digest(path: pathlib.Path) -> str:
  """SHA-256 of a file, in hexadecimal digits."""
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def open_weights(path: str | os.PathLike[str]) -> SafetensorsFiles:
  """Opens the weights of a model; reads headers only.

  Args:
    path: a `.safetensors` file, an index of shards that ends in
      `.safetensors.index.json`, or a folder that holds one of them under a name that
      transformers or diffusers gives it.

  Raises:
    FileNotFoundError: there is nothing there, or a shard is missing.
    ValueError: it is a pickle, damaged, or not as its index says.
  """
  path = pathlib.Path(path)
  if path.is_dir():
    path = _in_folder(path)
  if path.suffix in PICKLES:
    raise _refused(path)
  if path.name.endswith('.index.json'):
    return _open_index(path)
  return SafetensorsFiles(path, [path])


def _in_folder(folder: pathlib.Path) -> pathlib.Path:
  expected = [stem + end for stem in STEMS for end in (_ONE, _INDEX)]
  for name in expected:
    if (folder / name).is_file():
      return folder / name
  pickles = [path for path in sorted(folder.iterdir()) if path.suffix in PICKLES]
  if pickles:
    raise _refused(pickles[0])
  raise FileNotFoundError(
    f'{folder} holds no weights; expected one of {", ".join(expected)}.'
  )


def _refused(path: pathlib.Path) -> ValueError:
  return ValueError(
    f'{path} is a pickle, and loading one runs whatever code it holds. Take the'
    ' .safetensors file of the same model if there is one. If not, load it in an'
    ' isolated environment with torch.load(..., weights_only=True) and save the tensors'
    ' with safetensors.torch.save_file.'
  )


def _open_index(path: pathlib.Path) -> SafetensorsFiles:
  weight_map = read_json(path, ('weight_map',), _AGAIN)['weight_map']
  if not isinstance(weight_map, Mapping) or not weight_map:
    raise ValueError(
      f'{path}: weight_map is {weight_map!r}; expected the file of each tensor.'
      f' {_AGAIN}'
    )
  for name, shard in weight_map.items():
    # A path would lead out of the folder.
    if not isinstance(shard, str) or pathlib.Path(shard).name != shard:
      raise ValueError(
        f'{path}: weight_map[{name!r}] is {shard!r}; expected the name of a file'
        ' beside it.'
      )
  shards = {shard: path.with_name(shard) for shard in weight_map.values()}
  if missing := sorted(shard for shard, file in shards.items() if not file.is_file()):
    raise FileNotFoundError(
      f'{path} names {len(shards)} files, of which {", ".join(missing)} are not beside'
      ' it; copy or download them too.'
    )
  files = SafetensorsFiles(path, shards.values())
  there = {name: entry.file.name for name, entry in files.entries.items()}
  astray = sorted(name for name, s in weight_map.items() if there.get(name) != s)
  if astray:
    raise ValueError(
      f'{path} and its files do not belong together: {", ".join(astray)} are not where'
      ' it says. Copy or download all of them again.'
    )
  return files


def _entries(path: pathlib.Path) -> Iterator[tuple[str, Entry]]:
  with _mapped(path) as file:
    for name in file.keys():
      part = file.get_slice(name)
      code = part.get_dtype()
      if code not in DTYPES:
        raise ValueError(
          f'{path}: {name!r} is of type {code}; expected any of {", ".join(DTYPES)}.'
          ' Quantised weights have to be converted back first.'
        )
      yield name, Entry(path, tuple(part.get_shape()), DTYPES[code])


@contextlib.contextmanager
def _mapped(path: pathlib.Path) -> Iterator[Any]:
  """A file, mapped into memory, that the library has found well-formed."""
  with open(path, 'rb') as file:  # The library's error would not say which file.
    head = file.read(64)
  try:
    mapped = safetensors.safe_open(os.fspath(path), 'numpy')
  except safetensors.SafetensorError as error:
    if head.startswith(_BEGIN_OF_PICKLES):
      raise _refused(path) from error
    if head.startswith(b'version https://git-lfs'):
      raise ValueError(
        f'{path} only points to the file, as Git LFS stores it; fetch the file itself'
        ' with `git lfs pull`.'
      ) from error
    raise ValueError(
      f'{path} is damaged, or no safetensors file: {error}. {_AGAIN}'
    ) from error
  with mapped as file:
    yield file
