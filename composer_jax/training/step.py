"""One training step: loss, gradient, update, average."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from composer_jax.config import Config
from composer_jax.sharding.mesh import batch_sharding, compiler_options, replicated
from composer_jax.sharding.rules import laid_out, weight_shardings
from composer_jax.training.optimizer import learning_rate, make_optimizer
from composer_jax.training.warm_start import Start, apply_start

NORM_STEPS = 100
"""Steps that the running mean of the gradient's norm reaches back, about."""

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


class Stage(Protocol):
  """What differs between the dual encoder, the base model and the upsamplers."""

  def init(self, key: jax.Array) -> Any:
    """Builds the model."""

  def loss(self, model: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
    """Mean loss of a batch, and what else to log."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class TrainState:
  """Everything that a step changes.

  Attributes:
    step: int32 scalar, steps taken so far.
    params: weights.
    ema: exponential moving average of the weights.
    opt_state: of the optimiser.
    usual_norm: float32 scalar, running mean of the gradient's norm; 0 at first.
  """

  step: jax.Array
  params: nnx.State
  ema: nnx.State
  opt_state: Any
  usual_norm: jax.Array

  def split(self) -> tuple[dict[str, Any], nnx.State]:
    """What only training needs, by field, and the averaged weights."""
    rest = dict(vars(self))
    return rest, rest.pop('ema')


Gradients = tuple[nnx.State, Metrics]


class StepFunction(Protocol):
  """A compiled step."""

  def __call__(
    self, state: TrainState, batch: Batch, total_steps: jax.Array
  ) -> tuple[TrainState, Metrics]: ...

  def lower(self, *arguments: Any) -> jax.stages.Lowered: ...


def initial_state(
  stage: Stage, config: Config, start: Start | None = None
) -> tuple[nnx.GraphDef, TrainState]:
  """Draws the initial weights, or takes those of `start`; traceable."""
  key = jax.random.fold_in(jax.random.key(config.train.seed), 0)
  model = stage.init(key)
  if start is not None:
    apply_start(model, start)
  graph, params = nnx.split(model)
  opt_state = make_optimizer(config.optimizer).init(params)
  ema = jax.tree.map(jnp.copy, params)
  start_step, norm = jnp.zeros((), jnp.int32), jnp.zeros(())
  return graph, TrainState(start_step, params, ema, opt_state, norm)


def abstract_state(
  stage: Stage, config: Config, mesh: Mesh
) -> tuple[nnx.GraphDef, TrainState]:
  """Shapes and shardings of the state, with nothing allocated."""
  graphs = []

  def build() -> TrainState:
    graph, state = initial_state(stage, config)
    graphs.append(graph)
    return state

  shapes = jax.eval_shape(build)
  state = jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=sharding
    ),
    shapes,
    weight_shardings(mesh, shapes, config.mesh.rules),
  )
  return graphs[0], state


def is_spike(
  loss: jax.Array, norm: jax.Array, state: TrainState, factor: float
) -> jax.Array:
  """Whether a step is not to be trusted: bool scalar.

  Args:
    loss: of the step.
    norm: of its gradient.
    state: before the step.
    factor: times the usual norm that are too much, once that is known; 0 for none.
  """
  broken = ~(jnp.isfinite(loss) & jnp.isfinite(norm))
  if factor == 0:
    return broken
  known = state.step >= NORM_STEPS
  return broken | (known & (norm > factor * state.usual_norm))


def make_step(
  stage: Stage,
  config: Config,
  mesh: Mesh,
  abstract: tuple[nnx.GraphDef, TrainState] | None = None,
) -> StepFunction:
  """Compiles the step `(state, batch, total_steps) -> (state, metrics)`.

  Every draw of step k comes from fold_in(fold_in(key(seed), 1), k), so that a restarted
  run draws the same. The state is donated.

  Args:
    stage: model and loss.
    config: of the run.
    mesh: that it runs on.
    abstract: what `abstract_state` gives for these, if that is there already; of a
      large model it takes seconds.

  Raises:
    ValueError: the batch cannot be split into the micro-batches asked for.
  """
  optimizer = make_optimizer(config.optimizer)
  graph, shapes = abstract or abstract_state(stage, config, mesh)
  shardings = jax.tree.map(lambda leaf: leaf.sharding, shapes)
  parts = config.optimizer.accumulate
  if config.data.batch_size % parts:
    raise ValueError(
      f'config.optimizer.accumulate is {parts}; expected a divisor of'
      f' config.data.batch_size, {config.data.batch_size}.'
    )
  root = jax.random.fold_in(jax.random.key(config.train.seed), 1)

  def loss(
    params: nnx.State, batch: Batch, key: jax.Array
  ) -> tuple[jax.Array, Metrics]:
    return stage.loss(nnx.merge(graph, params), batch, key)

  def gradient(params: nnx.State, batch: Batch, key: jax.Array) -> Gradients:
    (value, metrics), grads = jax.value_and_grad(loss, has_aux=True)(params, batch, key)
    return grads, {'loss': value, **metrics}

  def accumulated(params: nnx.State, batch: Batch, key: jax.Array) -> Gradients:
    if parts == 1:
      return gradient(params, batch, key)
    # Strided, so that each part keeps its place on the devices.
    micro = {
      name: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1)
      for name, x in batch.items()
    }

    def body(total: Gradients, part: Any) -> tuple[Gradients, None]:
      index, piece = part
      result = gradient(params, piece, jax.random.fold_in(key, index))
      return jax.tree.map(jnp.add, total, result), None

    first = jax.tree.map(lambda x: x[0], micro)
    shape = jax.eval_shape(gradient, params, first, key)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shape)
    total, _ = jax.lax.scan(body, zeros, (jnp.arange(parts), micro))
    return jax.tree.map(lambda x: x / parts, total)

  def step(
    state: TrainState, batch: Batch, total_steps: jax.Array
  ) -> tuple[TrainState, Metrics]:
    key = jax.random.fold_in(root, state.step)
    with laid_out(mesh, config.mesh.rules):
      grads, metrics = accumulated(state.params, batch, key)
    # Each device gets the sum of its own part alone.
    grads = jax.lax.with_sharding_constraint(grads, shardings.params)
    norm = optax.tree.norm(grads)
    rate = learning_rate(config.optimizer, state.step, total_steps)
    spike = is_spike(metrics['loss'], norm, state, config.train.spike)

    def update(state: TrainState) -> TrainState:
      updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
      params = jax.tree.map(lambda p, u: p - rate * u, state.params, updates)
      # Early on the average follows closely, so that it does not remember the start.
      decay = jnp.minimum(config.optimizer.ema, (1 + state.step) / (10 + state.step))
      ema = jax.tree.map(lambda e, p: e + (1 - decay) * (p - e), state.ema, params)
      share = jnp.maximum(1 / (1 + state.step), 1 / NORM_STEPS)
      usual = state.usual_norm + share * (norm - state.usual_norm)
      return TrainState(state.step, params, ema, opt_state, usual)

    if config.train.on_spike == 'skip':
      state = jax.lax.cond(spike, lambda state: state, update, state)
    else:
      state = update(state)
    metrics |= {
      'gradient_norm': norm,
      'learning_rate': rate,
      'spike': spike.astype(jnp.float32),
    }
    return dataclasses.replace(state, step=state.step + 1), metrics

  return jax.jit(
    step,
    in_shardings=(
      shardings,
      batch_sharding(mesh, config.mesh.rules),
      replicated(mesh),
    ),
    out_shardings=(shardings, replicated(mesh)),
    donate_argnums=0,
    compiler_options=compiler_options(config.mesh, mesh),
  )
