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
    keep: how many to keep; older ones are removed.
  """

  def __init__(self, workdir: pathlib.Path, keep: int):
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

  def wait(self) -> None:
    """Returns when everything is on disk."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits, then lets go of the folder."""
    self._manager.close()


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
