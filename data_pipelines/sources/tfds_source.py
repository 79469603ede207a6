"""Data sets that TensorFlow Datasets prepared, read without TensorFlow.

Only what is on disk is read: nothing is downloaded, and no data set's own code
is run.
"""

from __future__ import annotations

import bisect
import itertools
import os
from collections.abc import Sequence
from typing import Any

import tensorflow_datasets as tfds
from tensorflow_datasets.core import read_only_builder
from tensorflow_datasets.core.dataset_info import DatasetInfoFileError

from composer_jax.images import open_image
from data_pipelines.sources.source import Example, check_caption

_CAPTION_FEATURES = ('caption', 'captions', 'text')


class TfdsSource:
  """The images of a prepared data set, in the order they are stored.

  The caption is the feature named caption, captions (its first) or text, or else
  the name of the class.
  """

  def __init__(self, data_set: str) -> None:
    """Opens a data set.

    Args:
      data_set: NAME[/CONFIG], sought in TFDS_DATA_DIR or ~/tensorflow_datasets,
        or the folder of one version, recognised by a leading '/', '.' or '~' or
        by '://'. `@SPLIT` may follow, such as `@train[:10%]`; without it, all
        splits are read.

    Raises:
      FileNotFoundError: if the data set is not on disk.
      ValueError: if it cannot be read at random, or has no such split, no images
        or several kinds of them.
    """
    self.name = f'tfds:{data_set}'
    where, split = _parse(data_set)
    info, builder = _open(where, self.name)
    self.licence = info.redistribution_info.license or 'unknown: see the data set'
    self.credit = (info.citation or info.homepage or info.full_name).strip()
    self._image, self._caption, self._classes = _features(info.features, self.name)
    # Sorted, like the keys that are made of them.
    self._splits = [split] if split else sorted(info.splits)
    skip = {self._image: tfds.decode.SkipDecoding()}
    try:
      self._data = [builder.as_data_source(s, decoders=skip) for s in self._splits]
    except NotImplementedError as error:
      raise ValueError(
        f'{self.name}: stored as {info.file_format}, expected a format that can be'
        " read at random. Prepare it with file_format='array_record'."
      ) from error
    except ValueError as error:
      raise ValueError(f'{self.name}: {error}') from error
    self._ends = list(itertools.accumulate(map(len, self._data)))
    if not self._ends or not self._ends[-1]:
      raise ValueError(f'{self.name}: no images in {", ".join(self._splits)}.')
    self._keys = [
      f'{split}/{i:08d}'
      for split, data in zip(self._splits, self._data, strict=True)
      for i in range(len(data))
    ]

  def keys(self) -> Sequence[str]:
    """The split and the place in it, such as `train/00000042`."""
    return self._keys

  def load(self, index: int, size: int) -> Example:
    """Reads one image and its caption; see `Source.load`."""
    which = bisect.bisect_right(self._ends, index)
    data = self._data[which]
    place = index - (self._ends[which] - len(data))
    key = f'{self._splits[which]}/{place:08d}'
    record = data[place]
    # Twice the size leaves the final area average enough to work with.
    picture = open_image(record[self._image], name=key, at_least=2 * size)
    if self._caption is None:
      caption = ''
    elif self._classes:
      label = record[self._caption]  # -1 where it is kept secret.
      caption = self._classes[label].replace('_', ' ') if label >= 0 else ''
    else:
      caption = _first_text(record[self._caption])
    return Example(key, picture, check_caption(caption, name=key))


def _parse(data_set: str) -> tuple[str, str]:
  """Splits `WHERE@SPLIT`; an '@' inside a path is part of the path."""
  where, at, split = data_set.rpartition('@')
  return (where, split) if at and '/' not in split else (data_set, '')


def _open(where: str, name: str) -> tuple[Any, Any]:
  is_folder = where.startswith(('/', '.', '~')) or '://' in where
  try:
    if is_folder:
      builder = tfds.builder_from_directory(os.path.expanduser(where))
    else:
      builder = read_only_builder.builder_from_files(where)
    return builder.info, builder
  except (tfds.core.DatasetNotFoundError, DatasetInfoFileError) as error:
    raise FileNotFoundError(
      f'{name}: no prepared data set {where}. Nothing is downloaded here: prepare'
      " it first with tfds.builder(..., file_format='array_record')"
      '.download_and_prepare(), and set TFDS_DATA_DIR if it is not in'
      f' ~/tensorflow_datasets. ({error})'
    ) from error


def _features(features: Any, name: str) -> tuple[str, str | None, list[str] | None]:
  """Names of the image and the caption, and the captions of classes if it is one."""
  images = [key for key in features if isinstance(features[key], tfds.features.Image)]
  if 'image' in images:
    images = ['image']
  if len(images) != 1:
    raise ValueError(
      f'{name}: image features {images}, among {sorted(features)}; expected one, or'
      " one named 'image'."
    )
  for key in _CAPTION_FEATURES:
    if key in features:
      return images[0], key, None
  for key in ('label', 'class'):
    if key in features and isinstance(features[key], tfds.features.ClassLabel):
      return images[0], key, features[key].names
  return images[0], None, None


def _first_text(value: Any) -> str:
  """The text in a caption feature: itself, or the first of several."""
  if isinstance(value, dict):  # As COCO has it: {'id': [...], 'text': [...]}.
    value = value.get('text', '')
  if not isinstance(value, str | bytes):
    value = next(iter(value), '')
  return value if isinstance(value, str) else value.decode('utf-8', 'surrogateescape')
