"""Checkpoints of a run: weights, optimiser, position in the data."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

FOLDER = 'checkpoints'
DAMAGED = 'damaged-checkpoints'


class Checkpoints:
  """The checkpoints under a working folder; saving is asynchronous and atomic.

  Each has three items: what only training needs, the average of the weights, which
  can so be read alone, and the position in the data.

  Args:
    workdir: folder of the run.
    keep: how many to keep; older ones are removed.
  """

  def __init__(self, workdir: pathlib.Path, keep: int):
    self._workdir = workdir
    self._manager = ocp.CheckpointManager(
      (workdir / FOLDER).absolute(),
      options=ocp.CheckpointManagerOptions(max_to_keep=keep),
      item_names=('state', 'ema', 'data'),
    )

  def latest(self) -> int | None:
    """The newest step, or None."""
    return self._manager.latest_step()

  def save(self, step: int, state: Any, ema: Any, data: dict[str, Any]) -> None:
    """Starts to save; the arrays are copied before it returns.

    Args:
      step: number of steps taken.
      state: tree of arrays that only training needs.
      ema: tree of the averaged weights.
      data: position in the data, as JSON has it.

    Raises:
      OSError: this one or the one before cannot be written.
    """
    about = {'position': data, 'sum': bit_sum((state, ema))}
    with self._writing():
      self._manager.save(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(state),
          ema=ocp.args.StandardSave(ema),
          data=ocp.args.JsonSave(about),
        ),
        force=True,
      )

  def restore_newest(
    self, state: Any, ema: Any
  ) -> tuple[int, Any, Any, dict[str, Any]]:
    """Reads the newest checkpoint that all processes can read.

    Newer ones that are damaged are moved to `damaged-checkpoints/`, with a warning.

    Args:
      state: shapes and shardings of what only training needs.
      ema: the same of the averaged weights.

    Returns:
      Its step, and what `save` was given.

    Raises:
      OSError: one that is being saved cannot be written.
      Exception: what the newest one raised, if no other can be read; all stay.
    """
    self.wait()  # The newest may still be on its way to the disk.
    first: Exception | None = None
    steps = sorted(self._manager.all_steps(), reverse=True)
    for step in steps:
      found = self._read(step, state, ema)
      error = found if isinstance(found, Exception) else None
      if not _all(error is None):
        first = first or error or OSError('another process cannot read its part of it')
        continue
      assert not isinstance(found, Exception)
      *trees, position, wanted = found
      if (total := bit_sum(tuple(trees))) != wanted:
        first = first or ValueError(f'its bits sum up to {total}, not to {wanted}')
        continue
      self._move_aside([damaged for damaged in steps if damaged > step], first)
      return step, *trees, position
    assert first is not None  # There is a checkpoint, or none would be asked for.
    raise first

  def _read(self, step: int, *trees: Any) -> list[Any] | Exception:
    """What `save` was given and its sum, or what is wrong with this process's part.

    The manager would wait for all processes, also for those that cannot go on.
    """
    folder = (self._workdir / FOLDER / str(step)).absolute()
    try:
      read = [
        ocp.StandardCheckpointHandler().restore(
          folder / name, args=ocp.args.StandardRestore(tree)
        )
        for name, tree in zip(('state', 'ema'), trees, strict=True)
      ]
      about = ocp.JsonCheckpointHandler().restore(folder / 'data')
      return [*read, about['position'], about['sum']]
    except Exception as error:  # Whatever a library says of bytes that are not whole.
      return error

  def _move_aside(self, steps: list[int], error: Exception | None) -> None:
    if not steps:
      return
    for step in steps:
      place = self._workdir / DAMAGED / str(step)
      warnings.warn(
        f'{self._workdir / FOLDER / str(step)} is damaged and now in {place}; going on'
        f' from the one before. {type(error).__name__}: {error}',
        stacklevel=2,
      )
      if jax.process_index() == 0:
        place.parent.mkdir(exist_ok=True)
        shutil.rmtree(place, ignore_errors=True)
        os.replace(self._workdir / FOLDER / str(step), place)
    multihost_utils.sync_global_devices('damaged checkpoints')
    self._manager.reload()

  def wait(self) -> None:
    """Returns when everything is on disk.

    Raises:
      OSError: it cannot be written.
    """
    with self._writing():
      self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits, then lets go of the folder; raises as `wait` does."""
    with self._writing():
      self._manager.close()

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    """Names the folder in whatever error a library raises in writing to it."""
    try:
      yield
    except Exception as error:
      raise OSError(
        f'A checkpoint cannot be written to {self._workdir / FOLDER}: {error}. The last'
        ' good one is kept. Make room, or mend what the error says, and run again.'
      ) from error


def _all(true: bool) -> bool:
  """Whether it is true in all processes."""
  if jax.process_count() == 1:
    return true
  return bool(multihost_utils.process_allgather(np.array(true)).all())


def bit_sum(tree: Any) -> int:
  """A number of 32 bits that tells arrays from others, the same on any devices.

  The bits of each, as integers, are added up; then those sums, each times an odd number
  of its own. Files of checkpoints have no checksums. Each process adds what it holds,
  outside of JAX, which would compile a program for it.
  """
  total = 0
  for index, leaf in enumerate(jax.tree.leaves(tree)):
    shards = getattr(leaf, 'addressable_shards', None)
    parts = [leaf] if shards is None else [s.data for s in shards if not s.replica_id]
    for part in parts:
      array = np.ascontiguousarray(part).reshape(-1)
      bits = array.view(f'u{array.itemsize}')
      total += int(bits.sum(dtype=np.uint64)) * (2 * index + 1)
  if jax.process_count() > 1:
    own = np.uint32(total % 2**32)
    total = sum(map(int, multihost_utils.process_allgather(own)))
  return total % 2**32


def newest(workdir: pathlib.Path) -> int:
  """The newest step that is wholly saved under a working folder.

  Raises:
    FileNotFoundError: there is none.
  """
  folder = workdir / FOLDER
  if not folder.is_dir():
    raise FileNotFoundError(
      f'{workdir} holds no checkpoints; train there first with'
      ' `composer-jax train --workdir`.'
    )
  steps = ocp.utils.checkpoint_steps(folder)
  if not steps:
    raise FileNotFoundError(f'{workdir} holds no finished checkpoint.')
  return max(steps)


def read_state(workdir: pathlib.Path, step: int, state: Any) -> Any:
  """Reads what only training needs of a step, into the shapes of a tree.

  Raises:
    FileNotFoundError: it is not there, as for imported weights.
  """
  path = (workdir / FOLDER / str(step) / 'state').absolute()
  if not path.is_dir():
    raise FileNotFoundError(f'{workdir} holds only averaged weights; use --ema.')
  with ocp.StandardCheckpointer() as checkpointer:
    return checkpointer.restore(path, state)


def read_average(workdir: pathlib.Path, step: int, ema: Any) -> Any:
  """Reads only the averaged weights of a step, into the shapes of a tree.

  Nothing in the folder is touched, so that a run may go on in it meanwhile.
  """
  with ocp.StandardCheckpointer() as checkpointer:
    return checkpointer.restore((workdir / FOLDER / str(step) / 'ema').absolute(), ema)
