from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from composer_jax.config import DataConfig, OptimizerConfig, TrainConfig
from composer_jax.sharding.mesh import MeshConfig, make_mesh
from composer_jax.training.step import (
  NORM_STEPS,
  abstract_state,
  initial_state,
  is_spike,
  make_step,
)

LENGTH = jnp.asarray(100.0)


class Line(nnx.Module):
  def __init__(self, key, width):
    weight = jax.random.normal(key, (width, 2))
    self.weight = nnx.Param(weight, axes=('features', None))
    self.bias = nnx.Param(jnp.zeros(2))


class LeastSquares:
  """A stage whose gradient has a closed form; `noisy` adds what it draws."""

  def __init__(self, noisy=False, width=3):
    self.noisy, self.width = noisy, width

  def init(self, key):
    return Line(key, self.width)

  def loss(self, model, batch, key):
    error = batch['x'] @ model.weight[...] + model.bias[...] - batch['y']
    loss = (error**2).sum(1).mean()
    drawn = jax.random.normal(key) if self.noisy else 0.0
    return loss + drawn, {'drawn': jnp.asarray(drawn)}


@dataclasses.dataclass(frozen=True)
class Settings:
  optimizer: OptimizerConfig
  train: TrainConfig
  data: DataConfig
  mesh: MeshConfig = MeshConfig()


def settings(seed=0, **fields):
  fields = {'learning_rate': 0.1, 'warmup_steps': 1, 'clip_norm': 1e9} | fields
  return Settings(
    OptimizerConfig(**fields), TrainConfig(seed=seed), DataConfig(batch_size=8)
  )


def batch(seed=0):
  rng = np.random.default_rng(seed)
  return {
    'x': jnp.asarray(rng.normal(size=(8, 3)), jnp.float32),
    'y': jnp.asarray(rng.normal(size=(8, 2)), jnp.float32),
  }


def run(config, stage, batches):
  mesh = make_mesh(MeshConfig())
  step = make_step(stage, config, mesh)
  _, state = initial_state(stage, config)
  history = []
  for one in batches:
    state, metrics = step(state, one, LENGTH)
    history.append(jax.device_get(metrics))
  return state, history


def test_one_step_is_adam_on_the_closed_form_gradient():
  config, one = settings(), batch()
  _, before = initial_state(LeastSquares(), config)
  weight, bias = before.params['weight'][...], before.params['bias'][...]
  error = one['x'] @ weight + bias - one['y']
  grads = {'weight': 2 * one['x'].T @ error / 8, 'bias': 2 * error.mean(0)}
  after, history = run(config, LeastSquares(), [one])
  adam = optax.adam(0.1, 0.9, 0.999)
  updates, _ = adam.update(grads, adam.init(grads))
  for name, old in (('weight', weight), ('bias', bias)):
    np.testing.assert_allclose(
      after.params[name][...], old + updates[name], rtol=1e-5, atol=1e-6
    )
  norm = np.sqrt(sum((np.asarray(g) ** 2).sum() for g in grads.values()))
  assert history[0]['gradient_norm'] == pytest.approx(norm, rel=1e-5)
  assert history[0]['loss'] == pytest.approx(float((error**2).sum(1).mean()), rel=1e-5)


@pytest.mark.parametrize('parts', [2, 4])
def test_accumulated_gradients_equal_those_of_the_whole_batch(parts):
  batches = [batch(seed) for seed in range(3)]
  whole, history = run(settings(), LeastSquares(), batches)
  pieces, in_parts = run(settings(accumulate=parts), LeastSquares(), batches)
  for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(pieces), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
  losses = [[h['loss'] for h in each] for each in (history, in_parts)]
  np.testing.assert_allclose(*losses, rtol=1e-6)


def test_average_follows_closely_at_first_and_slowly_later():
  config = settings(ema=0.5)
  _, start = initial_state(LeastSquares(), config)
  average = np.asarray(start.params['bias'][...])
  step = make_step(LeastSquares(), config, make_mesh(MeshConfig()))
  state = start
  for number in range(20):
    state, _ = step(state, batch(number), LENGTH)
    decay = min(0.5, (1 + number) / (10 + number))
    average = decay * average + (1 - decay) * np.asarray(state.params['bias'][...])
    np.testing.assert_allclose(state.ema['bias'][...], average, rtol=1e-4, atol=1e-6)


def test_a_batch_that_cannot_be_split_is_refused():
  with pytest.raises(ValueError, match='accumulate is 3.* divisor .* 8'):
    make_step(LeastSquares(), settings(accumulate=3), make_mesh(MeshConfig()))


def test_each_step_draws_anew_and_the_same_seed_draws_the_same():
  batches = [batch()] * 3
  _, first = run(settings(seed=1), LeastSquares(noisy=True), batches)
  _, again = run(settings(seed=1), LeastSquares(noisy=True), batches)
  _, other = run(settings(seed=2), LeastSquares(noisy=True), batches)
  drawn = [[float(h['drawn']) for h in each] for each in (first, again, other)]
  assert drawn[0] == drawn[1]
  assert len({*drawn[0], *drawn[2]}) == 6


def test_micro_batches_draw_differently():
  _, history = run(settings(accumulate=2), LeastSquares(noisy=True), [batch()])
  key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 1), 0)
  drawn = [jax.random.normal(jax.random.fold_in(key, part)) for part in range(2)]
  assert drawn[0] != drawn[1]
  assert history[0]['drawn'] == pytest.approx(float(sum(drawn) / 2), rel=1e-6)


def test_the_state_is_donated():
  config = settings()
  step = make_step(LeastSquares(), config, make_mesh(MeshConfig()))
  _, state = initial_state(LeastSquares(), config)
  step(state, batch(), LENGTH)
  assert state.params['weight'][...].is_deleted()


def test_the_abstract_state_has_the_shapes_of_the_real_one():
  config = settings()
  _, shapes = abstract_state(LeastSquares(), config, make_mesh(MeshConfig()))
  _, state = initial_state(LeastSquares(), config)
  described = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), shapes)
  assert described == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state)


@pytest.mark.parametrize(
  ('step', 'loss', 'norm', 'factor', 'expected'),
  [
    (NORM_STEPS, 1.0, 11.0, 5.0, True),
    (NORM_STEPS, 1.0, 9.0, 5.0, False),
    (NORM_STEPS - 1, 1.0, 11.0, 5.0, False),  # What is usual is not known yet.
    (NORM_STEPS, 1.0, 1e9, 0.0, False),
    (0, float('nan'), 1.0, 0.0, True),
    (0, 1.0, float('inf'), 5.0, True),
  ],
)
def test_spikes_are_what_is_not_finite_or_many_times_the_usual_norm(
  step, loss, norm, factor, expected
):
  _, state = initial_state(LeastSquares(), settings())
  state = dataclasses.replace(
    state, step=jnp.asarray(step), usual_norm=jnp.asarray(2.0)
  )
  found = is_spike(jnp.asarray(loss), jnp.asarray(norm), state, factor)
  assert bool(found) is expected
