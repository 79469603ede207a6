"""The story of a training run."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import pathlib
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from composer_jax.checkpoints import Checkpoints
from composer_jax.config import Config
from composer_jax.sharding.mesh import make_mesh, put_batch
from composer_jax.training.metrics import MetricsWriter, peak_flops
from composer_jax.training.step import (
  Stage,
  StepFunction,
  TrainState,
  abstract_state,
  initial_state,
  make_step,
)

BUDGET = 'budget.json'
TRIAL_STEPS = 12


class Input(Protocol):
  """Batches with a position that can be saved."""

  def __next__(self) -> dict[str, np.ndarray]: ...

  def get_state(self) -> dict[str, Any]: ...

  def set_state(self, state: dict[str, Any]) -> None: ...


class NonFiniteLoss(RuntimeError):
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
) -> Run:
  """Trains a stage, or goes on with it.

  SIGTERM and SIGINT save a checkpoint and return. Resuming gives the same bits as a
  run that was never interrupted.

  Args:
    config: of the run.
    stage: its model and loss.
    batches: local part of the global batches, without end.
    workdir: folder for checkpoints and metrics.
    sampler: draws a grid of samples, every `train.sample_every` steps.

  Raises:
    NonFiniteLoss: the loss is not finite; a diagnostic is saved and the last good
      checkpoint is left as it is.
  """
  mesh = make_mesh(config.mesh.data, config.mesh.fsdp)
  checkpoints = Checkpoints(workdir, config.train.keep)
  _, shapes = abstract_state(stage, config, mesh)
  start = checkpoints.latest()
  if start is None:
    shardings = jax.tree.map(lambda leaf: leaf.sharding, shapes)
    build = jax.jit(lambda: initial_state(stage, config)[1], out_shardings=shardings)
    state, start = build(), 0
  else:
    state, position = checkpoints.restore(start, shapes)
    batches.set_state(position)

  step_function = make_step(stage, config, mesh)
  batch = put_batch(mesh, next(batches))
  flops = _flops(step_function, state, batch)
  total = _total_steps(config, workdir, step_function, state, batch)
  peak = peak_flops() * jax.device_count()

  writer = MetricsWriter(workdir, start)
  progress = tqdm(total=total, initial=start, unit='step', desc=workdir.name)
  total_array = jnp.asarray(total, jnp.float32)
  pending: list[dict[str, jax.Array]] = []
  clock, waited = time.perf_counter(), 0.0

  def log(step: int) -> None:
    nonlocal clock, waited
    lines = _fetch(pending, step, workdir)
    seconds = time.perf_counter() - clock
    speed = len(pending) / seconds
    lines[step] |= {
      'images_per_second': speed * config.data.batch_size,
      'model_flops_per_second': speed * flops,
      'share_of_peak': speed * flops / peak,
      'share_waiting_for_data': waited / seconds,
    }
    for number, values in lines.items():
      writer.write(number, values)
    progress.set_postfix_str(f'loss {lines[step]["loss"]:.4f}', refresh=False)
    pending.clear()
    clock, waited = time.perf_counter(), 0.0

  step = start
  with _stop_requests() as stop, contextlib.closing(checkpoints):
    while step < total and not stop:
      state, metrics = step_function(state, batch, total_array)
      pending.append(metrics)
      step += 1
      progress.update()
      position = batches.get_state()
      begin = time.perf_counter()
      batch_ahead = put_batch(mesh, next(batches))
      waited += time.perf_counter() - begin
      if step % config.train.log_every == 0 or step == total:
        log(step)
      if step % config.train.save_every == 0 or step == total:
        if pending:
          log(step)
        checkpoints.save(step, state, position)
      every = config.train.sample_every
      if sampler and every and step % every == 0:
        writer.image(step, 'samples', sampler(state, step))
        clock = time.perf_counter()
      batch = batch_ahead
    if stop and step < total and checkpoints.latest() != step:
      if pending:
        log(step)
      checkpoints.save(step, state, position)
    checkpoints.wait()
  progress.close()
  writer.close()
  return Run(step, finished=step >= total)


def _flops(step: StepFunction, state: TrainState, batch: dict[str, jax.Array]) -> float:
  """Floating-point operations of one step, as XLA counts them."""
  compiled = step.lower(state, batch, jnp.zeros((), jnp.float32)).compile()
  return float((compiled.cost_analysis() or {}).get('flops', math.nan))


def _total_steps(
  config: Config,
  workdir: pathlib.Path,
  step: StepFunction,
  state: TrainState,
  batch: dict[str, jax.Array],
) -> int:
  """The length of the run: as configured, or measured once from `train.minutes`."""
  if config.train.minutes <= 0:
    return config.train.steps
  path = workdir / BUDGET
  if path.exists():
    return json.loads(path.read_text())['steps']
  # The trial steps take a copy of the state, since a step consumes its input.
  trial = jax.tree.map(jnp.copy, state)
  length = jnp.ones((), jnp.float32)
  seconds = []
  for _ in range(TRIAL_STEPS):
    begin = time.perf_counter()
    trial, metrics = step(trial, batch, length)
    jax.block_until_ready(metrics)
    seconds.append(time.perf_counter() - begin)
  steps = max(1, int(config.train.minutes * 60 / float(np.median(seconds[2:]))))
  path.write_text(json.dumps({'steps': steps, 'minutes': config.train.minutes}) + '\n')
  return steps


def _fetch(
  pending: list[dict[str, jax.Array]], step: int, workdir: pathlib.Path
) -> dict[int, dict[str, float]]:
  """The metrics of the steps up to `step`; stops at a loss that is not finite."""
  fetched = jax.device_get(pending)
  first = step - len(fetched) + 1
  lines = {
    first + i: {name: float(value) for name, value in metrics.items()}
    for i, metrics in enumerate(fetched)
  }
  for number, values in lines.items():
    if not math.isfinite(values['loss']):
      path = workdir / f'diagnostic-{number}.json'
      path.write_text(json.dumps(lines, indent=1) + '\n')
      raise NonFiniteLoss(
        f'The loss is {values["loss"]} at step {number}. The metrics of the last'
        f' {len(lines)} steps are in {path}; the last good checkpoint is kept.'
        ' Lower config.optimizer.learning_rate or clip_norm and run again.'
      )
  return lines


@contextlib.contextmanager
def _stop_requests() -> Iterator[list[int]]:
  """Collects SIGTERM and SIGINT in a list instead of dying of them."""
  received: list[int] = []
  before = {
    number: signal.signal(number, lambda n, _: received.append(n))
    for number in (signal.SIGTERM, signal.SIGINT)
  }
  try:
    yield received
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
