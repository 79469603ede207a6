"""Checkpoints of a run: weights, optimiser, position in the data."""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp
from flax import nnx

from composer_jax.config import Config
from composer_jax.sharding.mesh import make_mesh
from composer_jax.training.step import Stage, TrainState, abstract_state

FOLDER = 'checkpoints'


class Checkpoints:
  """The checkpoints under a working folder; saving is asynchronous and atomic."""

  def __init__(self, workdir: pathlib.Path, keep: int):
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
    self._manager = ocp.CheckpointManager(
      (workdir / FOLDER).absolute(),
      options=options,
      item_names=('state', 'ema', 'data'),
    )

  def latest(self) -> int | None:
    """The newest step, or None."""
    return self._manager.latest_step()

  def save(self, step: int, state: TrainState, data: dict[str, Any]) -> None:
    """Starts to save; the arrays are copied before it returns.

    Args:
      step: number of steps taken.
      state: the training state. The average of the weights is an item of its own, so
        that it can be read alone.
      data: position in the data, as JSON has it.
    """
    self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(_without_average(state)),
        ema=ocp.args.StandardSave(state.ema),
        data=ocp.args.JsonSave(data),
      ),
      force=True,
    )

  def restore(self, step: int, shapes: TrainState) -> tuple[TrainState, dict[str, Any]]:
    """Reads a checkpoint into the given shapes and shardings."""
    items = self._manager.restore(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardRestore(_without_average(shapes)),
        ema=ocp.args.StandardRestore(shapes.ema),
        data=ocp.args.JsonRestore(),
      ),
    )
    return TrainState(**{**items.state, 'ema': items.ema}), items.data

  def restore_average(self, step: int, shapes: nnx.State) -> nnx.State:
    """Reads only the averaged weights."""
    items = self._manager.restore(
      step, args=ocp.args.Composite(ema=ocp.args.StandardRestore(shapes))
    )
    return items.ema

  def wait(self) -> None:
    """Returns when everything is on disk."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    self._manager.close()


def _without_average(state: TrainState) -> dict[str, Any]:
  return {name: value for name, value in vars(state).items() if name != 'ema'}


def load_average(
  workdir: pathlib.Path, stage: Stage, config: Config
) -> tuple[nnx.GraphDef, nnx.State, int]:
  """The averaged weights of a trained stage, for use.

  Returns:
    The graph definition and weights of the model, and the step they are from.

  Raises:
    FileNotFoundError: the folder holds no finished checkpoint.
  """
  if not (workdir / FOLDER).is_dir():
    raise FileNotFoundError(
      f'{workdir} holds no checkpoints; train there first with'
      ' `composer-jax train --workdir`.'
    )
  checkpoints = Checkpoints(workdir, keep=config.train.keep)
  step = checkpoints.latest()
  if step is None:
    raise FileNotFoundError(f'{workdir} holds no finished checkpoint.')
  mesh = make_mesh(1, jax.device_count())
  graph, shapes = abstract_state(stage, config, mesh)
  weights = checkpoints.restore_average(step, shapes.ema)
  checkpoints.close()
  return graph, weights, step
