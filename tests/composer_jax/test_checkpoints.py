from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from composer_jax.checkpoints import Checkpoints, newest, read_average

STATE = {'weights': jnp.arange(6.0).reshape(2, 3), 'step': jnp.asarray(4, jnp.int32)}
EMA = {'weights': jnp.ones((2, 3))}


def shapes(tree):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def saved(workdir, steps=(4,), keep=2):
  checkpoints = Checkpoints(workdir, keep)
  for step in steps:
    checkpoints.save(step, STATE, EMA, {'next_batch': step})
  checkpoints.close()


def test_what_was_saved_comes_back_bit_for_bit(tmp_path):
  saved(tmp_path)
  checkpoints = Checkpoints(tmp_path, 2)
  _, state, ema, data = checkpoints.restore_newest(shapes(STATE), shapes(EMA))
  checkpoints.close()
  jax.tree.map(np.testing.assert_array_equal, (state, ema), (STATE, EMA))
  assert state['step'].dtype == jnp.int32
  assert data == {'next_batch': 4}


def test_arrays_may_change_as_soon_as_saving_has_begun(tmp_path):
  checkpoints = Checkpoints(tmp_path, 2)
  array = jnp.arange(1000.0)
  checkpoints.save(1, {'x': array}, EMA, {})
  array.delete()  # As a donated buffer is.
  checkpoints.wait()
  like = shapes({'x': jnp.zeros(1000)})
  _, state, _, _ = checkpoints.restore_newest(like, shapes(EMA))
  checkpoints.close()
  np.testing.assert_array_equal(state['x'], np.arange(1000.0))


def test_a_finished_run_is_opened_at_its_newest_step_and_left_as_it_is(tmp_path):
  saved(tmp_path, steps=(1, 2, 3), keep=2)
  before = sorted(path for path in tmp_path.rglob('*'))
  step = newest(tmp_path)
  average = read_average(tmp_path, step, shapes(EMA))
  assert step == 3
  np.testing.assert_array_equal(average['weights'], EMA['weights'])
  assert sorted(path for path in tmp_path.rglob('*')) == before


def test_a_checkpoint_that_is_still_being_written_is_not_opened(tmp_path):
  saved(tmp_path, steps=(1,))
  folder = tmp_path / 'checkpoints'
  (folder / '2.orbax-checkpoint-tmp-7' / 'ema').mkdir(parents=True)
  assert newest(tmp_path) == 1


def test_a_folder_without_checkpoints_is_one_clear_error(tmp_path):
  with pytest.raises(FileNotFoundError, match='holds no checkpoints; train there'):
    newest(tmp_path)
  Checkpoints(tmp_path, 1).close()
  with pytest.raises(FileNotFoundError, match='no finished checkpoint'):
    newest(tmp_path)
