"""The pictures that a data set was prepared from, as an image encoder is to see them.

The encoder itself is a trained model, which this package knows nothing of: the command
hands it to `embed.prepare_onto`, together with these pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from composer_jax.models.clip_images import clip_square
from data_pipelines import sources
from data_pipelines.shard import digest_of, source_key


class Originals:
  """Pictures of a source by key, cut to a square as CLIP's own preprocessing does."""

  def __init__(self, info: Mapping[str, Any], size: int):
    """Opens the source of a prepared folder.

    Args:
      info: the contents of its `dataset.json`.
      size: side of the squares, in pixels.

    Raises:
      RuntimeError: the source has changed since.
    """
    self._source, self._size = sources.open_source(info['source']), size
    keys = list(self._source.keys())
    if digest_of(keys) != info['keys']['digest']:
      raise RuntimeError(
        f'{info["source"]} has changed since it was prepared, so its pictures can no'
        ' longer be told apart. Prepare it anew into another folder.'
      )
    self._places = {key: index for index, key in enumerate(keys)}

  def __call__(self, keys: Sequence[str]) -> np.ndarray:
    """uint8 sRGB (B, size, size, 3)."""
    # A source's own keys may look like those of copies.
    own = [key if key in self._places else source_key(key) for key in keys]
    loaded = [self._source.load(self._places[key], self._size) for key in own]
    return np.stack([clip_square(each.picture, self._size) for each in loaded])
