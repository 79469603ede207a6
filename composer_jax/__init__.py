"""composer_jax: compose images from captions, palettes, sketches, depth and more."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from composer_jax.composer import Composer

__version__ = '0.1.0'


def load(directory: str | os.PathLike[str]) -> Composer:
  """Opens a model folder, trained or exported, on whatever devices there are.

  Args:
    directory: the folder; or `demo` for the model that comes with the package, which
      draws emoji of 128 x 128 pixels.

  Raises:
    FileNotFoundError: there is no base model in it.
    ValueError: its parts do not fit together.
  """
  from composer_jax.composer import Composer

  return Composer.load(directory)
