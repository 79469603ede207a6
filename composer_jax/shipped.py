"""The model that comes with the package."""

from __future__ import annotations

import os
import pathlib

NAME = 'demo'
"""The shipped model, to `composer_jax.load`, `--model` and `--encoder`."""


def model_folder(directory: str | os.PathLike[str]) -> pathlib.Path:
  """The folder of a model: that of the shipped one for 'demo', else the path itself.

  A folder of that name is meant by `./demo`, or by a `pathlib.Path`.

  Raises:
    FileNotFoundError: the shipped model was left out of this installation.
  """
  if directory != NAME:
    return pathlib.Path(directory)
  package = pathlib.Path(__file__).parent
  # Beside the package in a checkout, inside it once installed.
  for parent in (package.parent, package):
    folder = parent / 'assets' / NAME
    if (folder / 'model.json').is_file():
      return folder
  raise FileNotFoundError(
    f'{NAME!r} is the model that comes with composer_jax, which is not in {package}.'
    f' For a folder of that name, write ./{NAME}.'
  )
