"""The story of a training run."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import pathlib
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from composer_jax.checkpoints import Checkpoints
from composer_jax.config import Config
from composer_jax.files import read_json, write_json
from composer_jax.sharding.mesh import make_mesh, put_batch, replicated
from composer_jax.training.metrics import MetricsWriter, peak_flops
from composer_jax.training.step import (
  Stage,
  TrainState,
  abstract_state,
  initial_state,
  make_step,
)
from composer_jax.training.warm_start import Start

BUDGET = 'budget.json'
TRIAL_STEPS = 12


class Input(Protocol):
  """Batches with a position that can be saved."""

  def __next__(self) -> dict[str, np.ndarray]: ...

  def get_state(self) -> dict[str, Any]: ...

  def set_state(self, state: dict[str, Any]) -> None: ...


class NonFinite(RuntimeError):
  """Training diverged; the message names the step and the diagnostic file."""


Sampler = Callable[[TrainState, int], np.ndarray]
"""Draws a uint8 (H, W, 3) grid of samples from a state at a step."""


@dataclasses.dataclass
class Run:
  """How a run ended.

  Attributes:
    step: steps taken.
    finished: False when it was interrupted and can be resumed.
  """

  step: int
  finished: bool


def train(
  config: Config,
  stage: Stage,
  batches: Input,
  workdir: pathlib.Path,
  sampler: Sampler | None = None,
  start: Callable[[], Start] | None = None,
) -> Run:
  """Trains a stage, or goes on with it.

  SIGTERM and SIGINT save a checkpoint and return. Resuming gives the same bits as a
  run that was never interrupted.

  Args:
    config: of the run.
    stage: its model and loss.
    batches: local part of the global batches, without end.
    workdir: folder for checkpoints and metrics.
    sampler: draws a grid of samples at the end and every `train.sample_every` steps,
      which must then be above 0.
    start: reads what a new run starts from, instead of weights drawn at random.

  Raises:
    NonFinite: the loss or its gradient is not finite; a diagnostic is saved and the
      last good checkpoint is left as it is.
  """
  with (
    _stop_requests() as stop,
    contextlib.closing(Checkpoints(workdir, config.train.keep)) as checkpoints,
  ):
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp)
    state, step = _begin(config, stage, batches, mesh, checkpoints, start)
    batch = put_batch(mesh, next(batches))
    length = _scalar(mesh, 1)
    advance = make_step(stage, config, mesh).lower(state, batch, length).compile()
    total = _total_steps(config, workdir, advance, state, batch, length)
    length = _scalar(mesh, total)
    flops = _flops(advance) * config.optimizer.accumulate
    with contextlib.closing(_Journal(config, workdir, step, total, flops)) as journal:
      stopping = False
      while step < total and not stopping:
        state, metrics = advance(state, batch, length)
        step += 1
        journal.add(metrics)
        position = batches.get_state()
        with journal.waiting_for_data():
          batch = put_batch(mesh, next(batches))
        stopping = bool(stop)
        save = step == total or stopping or step % config.train.save_every == 0
        # Metrics first: what is not finite must not become the newest checkpoint.
        if save or step % config.train.log_every == 0:
          journal.write(step)
        if save:
          rest, ema = state.split()
          checkpoints.save(step, rest, ema, position)
        if sampler and (step == total or step % config.train.sample_every == 0):
          journal.picture(step, sampler(state, step))
  return Run(step, finished=step >= total)


def _begin(
  config: Config,
  stage: Stage,
  batches: Input,
  mesh: Mesh,
  checkpoints: Checkpoints,
  start: Callable[[], Start] | None,
) -> tuple[TrainState, int]:
  """The state to start from and its step: the newest checkpoint, or new weights."""
  _, shapes = abstract_state(stage, config, mesh)
  newest = checkpoints.latest()
  if newest is None:
    shardings = jax.tree.map(lambda leaf: leaf.sharding, shapes)
    fresh: tuple[str, ...] = ()
    params: Any = None
    if start is not None:
      params, fresh = start()

    def initial(params: Any) -> TrainState:
      begun = None if params is None else Start(params, fresh)
      return initial_state(stage, config, begun)[1]

    build = jax.jit(
      initial,
      out_shardings=shardings,
      # Drawing the weights is compiled to be run once: on CPUs, optimising that
      # takes longer than it saves.
      compiler_options={'xla_backend_optimization_level': 0}
      if jax.default_backend() == 'cpu'
      else None,
    )
    return build(params), 0
  rest, ema, position = checkpoints.restore(newest, *shapes.split())
  batches.set_state(position)
  return TrainState(**rest, ema=ema), newest


class _Journal:
  """Metrics of a run; they wait on the device until several are written at once."""

  def __init__(
    self, config: Config, workdir: pathlib.Path, start: int, total: int, flops: float
  ):
    self._workdir, self._flops = workdir, flops
    self._batch_size = config.data.batch_size
    self._peak = peak_flops() * jax.device_count()
    self._writer = MetricsWriter(workdir, start)
    self._bar = tqdm(total=total, initial=start, unit='step', desc=workdir.name)
    self._pending: list[dict[str, jax.Array]] = []
    self._restart_clock()

  def _restart_clock(self) -> None:
    self._clock, self._waited = time.perf_counter(), 0.0

  def add(self, metrics: dict[str, jax.Array]) -> None:
    self._pending.append(metrics)

  @contextlib.contextmanager
  def waiting_for_data(self) -> Iterator[None]:
    begin = time.perf_counter()
    yield
    self._waited += time.perf_counter() - begin

  def write(self, step: int) -> None:
    """Writes the metrics of the steps up to `step`, all finite."""
    lines = _fetch(self._pending, step, self._workdir)
    seconds = time.perf_counter() - self._clock
    speed = len(lines) / seconds
    lines[step] |= {
      'images_per_second': speed * self._batch_size,
      'model_flops_per_second': speed * self._flops,
      'share_of_peak': speed * self._flops / self._peak,
      'share_waiting_for_data': self._waited / seconds,
    }
    for number, values in lines.items():
      self._writer.write(number, values)
    # Steps run ahead of the device; only now are these done.
    self._bar.set_postfix_str(f'loss {lines[step]["loss"]:.4f}', refresh=False)
    self._bar.update(len(lines))
    self._pending.clear()
    self._restart_clock()

  def picture(self, step: int, pixels: np.ndarray) -> None:
    self._writer.image(step, 'samples', pixels)
    self._restart_clock()

  def close(self) -> None:
    self._bar.close()
    self._writer.close()


def _flops(advance: jax.stages.Compiled) -> float:
  """Floating-point operations of a step on all devices, as XLA counts them.

  It counts the part of one device, and the body of a loop once.
  """
  costs = advance.cost_analysis() or {}
  return float(costs.get('flops', math.nan)) * jax.device_count()


def _scalar(mesh: Mesh, value: float) -> jax.Array:
  return jax.device_put(np.float32(value), replicated(mesh))


def _total_steps(
  config: Config,
  workdir: pathlib.Path,
  advance: jax.stages.Compiled,
  state: TrainState,
  batch: dict[str, jax.Array],
  length: jax.Array,
) -> int:
  """The length of the run: as configured, or from `train.minutes`.

  The speed is measured once, so that a run that is resumed has the same length.
  """
  if config.train.minutes <= 0:
    return config.train.steps
  path = workdir / BUDGET
  if path.exists():
    budget = read_json(path, ('steps', 'minutes'), 'Remove it to measure anew.')
    return max(1, round(budget['steps'] * config.train.minutes / budget['minutes']))
  # The trial steps take a copy of the state, since a step consumes its input.
  trial = jax.tree.map(jnp.copy, state)
  seconds = []
  for _ in range(TRIAL_STEPS):
    begin = time.perf_counter()
    trial, metrics = advance(trial, batch, length)
    jax.block_until_ready(metrics)
    seconds.append(time.perf_counter() - begin)
  steps = max(1, int(config.train.minutes * 60 / float(np.median(seconds[2:]))))
  write_json(path, {'steps': steps, 'minutes': config.train.minutes})
  return steps


def _fetch(
  pending: list[dict[str, jax.Array]], step: int, workdir: pathlib.Path
) -> dict[int, dict[str, float]]:
  """The metrics of the steps up to `step`; stops at one that is not finite."""
  fetched = jax.device_get(pending)
  first = step - len(fetched) + 1
  lines = {
    first + i: {name: float(value) for name, value in metrics.items()}
    for i, metrics in enumerate(fetched)
  }
  for number, values in lines.items():
    # A gradient that is not finite has spoilt the weights before the loss shows it.
    for name in ('loss', 'gradient_norm'):
      if not math.isfinite(values[name]):
        path = workdir / f'diagnostic-{number}.json'
        write_json(path, lines)
        raise NonFinite(
          f'{name} is {values[name]} at step {number}. The metrics of the last'
          f' {len(lines)} steps are in {path}; the last good checkpoint is kept.'
          ' Lower config.optimizer.learning_rate or clip_norm and run again.'
        )
  return lines


@contextlib.contextmanager
def _stop_requests() -> Iterator[list[int]]:
  """Collects SIGTERM and SIGINT in a list instead of dying of them."""
  received: list[int] = []

  def on_signal(number: int, _: Any) -> None:
    received.append(number)
    # The second time it is meant.
    signal.signal(number, before[signal.Signals(number)])

  before = {
    number: signal.signal(number, on_signal)
    for number in (signal.SIGTERM, signal.SIGINT)
  }
  try:
    yield received
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
