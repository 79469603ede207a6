"""Where images come from. Each kind of source is one file in this folder."""

from __future__ import annotations

from composer_jax.buckets import in_bucket
from data_pipelines.sources.source import BadRecord, Example, Source

__all__ = ['BadRecord', 'Example', 'Source', 'open_source']

_KNOWN = """
  twemoji                          Twemoji drawings, which come with a package
  folder:PATH                      a folder of images, at any depth, or s3://...
  tfds:NAME[/CONFIG][@SPLIT]       a prepared TensorFlow Datasets data set
  tfds:PATH[@SPLIT]                the same, by the folder it was prepared in
  webdataset:GLOB                  WebDataset shards, such as data/*.tar, or s3://..."""


def open_source(spec: str) -> Source:
  """Opens a source of images by its name.

  Args:
    spec: one of `twemoji`, `folder:PATH`, `tfds:NAME[/CONFIG][@SPLIT]`,
      `tfds:PATH[@SPLIT]`, `webdataset:GLOB`.

  Raises:
    ValueError: if there is no such source, or it holds no images.
    FileNotFoundError: if its data are not on this machine.
  """
  # Imported on demand: TensorFlow Datasets alone takes longer than all else.
  match spec.partition(':'):
    case ('twemoji', '', ''):
      from data_pipelines.sources.twemoji import TwemojiSource

      return TwemojiSource()
    case ('folder', ':', path) if in_bucket(path):
      from data_pipelines.sources.bucket import BucketFolderSource

      return BucketFolderSource(path)
    case ('folder', ':', path) if path:
      from data_pipelines.sources.folder import FolderSource

      return FolderSource(path)
    case ('tfds', ':', data_set) if data_set:
      from data_pipelines.sources.tfds_source import TfdsSource

      return TfdsSource(data_set)
    case ('webdataset', ':', pattern) if in_bucket(pattern):
      from data_pipelines.sources.bucket import BucketWebDatasetSource

      return BucketWebDatasetSource(pattern)
    case ('webdataset', ':', pattern) if pattern:
      from data_pipelines.sources.webdataset import WebDatasetSource

      return WebDatasetSource(pattern)
  raise ValueError(f'source: {spec!r} is not one of the known kinds:{_KNOWN}')
