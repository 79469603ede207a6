"""The story of a training run."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from tqdm import tqdm

from composer_jax.checkpoints import Checkpoints
from composer_jax.config import Config
from composer_jax.files import read_json, write_json
from composer_jax.flops import flops_by_argument
from composer_jax.sharding.mesh import batch_placer, make_mesh, replicated
from composer_jax.training.faults import Phase, Watch
from composer_jax.training.metrics import MetricsWriter, peak_flops
from composer_jax.training.processes import Agreement
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


class Diverged(RuntimeError):
  """A step is not to be trusted; the message names it and the diagnostic file."""


Sampler = Callable[[TrainState, int], np.ndarray]
"""Draws a uint8 (H, W, 3) grid of samples from a state at a step."""
Evaluator = Callable[[TrainState, int], Mapping[str, float]]
"""Measures a state at a step: figures by name."""


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
  *,
  evaluator: Evaluator | None = None,
  profile: int = 0,
) -> Run:
  """Trains a stage, or goes on with it; in all processes of a job alike.

  SIGTERM and SIGINT save a checkpoint and return. Resuming gives the same bits as a
  run that was never interrupted.

  Args:
    config: of the run.
    stage: its model and loss.
    batches: local part of the global batches, without end.
    workdir: folder for checkpoints and metrics, which all processes share.
    sampler: draws a grid of samples at the end and every `train.sample_every` steps,
      which must then be above 0.
    start: reads what a new run starts from, instead of weights drawn at random.
    evaluator: measures the state at the end and every `evaluate.every` steps, which
      must then be above 0.
    profile: steps to write a trace of, after the first ones; 0 for none.

  Raises:
    Diverged: a step is a spike, or not finite, and `train.on_spike` does not say how
      to go on; a diagnostic is saved and the last good checkpoint is left as it is.
  """
  begun = time.perf_counter()
  with (
    _stop_requests() as stop,
    contextlib.closing(Checkpoints(workdir, config.train.keep)) as checkpoints,
    contextlib.closing(Watch(config.train.hang_seconds)) as watch,
  ):
    mesh = make_mesh(config.mesh)
    abstract = abstract_state(stage, config, mesh)
    graph, shapes = abstract
    state, step = _begin(config, stage, batches, shapes, checkpoints, start)
    put = batch_placer(mesh, config.mesh.rules, config.data.batch_size)
    batch = put(next(batches))
    length = _Length(config, workdir, mesh)
    steps = length.on_device()
    lowered = make_step(stage, config, mesh, abstract).lower(state, batch, steps)
    advance = lowered.compile()
    length.plan(step, advance, state, batch)
    steps = length.on_device()
    agree, trace = Agreement(mesh), _Trace(workdir, step, profile)
    flops = _model_flops(stage, graph, shapes.params, batch)
    with contextlib.closing(
      _Journal(config, workdir, step, length.steps, flops, begun)
    ) as journal:
      stopping = False
      length.start(step)
      while step < length.steps and not stopping:
        watch.at(step, Phase.COMPUTING)
        state, metrics = advance(state, batch, steps)
        step += 1
        journal.add(metrics)
        trace.after(step, metrics)
        watch.at(step, Phase.READING)
        position = batches.get_state()
        with journal.waiting_for('data'):
          batch = put(next(batches))
        watch.at(step, Phase.COMPUTING)
        stopping = agree(bool(stop))
        saving = stopping or step % config.train.save_every == 0
        # Metrics first: what is not to be trusted must not become a checkpoint.
        if saving or step == length.steps or step % config.train.log_every == 0:
          try:
            journal.write(step)
          except Diverged:
            if not journal.may_roll_back(checkpoints.latest()):
              raise
            # The data go on: other ones come after the same weights.
            state, step, _ = _restore(shapes, checkpoints)
            journal.roll_back(step)
            length.correct(step)
            continue
          if length.correct(step):
            steps = length.on_device()
            journal.reach_for(length.steps)
        if saving or step == length.steps:
          watch.at(step, Phase.SAVING)
          with journal.waiting_for('checkpoints'):
            rest, ema = state.split()
            checkpoints.save(step, rest, ema, position)
        if sampler and (step == length.steps or step % config.train.sample_every == 0):
          watch.at(step, Phase.SAMPLING)
          journal.picture(step, sampler(state, step))
        every = config.evaluate.every
        if evaluator and (step == length.steps or step % every == 0):
          watch.at(step, Phase.SAMPLING)
          journal.figures(step, evaluator(state, step))
  return Run(step, finished=step >= length.steps)


def _begin(
  config: Config,
  stage: Stage,
  batches: Input,
  shapes: TrainState,
  checkpoints: Checkpoints,
  start: Callable[[], Start] | None,
) -> tuple[TrainState, int]:
  """The state to start from and its step: the newest checkpoint, or new weights."""
  if checkpoints.latest() is not None:
    state, step, position = _restore(shapes, checkpoints)
    batches.set_state(position)
    return state, step
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
    # Drawing the weights is compiled to be run once: on CPUs, optimising that takes
    # longer than it saves.
    compiler_options={'xla_backend_optimization_level': 0}
    if jax.default_backend() == 'cpu'
    else None,
  )
  return build(params), 0


def _restore(
  shapes: TrainState, checkpoints: Checkpoints
) -> tuple[TrainState, int, dict[str, Any]]:
  """The newest checkpoint that can be read: state, step and position in the data."""
  step, rest, ema, position = checkpoints.restore_newest(*shapes.split())
  return TrainState(**rest, ema=ema), step, position


class _Journal:
  """Metrics of a run; they wait on the device until several are written at once.

  All processes read them; the first writes them down.
  """

  def __init__(
    self,
    config: Config,
    workdir: pathlib.Path,
    start: int,
    total: int,
    flops: float,
    begun: float,
  ):
    self._config, self._workdir = config, workdir
    self._flops, self._begun = flops, begun
    self._first = jax.process_index() == 0
    self._peak = peak_flops() * jax.device_count()
    self._writer = MetricsWriter(workdir, start) if self._first else None
    self._bar = tqdm(
      total=total,
      initial=start,
      unit='step',
      desc=workdir.name,
      disable=not self._first,
    )
    self._pending: list[dict[str, jax.Array]] = []
    self._productive = 0.0
    self._rollbacks: list[int] = []
    self._restart_clock()

  def _restart_clock(self) -> None:
    self._clock = time.perf_counter()
    self._waited = {'data': 0.0, 'checkpoints': 0.0}

  def add(self, metrics: dict[str, jax.Array]) -> None:
    self._pending.append(metrics)

  @contextlib.contextmanager
  def waiting_for(self, what: str) -> Iterator[None]:
    begin = time.perf_counter()
    yield
    self._waited[what] += time.perf_counter() - begin

  def write(self, step: int) -> None:
    """Writes the metrics of the steps up to `step`.

    Raises:
      Diverged: one of them is not to be trusted; none is written.
    """
    lines = _fetch(self._pending, step)
    if self._config.train.on_spike != 'skip':
      self._check(lines)
    seconds = time.perf_counter() - self._clock
    speed = len(lines) / seconds
    self._productive += seconds - sum(self._waited.values())
    lines[step] |= {
      'images_per_second': speed * self._config.data.batch_size,
      'model_flops_per_second': speed * self._flops,
      'mfu': speed * self._flops / self._peak,
      'goodput': self._productive / (time.perf_counter() - self._begun),
      'rollbacks': float(len(self._rollbacks)),
    }
    lines[step] |= {
      f'share_waiting_for_{what}': waited / seconds
      for what, waited in self._waited.items()
    }
    if self._writer:
      for number, values in lines.items():
        self._writer.write(number, values)
    # Steps run ahead of the device; only now are these done.
    self._bar.set_postfix_str(f'loss {lines[step]["loss"]:.4f}', refresh=False)
    self._bar.update(len(lines))
    self._pending.clear()
    self._restart_clock()

  def _check(self, lines: dict[int, dict[str, float]]) -> None:
    """Refuses a step that is not finite, or a spike."""
    for number, values in lines.items():
      if not values['spike']:
        continue
      path = self._workdir / f'diagnostic-{number}.json'
      if self._first:
        write_json(path, lines)
      raise Diverged(
        f'The loss is {values["loss"]} and the norm of its gradient'
        f' {values["gradient_norm"]} at step {number}. The metrics of the last'
        f' {len(lines)} steps are in {path}; the last good checkpoint is kept.'
        ' Lower config.optimizer.learning_rate or clip_norm and run again, or have'
        ' such steps left out with --config.train.on_spike=skip.'
      )

  def may_roll_back(self, checkpoint: int | None) -> bool:
    """Whether to go back to a checkpoint: not for the third time to the same one."""
    asked = self._config.train.on_spike == 'rollback'
    return asked and checkpoint is not None and self._rollbacks.count(checkpoint) < 3

  def reach_for(self, total: int) -> None:
    """Takes note of another length of the run."""
    self._bar.total = total

  def roll_back(self, step: int) -> None:
    """Forgets the steps after a checkpoint, to which the run has gone back."""
    self._rollbacks.append(step)
    self._pending.clear()
    if self._writer:
      self._writer.close()
      self._writer = MetricsWriter(self._workdir, step)
    self._bar.n = step
    self._bar.refresh()
    self._restart_clock()

  def picture(self, step: int, pixels: np.ndarray) -> None:
    if self._writer:
      self._writer.image(step, 'samples', pixels)
    self._restart_clock()

  def figures(self, step: int, values: Mapping[str, float]) -> None:
    if self._writer:
      self._writer.write(step, values)
    self._restart_clock()

  def close(self) -> None:
    self._bar.close()
    if self._writer:
      self._writer.close()


class _Trace:
  """Writes a trace of a few steps, for TensorBoard or Perfetto."""

  def __init__(self, workdir: pathlib.Path, start: int, steps: int):
    self._folder = workdir / 'profile'
    # The first steps are slower: buffers are made, and the input fills its queue.
    self._first, self._last = start + 5, start + 5 + steps

  def after(self, step: int, metrics: dict[str, jax.Array]) -> None:
    """To be called after each step with what it gave."""
    if self._first < self._last and step in (self._first, self._last):
      jax.block_until_ready(metrics)
      if step == self._first:
        jax.profiler.start_trace(self._folder, create_perfetto_trace=True)
      else:
        jax.profiler.stop_trace()


def _model_flops(
  stage: Stage, graph: nnx.GraphDef, params: nnx.State, batch: dict[str, jax.Array]
) -> float:
  """Floating-point operations of a step on all devices: three forward passes."""
  leaves, structure = jax.tree.flatten(params)

  def loss(leaves: list[jax.Array], batch: dict[str, jax.Array]) -> jax.Array:
    params = jax.tree.unflatten(structure, leaves)
    return stage.loss(nnx.merge(graph, params), batch, jax.random.key(0))[0]

  shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)
  return 3.0 * sum(flops_by_argument(loss, leaves, shapes).values())


def _scalar(mesh: Mesh, value: float) -> jax.Array:
  return jax.device_put(np.float32(value), replicated(mesh))


class _Length:
  """How many steps a run takes: as configured, or as many as `train.minutes` hold.

  By minutes, a trial gives a first number, and what the run itself then takes
  corrects it, until the learning rate begins to fall: up to there, nothing depends on
  the number. A run that is resumed goes on with what is left of its minutes.
  """

  def __init__(self, config: Config, workdir: pathlib.Path, mesh: Mesh):
    self._minutes, self._steps = config.train.minutes, config.train.steps
    self._steady = 1 - config.optimizer.cooldown
    self._path, self._mesh = workdir / BUDGET, mesh
    self._spent, self._pace = 0.0, 0.0

  @property
  def steps(self) -> int:
    return self._steps

  def on_device(self) -> jax.Array:
    """The number, as a step takes it."""
    return _scalar(self._mesh, self._steps)

  def plan(
    self,
    step: int,
    advance: jax.stages.Compiled,
    state: TrainState,
    batch: dict[str, jax.Array],
  ) -> None:
    """Finds a first number, or the one that an earlier run has kept."""
    if self._minutes <= 0:
      return
    if _of_first(self._path.exists()):
      budget = read_json(
        self._path, ('steps', 'minutes', 'spent'), 'Remove it to measure anew.'
      )
      self._spent = budget['spent']
      self._agree_on(budget['steps'] * self._minutes / budget['minutes'])
      return
    # The trial steps take a copy of the state, since a step consumes its input.
    trial = jax.tree.map(jnp.copy, state)
    seconds = []
    for _ in range(TRIAL_STEPS):
      begin = time.perf_counter()
      trial, metrics = advance(trial, batch, self.on_device())
      jax.block_until_ready(metrics)
      seconds.append(time.perf_counter() - begin)
    self._pace = float(np.median(seconds[2:]))
    self._agree_on(step + 60 * self._minutes / self._pace)
    self._write()

  def start(self, step: int) -> None:
    """Starts the clock."""
    self._clock, self._step = time.perf_counter(), step

  def correct(self, step: int) -> bool:
    """Takes note of the time, at a step; says whether that changes the number."""
    if self._minutes <= 0:
      return False
    before, (clock, since) = self._steps, (self._clock, self._step)
    self.start(step)
    self._spent += self._clock - clock
    # A run that was rolled back is at an earlier step.
    if step > since and step < self._steady * self._steps:
      pace = (self._clock - clock) / (step - since)
      self._pace = (self._pace + pace) / 2 if self._pace else pace
      left = (60 * self._minutes - self._spent) / self._pace
      self._agree_on(step + max(left, 1))  # The last step is saved: one is to come.
    self._write()
    return self._steps != before

  def _agree_on(self, steps: float) -> None:
    # All processes take as many as the first one thinks.
    self._steps = _of_first(round(min(max(steps, 1), np.iinfo(np.int32).max)))

  def _write(self) -> None:
    if jax.process_index() == 0:
      write_json(
        self._path,
        {'steps': self._steps, 'minutes': self._minutes, 'spent': self._spent},
      )


def _of_first(value: int) -> int:
  """What the first process has."""
  return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def _fetch(
  pending: list[dict[str, jax.Array]], step: int
) -> dict[int, dict[str, float]]:
  """The metrics of the steps up to `step`."""
  fetched = jax.device_get(pending)
  first = step - len(fetched) + 1
  return {
    first + i: {name: float(value) for name, value in metrics.items()}
    for i, metrics in enumerate(fetched)
  }


@contextlib.contextmanager
def _stop_requests() -> Iterator[list[int]]:
  """Collects SIGTERM and SIGINT in a list instead of dying of them."""
  received: list[int] = []

  def on_signal(number: int, _: Any) -> None:
    received.append(number)
    # Who presses Ctrl-C twice means it. Launchers send SIGTERM more than once, and
    # SIGKILL where they mean it.
    if number == signal.SIGINT:
      signal.signal(number, before[signal.SIGINT])

  before = {
    number: signal.signal(number, on_signal)
    for number in (signal.SIGTERM, signal.SIGINT)
  }
  try:
    yield received
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
