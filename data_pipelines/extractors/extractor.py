"""What a learned extractor is, and what all of them need."""

from __future__ import annotations

import importlib.util
import pathlib
from collections.abc import Sequence
from importlib import metadata
from typing import Any, Protocol

import numpy as np
from PIL import Image

from composer_jax.extras import MissingExtra


class Extractor(Protocol):
  """A pretrained model that finds one field of a record in a picture.

  Making one checks its files but opens no model: that is left to the processes that
  use it.

  Attributes:
    about: what it is, as plain JSON: `kind`, `name` (of its folder or files) and
      `digests` (SHA-256 of its files, by name).
    versions: of the packages, and of the device, that its results depend on.
    side: of the square pictures that it looks at, in pixels. Opens the model.
  """

  @property
  def about(self) -> dict[str, Any]: ...

  @property
  def versions(self) -> dict[str, str]: ...

  @property
  def side(self) -> int: ...

  def check(self) -> None:
    """Opens the model.

    Raises:
      ValueError: it cannot be used.
    """

  def extract(self, pictures: np.ndarray) -> Sequence[Any]:
    """Runs the model, the same way for the same pictures.

    Args:
      pictures: uint8 sRGB (B, side, side, 3).

    Returns:
      What `store` takes, for each of them.
    """

  def store(self, found: Any, size: int) -> np.ndarray | str:
    """The field of a record, for what `extract` has found in one picture.

    Args:
      found: by `extract`.
      size: side of the prepared image, in pixels.

    Raises:
      BadRecord: the model gave nothing that could be stored.
    """


def need(kind: str, *packages: str) -> None:
  """Refuses a kind of extractor whose packages are not installed.

  Raises:
    MissingExtra: with the command that installs them.
  """
  missing = [name for name in packages if importlib.util.find_spec(name) is None]
  if missing:
    raise MissingExtra(
      f'An extractor {kind!r} needs {" and ".join(missing)}, which the core does not:'
      " pip install 'composer_jax[extractors]'."
    )


def version(package: str) -> str:
  """The installed version, '?' where another package provides the module."""
  try:
    return metadata.version(package)
  except metadata.PackageNotFoundError:
    return '?'


def existing(path: str, *, folder: bool) -> pathlib.Path:
  """A path on this machine; nothing is ever fetched from a hub.

  Raises:
    FileNotFoundError: there is no such folder, or no such file.
  """
  found = pathlib.Path(path).expanduser()
  if not (found.is_dir() if folder else found.is_file()):
    raise FileNotFoundError(
      f'{path!r} is no {"folder" if folder else "file"} on this machine; extractors'
      ' are never downloaded, so get it by other means and give its path.'
    )
  return found


def to_size(values: np.ndarray, size: int) -> np.ndarray:
  """Scales a float map (H, W) to (size, size).

  Shrinking averages over areas, enlarging is bilinear.
  """
  shrinks = size < min(values.shape)
  how = Image.Resampling.BOX if shrinks else Image.Resampling.BILINEAR
  image = Image.fromarray(np.ascontiguousarray(values, np.float32))
  return np.asarray(image.resize((size, size), how))
