"""Several processes that train one model together."""

from __future__ import annotations

import collections
import contextlib
import os
import pathlib
import sys
import traceback
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from composer_jax.sharding.mesh import replicated

ADDRESS, COUNT, INDEX = (
  'JAX_COORDINATOR_ADDRESS',
  'JAX_NUM_PROCESSES',
  'JAX_PROCESS_ID',
)
"""Environment variables that say where process 0 is, and who this is among how many."""

LAG = 2
"""Steps after which all know of a request; fewer would make the devices wait."""


def join(silence: int = 100) -> None:
  """Finds the other processes of the job, if it has any.

  They are told by `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`,
  by Slurm, or by the environment of a TPU slice or of several. To be called before
  anything is computed.

  Args:
    silence: seconds without a sign of life after which a process counts as dead, and
      the others end.

  Raises:
    ValueError: only some of the variables are set, or not to numbers.
    RuntimeError: not all processes came.
  """
  there = [name for name in (ADDRESS, COUNT, INDEX) if os.environ.get(name)]
  if there == [ADDRESS, COUNT, INDEX]:
    count, index = (os.environ[name] for name in (COUNT, INDEX))
    if not (count.isdigit() and index.isdigit() and int(index) < int(count)):
      raise ValueError(
        f'{COUNT} is {count!r} and {INDEX} {index!r}; expected a number of processes,'
        ' and one below it.'
      )
    jax.distributed.initialize(
      num_processes=int(count),
      process_id=int(index),
      heartbeat_timeout_seconds=silence,
    )
  elif there:
    missing = [name for name in (ADDRESS, COUNT, INDEX) if name not in there]
    raise ValueError(
      f'{there[0]} is set and {", ".join(missing)} not; set all three, or none to train'
      ' in one process.'
    )
  elif int(os.environ.get('SLURM_STEP_NUM_TASKS', '1')) > 1 or _on_tpu():
    jax.distributed.initialize(heartbeat_timeout_seconds=silence)


def _on_tpu() -> bool:
  devices = ('/dev/accel0', '/dev/vfio/0')
  return os.environ.get('JAX_PLATFORMS', 'tpu') == 'tpu' and any(
    pathlib.Path(device).exists() for device in devices
  )


@contextlib.contextmanager
def ending_at_once() -> Iterator[None]:
  """Ends a process of several where it fails, instead of waiting for the others.

  JAX lets a process that ends well wait for its peers; but those wait for this one, in
  the next sum over all devices.
  """
  try:
    yield
  except Exception as error:
    if jax.process_count() == 1:
      raise
    known = isinstance(error, ValueError | OSError | RuntimeError)
    text = str(error) if known else traceback.format_exc()
    print(f'composer-jax train: {text}', file=sys.stderr, flush=True)
    os._exit(1)


class Agreement:
  """Lets all processes do at the same step what one of them was asked to.

  Args:
    mesh: of all devices.
  """

  def __init__(self, mesh: Mesh):
    self._sharding = NamedSharding(mesh, P(mesh.axis_names))
    self._any = jax.jit(jnp.any, out_shardings=replicated(mesh))
    self._asked: collections.deque[jax.Array] = collections.deque()

  def __call__(self, wish: bool) -> bool:
    """Whether any process had the wish `LAG` calls ago; all call equally often.

    A process that is alone is answered at once.
    """
    if jax.process_count() == 1:
      return wish
    flags = jax.make_array_from_callback(
      (jax.device_count(),), self._sharding, lambda _: np.array([wish])
    )
    self._asked.append(self._any(flags))
    return len(self._asked) > LAG and bool(self._asked.popleft())
