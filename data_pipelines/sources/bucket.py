"""Folders and WebDataset shards in an object store, such as s3://bucket/photos."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from concurrent import futures
from typing import Any, BinaryIO

from composer_jax.buckets import (
  files_below,
  files_matching,
  get_bytes,
  open_object,
  open_path,
)
from data_pipelines.sources.folder import FolderSource
from data_pipelines.sources.webdataset import WebDatasetSource, fixed_part


class BucketFolderSource(FolderSource):
  """A `FolderSource` that asks an object store in place of a disk.

  Only its listing says which images have a caption beside them, so that none is asked
  for in vain.
  """

  def _open_root(self, path: str) -> Any:
    return open_path(path)

  def _files_below(self) -> Iterator[str]:
    names = files_below(self._root)
    if not names:
      raise FileNotFoundError(f'{self.name}: nothing is there.')
    visible = [name for name in names if '/.' not in f'/{name}']
    endings = ('.txt', '.jsonl', '.csv')
    self._texts = frozenset(name for name in visible if name.endswith(endings))
    yield from visible

  def _image(self, relative: str, key: str) -> bytes:
    return get_bytes(self._root / relative)

  def _open(self, relative: str) -> BinaryIO | None:
    if relative not in self._texts:
      return None
    return io.BytesIO(get_bytes(self._root / relative))


class BucketWebDatasetSource(WebDatasetSource):
  """A `WebDatasetSource` that asks an object store in place of a disk."""

  def _find(self, pattern: str) -> tuple[Any, list[str]]:
    root = open_path(fixed_part(pattern))
    return root, files_matching(root, pattern)

  def _contents(self, shards: Sequence[str]) -> Iterable[dict[str, Any]]:
    # Headers lie between the images, so a shard is read in full for them.
    with futures.ThreadPoolExecutor(16) as pool:
      return list(pool.map(self._contents_of, shards))

  def _open(self, shard: str) -> BinaryIO:
    return open_object(self._root / shard)

  def _read(self, shard: str, member: Any) -> bytes:
    start = member.offset
    return get_bytes(self._root / shard, start, start + member.length)
