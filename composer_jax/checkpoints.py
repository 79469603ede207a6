"""Checkpoints of a run: weights, optimiser, position in the data."""

from __future__ import annotations

import pathlib
from typing import Any

import orbax.checkpoint as ocp

FOLDER = 'checkpoints'


class Checkpoints:
  """The checkpoints under a working folder; saving is asynchronous and atomic.

  Each has three items: what only training needs, the average of the weights, which
  can so be read alone, and the position in the data.

  Args:
    workdir: folder of the run.
    keep: how many to keep; older ones are removed. None opens the folder for
      reading only.
  """

  def __init__(self, workdir: pathlib.Path, keep: int | None):
    if keep is None:
      options = ocp.CheckpointManagerOptions(
        read_only=True, save_interval_steps=0, create=False
      )
    else:
      options = ocp.CheckpointManagerOptions(max_to_keep=keep)
    self._manager = ocp.CheckpointManager(
      (workdir / FOLDER).absolute(),
      options=options,
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
    """
    self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(state),
        ema=ocp.args.StandardSave(ema),
        data=ocp.args.JsonSave(data),
      ),
      force=True,
    )

  def restore(self, step: int, state: Any, ema: Any) -> tuple[Any, Any, dict[str, Any]]:
    """Reads what `save` was given, into the shapes and shardings of two trees."""
    items = self._manager.restore(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardRestore(state),
        ema=ocp.args.StandardRestore(ema),
        data=ocp.args.JsonRestore(),
      ),
    )
    return items.state, items.ema, items.data

  def restore_average(self, step: int, ema: Any) -> Any:
    """Reads only the averaged weights."""
    items = self._manager.restore(
      step, args=ocp.args.Composite(ema=ocp.args.StandardRestore(ema))
    )
    return items.ema

  def wait(self) -> None:
    """Returns when everything is on disk."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits, then lets go of the folder."""
    self._manager.close()


def open_finished(workdir: pathlib.Path) -> tuple[Checkpoints, int]:
  """The checkpoints of a trained stage, and the newest step; close them after use.

  Raises:
    FileNotFoundError: the folder holds no finished checkpoint.
  """
  if not (workdir / FOLDER).is_dir():
    raise FileNotFoundError(
      f'{workdir} holds no checkpoints; train there first with'
      ' `composer-jax train --workdir`.'
    )
  checkpoints = Checkpoints(workdir, keep=None)
  step = checkpoints.latest()
  if step is None:
    checkpoints.close()
    raise FileNotFoundError(f'{workdir} holds no finished checkpoint.')
  return checkpoints, step
