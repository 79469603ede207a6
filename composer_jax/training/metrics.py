"""What a run says of itself: JSONL, TensorBoard events, and its speed."""

from __future__ import annotations

import json
import math
import pathlib
import time
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from composer_jax.files import write_text
from composer_jax.images import encode_png

FILE = 'metrics.jsonl'
PICTURES = 'samples'
"""Folder of the grids of samples, one PNG a step."""


class MetricsWriter:
  """Writes scalars to `metrics.jsonl` and to TensorBoard event files.

  Args:
    workdir: folder of the run.
    step: the step at which the run starts; lines after it, left by a run that died
      after its last checkpoint, are dropped because they will be written again.
  """

  def __init__(self, workdir: pathlib.Path, step: int):
    # Takes seconds to import, and is for the first process of a job alone.
    from tensorboardX import SummaryWriter

    self._path = workdir / FILE
    if self._path.exists():
      lines = self._path.read_text(errors='replace').splitlines(keepends=True)
      # A line that a kill cut off has no newline yet.
      whole = [line for line in lines if line.endswith('\n')]
      write_text(self._path, ''.join(line for line in whole if _step(line) <= step))
    self._file = self._path.open('a')
    self._pictures = workdir / PICTURES
    self._events = SummaryWriter(str(workdir / 'tensorboard'), purge_step=step + 1)

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Adds one line of numbers, and when it was written, in seconds since 1970."""
    self._file.write(json.dumps({'step': step, 'time': time.time(), **values}) + '\n')
    self._file.flush()
    for name, value in values.items():
      self._events.add_scalar(name, value, step)

  def image(self, step: int, name: str, pixels: np.ndarray) -> None:
    """Keeps a uint8 (H, W, 3) picture, in the event file and as a PNG."""
    self._pictures.mkdir(exist_ok=True)
    (self._pictures / f'{step:08d}.png').write_bytes(encode_png(pixels))
    self._events.add_image(name, pixels, step, dataformats='HWC')

  def close(self) -> None:
    """Finishes the files."""
    self._file.close()
    self._events.close()


def _step(line: str) -> float:
  """The step of a line; infinite for one that a power cut has left unreadable."""
  try:
    return json.loads(line)['step']
  except (ValueError, KeyError, TypeError):
    return math.inf


def peak_flops(side: int | None = None) -> float:
  """Floating-point operations a second of a large matrix product on one device.

  Of float32 on CPUs, of bfloat16 on what is made for it. Measured rather than looked
  up, so that it holds on any machine.

  Args:
    side: of the matrices; by default one that keeps the device busy.
  """
  cpu = jax.default_backend() == 'cpu'
  side, dtype = side or (2048 if cpu else 8192), jnp.float32 if cpu else jnp.bfloat16
  a = jnp.ones((side, side), dtype)
  product = jax.jit(lambda a: a @ a)
  product(a).block_until_ready()
  seconds = []
  for _ in range(3):
    start = time.perf_counter()
    product(a).block_until_ready()
    seconds.append(time.perf_counter() - start)
  return 2 * side**3 / min(seconds)
