"""Shards of data sets in buckets, copied to this machine to be read.

ArrayRecord reads at random, and from disks only. Batches are shuffled over a whole
split, so a process reads from all of its shards within a few steps, and what it would
leave out is not worth the waiting in between.
"""

from __future__ import annotations

import fcntl
import os
import pathlib
import secrets
from collections.abc import Sequence
from concurrent import futures

import tqdm

from composer_jax.buckets import get_file, in_bucket

FOLDER = 'COMPOSER_JAX_CACHE'
"""Environment variable: where copies go, by default ~/.cache/composer_jax."""

AT_ONCE = 8
"""Files that are copied at a time; one alone does not fill a network."""


def on_disk(directory: pathlib.Path, names: Sequence[str], digest: str) -> pathlib.Path:
  """Where files of a folder are on this machine, after copying those that are not.

  Args:
    directory: of the files. If it is on disk, that is where they are.
    names: of the files.
    digest: of what is in the folder. Copies are kept under it, so they can't be
      mistaken for others, and all processes of a machine share them.

  Returns:
    A folder with those of the files that `directory` has.

  Raises:
    OSError: the bucket cannot be reached, or the disk is full.
  """
  if not in_bucket(directory):
    return directory
  default = pathlib.Path.home() / '.cache' / 'composer_jax'
  home = pathlib.Path(os.environ.get(FOLDER, default)) / digest
  home.mkdir(parents=True, exist_ok=True)
  with open(home / 'lock', 'w') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)  # Others wait, then find all of it here.
    missing = [name for name in names if not (home / name).exists()]
    progress = tqdm.tqdm(
      total=len(missing), unit='file', desc=f'copy {directory}', disable=not missing
    )
    with progress, futures.ThreadPoolExecutor(AT_ONCE) as pool:
      copies = [pool.submit(_copy, directory / name, home / name) for name in missing]
      try:
        for copy in futures.as_completed(copies):
          copy.result()
          progress.update()
      finally:
        pool.shutdown(cancel_futures=True)
  return home


def _copy(path: pathlib.Path, copy: pathlib.Path) -> None:
  part = copy.with_name(f'{copy.name}.{secrets.token_hex(4)}.part')
  try:
    get_file(path, part)
    os.replace(part, copy)
  except FileNotFoundError:
    return  # The reader knows what to say.
  finally:
    part.unlink(missing_ok=True)
