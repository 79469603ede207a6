from __future__ import annotations

import dataclasses
import json
import os
import signal
import time

import jax
import numpy as np
import pytest

from composer_jax.checkpoints import newest
from composer_jax.training import loop
from tests.composer_jax.training.test_step import LeastSquares


class Colours(LeastSquares):
  """A stage that is compiled in no time: green and blue of images from all three."""

  def loss(self, model, batch, key):
    colours = batch['image'].astype('float32').mean((1, 2)) / 255
    return super().loss(model, {'x': colours, 'y': colours[:, 1:]}, key)


@pytest.fixture(scope='session')
def source_of(source_of):
  """Real batches, but that stage."""
  return lambda config: (Colours(noisy=True), source_of(config)[1])


class Interrupting:
  """Batches that do something when a certain one is asked for."""

  def __init__(self, source, number, action):
    self._source, self._number, self._action = source, number, action
    self._count = 0
    self.get_state, self.set_state = source.get_state, source.set_state

  def __next__(self):
    self._count += 1
    batch = next(self._source)
    return self._action(batch) if self._count == self._number else batch


def losses(workdir):
  rows = [json.loads(line) for line in (workdir / 'metrics.jsonl').open()]
  return {row['step']: row['loss'] for row in rows}


@pytest.fixture(scope='session')
def unbroken(make_config, source_of, tmp_path_factory):
  config = make_config()
  workdir = tmp_path_factory.mktemp('unbroken')
  run = loop.train(config, *source_of(config), workdir)
  assert run == loop.Run(6, finished=True)
  return workdir


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_saves_and_the_next_run_goes_on_bit_for_bit(
  make_config, source_of, unbroken, tmp_path, number
):
  def stop(batch):
    os.kill(os.getpid(), number)
    return batch

  config = make_config()
  stage, source = source_of(config)
  run = loop.train(config, stage, Interrupting(source, 4, stop), tmp_path)
  assert run == loop.Run(3, finished=False)
  assert newest(tmp_path) == 3
  stage, source = source_of(config)
  assert loop.train(config, stage, source, tmp_path) == loop.Run(6, finished=True)
  assert losses(tmp_path) == losses(unbroken)


def test_the_handlers_of_before_are_put_back(make_config, source_of, tmp_path):
  before = signal.getsignal(signal.SIGTERM)
  config = make_config(train={'steps': 1})
  loop.train(config, *source_of(config), tmp_path)
  assert signal.getsignal(signal.SIGTERM) is before


def test_every_step_is_logged_with_its_speed_at_intervals(unbroken):
  rows = [json.loads(line) for line in (unbroken / 'metrics.jsonl').open()]
  assert [row['step'] for row in rows] == [1, 2, 3, 4, 5, 6]
  for row in rows:
    assert np.isfinite([row['loss'], row['gradient_norm'], row['learning_rate']]).all()
  timed = [row for row in rows if 'images_per_second' in row]
  assert [row['step'] for row in timed] == [2, 4, 6]
  for row in timed:
    assert row['model_flops_per_second'] > 0
    assert 0 < row['mfu'] < 1
    assert 0 <= row['share_waiting_for_data'] <= 1


class Marked:
  """Batches of which one is marked as bad."""

  def __init__(self, source, size, bad=4):
    self._source, self._size, self._bad = source, size, bad
    self.get_state, self.set_state = source.get_state, source.set_state

  def __next__(self):
    bad = self._source.get_state()['next_batch'] == self._bad
    return {**next(self._source), 'bad': np.full(self._size, bad)}


def spoilt_run(config, source_of, workdir, spoilt='loss'):
  """Trains with a batch, the fifth, whose loss or gradient is not finite."""
  _, source = source_of(config)

  class Spoilt(Colours):
    def loss(self, model, batch, key):
      value, metrics = super().loss(model, batch, key)
      bad = batch['bad'].any()
      if spoilt == 'loss':
        return value + jax.numpy.where(bad, jax.numpy.nan, 0.0), metrics
      # The square root has a finite value and an infinite slope at zero.
      return value + jax.numpy.sqrt(jax.numpy.where(bad, 0 * value, 1)), metrics

  marked = Marked(source, config.data.batch_size)
  return loop.train(config, Spoilt(noisy=True), marked, workdir)


@pytest.mark.parametrize('spoilt', ['loss', 'gradient_norm'])
def test_what_is_not_finite_stops_the_run_and_spares_the_last_good_checkpoint(
  make_config, source_of, tmp_path, spoilt
):
  config = make_config()
  with pytest.raises(loop.Diverged, match=r'(nan|inf).* at step 5.*Lower'):
    spoilt_run(config, source_of, tmp_path, spoilt)
  assert newest(tmp_path) == 4
  diagnostic = json.loads((tmp_path / 'diagnostic-5.json').read_text())
  assert set(diagnostic) == {'5', '6'}
  assert not np.isfinite(diagnostic['5'][spoilt])
  stage, source = source_of(config)
  assert loop.train(config, stage, source, tmp_path).finished


def test_a_step_that_is_not_finite_can_be_skipped(make_config, source_of, tmp_path):
  config = make_config(train={'on_spike': 'skip'})
  assert spoilt_run(config, source_of, tmp_path) == loop.Run(6, finished=True)
  rows = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').open()]
  assert [row['spike'] for row in rows] == [0, 0, 0, 0, 1, 0]
  assert [bool(np.isfinite(row['loss'])) for row in rows] == [True] * 4 + [False, True]


def test_a_step_that_is_not_finite_can_be_rolled_back(make_config, source_of, tmp_path):
  config = make_config(train={'on_spike': 'rollback'})
  assert spoilt_run(config, source_of, tmp_path) == loop.Run(6, finished=True)
  rows = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').open()]
  assert [row['step'] for row in rows] == [1, 2, 3, 4, 5, 6]
  assert np.isfinite([row['loss'] for row in rows]).all()
  assert rows[-1]['rollbacks'] == 1


def test_minutes_become_steps(make_config, source_of, tmp_path):
  rare = {'log_every': 1000, 'save_every': 1000}
  config = make_config(train={'minutes': 0.0001} | rare)
  run = loop.train(config, *source_of(config), tmp_path)
  kept = json.loads((tmp_path / 'budget.json').read_text())
  assert run == loop.Run(kept['steps'], finished=True)
  assert kept['minutes'] == 0.0001
  assert loop.train(config, *source_of(config), tmp_path) == run
  longer = make_config(train={'minutes': 0.0005, 'steps': 1} | rare)
  longer = dataclasses.replace(
    longer, optimizer=dataclasses.replace(longer.optimizer, cooldown=1.0)
  )
  more = loop.train(longer, *source_of(longer), tmp_path)
  assert more == loop.Run(5 * run.step, finished=True)


def test_minutes_are_kept_where_the_speed_changes(make_config, source_of, tmp_path):
  config = make_config(train={'minutes': 0.05, 'log_every': 1, 'save_every': 1000})
  config = dataclasses.replace(
    config, optimizer=dataclasses.replace(config.optimizer, cooldown=0.25)
  )
  stage, batches = source_of(config)
  begin = time.perf_counter()
  seen = []

  class Slow:
    """An input that delays every step by far more than it takes."""

    get_state, set_state = batches.get_state, batches.set_state

    def __next__(self):
      seen.append(time.perf_counter())
      time.sleep(0.1)
      return next(batches)

  run = loop.train(config, stage, Slow(), tmp_path)
  assert run.finished
  assert newest(tmp_path) == run.step
  # Three seconds hold 30 steps of a tenth; the trial knows nothing of the delay.
  assert 3 < run.step <= 33
  assert seen[-1] - begin < 60


def test_a_run_whose_minutes_are_over_still_saves_its_last_step(
  make_config, source_of, tmp_path
):
  config = make_config(train={'minutes': 0.1, 'log_every': 2, 'save_every': 1000})
  (tmp_path / 'budget.json').write_text('{"steps": 50, "minutes": 0.1, "spent": 6.0}')
  run = loop.train(config, *source_of(config), tmp_path)
  assert run == loop.Run(3, finished=True)  # One more than where this was noticed.
  assert newest(tmp_path) == 3


def test_a_trial_of_the_speed_does_not_change_the_training(
  make_config, source_of, unbroken, tmp_path
):
  config = make_config(train={'minutes': 0.02})
  run = loop.train(config, *source_of(config), tmp_path)
  mine, there = losses(tmp_path), losses(unbroken)
  both = mine.keys() & there.keys()
  assert len(both) == min(run.step, 6) >= 1
  assert {step: mine[step] for step in both} == {step: there[step] for step in both}


def test_pictures_are_drawn_at_intervals_and_at_the_end(
  make_config, source_of, tmp_path
):
  config = make_config(train={'steps': 5, 'sample_every': 2})
  seen = []

  def sampler(state, step):
    assert int(state.step) == step
    seen.append(step)
    return np.zeros((4, 4, 3), np.uint8)

  loop.train(config, *source_of(config), tmp_path, sampler)
  assert seen == [2, 4, 5]
  assert len(list((tmp_path / 'samples').glob('*.png'))) == 3


def test_only_the_newest_checkpoints_are_kept(make_config, source_of, tmp_path):
  config = make_config(train={'save_every': 1, 'keep': 2})
  loop.train(config, *source_of(config), tmp_path)
  names = [path.name for path in (tmp_path / 'checkpoints').iterdir()]
  assert sorted(name for name in names if name.isdigit()) == ['5', '6']


def test_going_on_with_other_data_is_refused(make_config, source_of, tmp_path):
  config = make_config(train={'steps': 2})
  loop.train(config, *source_of(config), tmp_path)
  other = make_config(train={'steps': 4, 'seed': 1})
  with pytest.raises(ValueError, match='saved position is for seed 0'):
    loop.train(other, *source_of(other), tmp_path)
