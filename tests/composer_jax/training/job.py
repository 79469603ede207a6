"""One process of a job that fits a line; its arguments are WORKDIR STEPS [HANG]."""

from __future__ import annotations

import pathlib
import sys
import time

import numpy as np

from composer_jax.config import Config, DataConfig, OptimizerConfig, TrainConfig
from composer_jax.models.unet import UNetConfig
from composer_jax.sharding.mesh import MeshConfig, local_rows, make_mesh
from composer_jax.sharding.rules import AxisRules
from composer_jax.training import loop
from composer_jax.training.processes import ending_at_once, join

PREEMPTED = 75
WIDTH = 1000
"""So many that each process has files of its own in a checkpoint."""


class Rows:
  """The rows of this process, slowly; batch k follows from k."""

  def __init__(self, rows):
    self._rows, self._next = rows, 0

  def __next__(self):
    rng = np.random.default_rng(self._next)
    self._next += 1
    time.sleep(0.1)
    x, y = rng.normal(size=(8, WIDTH)), rng.normal(size=(8, 2))
    return {name: a[self._rows].astype(np.float32) for name, a in (('x', x), ('y', y))}

  def get_state(self):
    return {'next': self._next}

  def set_state(self, state):
    self._next = state['next']


def main(workdir: str, steps: str, hang: str = '0') -> int:
  join(silence=20)
  # It computes something when it is imported.
  from tests.composer_jax.training.test_step import LeastSquares

  config = Config(
    'diffusion',
    UNetConfig(),
    DataConfig(batch_size=8),
    optimizer=OptimizerConfig(learning_rate=0.01, warmup_steps=2),
    train=TrainConfig(
      steps=int(steps), log_every=2, save_every=4, hang_seconds=float(hang)
    ),
    mesh=MeshConfig(fsdp=2, rules=AxisRules(smallest=0)),
  )
  rows = Rows(local_rows(make_mesh(config.mesh), config.mesh.rules, 8))
  with ending_at_once():
    stage = LeastSquares(noisy=True, width=WIDTH)
    run = loop.train(config, stage, rows, pathlib.Path(workdir))
  return 0 if run.finished else PREEMPTED


if __name__ == '__main__':
  sys.exit(main(*sys.argv[1:]))
