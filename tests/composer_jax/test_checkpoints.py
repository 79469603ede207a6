from __future__ import annotations

import subprocess
import sys

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


def damage(folder, how):
  """Spoils the largest file of the weights of a checkpoint, or what goes with them."""
  if how == 'no position':
    (folder / 'data' / 'metadata').write_text('{}')
    return
  data = [path for path in (folder / 'state').rglob('*') if path.is_file()]
  path = max(data, key=lambda path: path.stat().st_size)
  content = bytearray(path.read_bytes())
  if how == 'cut off':
    content = content[: len(content) // 2]
  elif how == 'other bytes':
    middle = len(content) // 2
    content[middle : middle + 64] = bytes(64)
  path.unlink()
  if how != 'missing':
    path.write_bytes(content)


@pytest.mark.parametrize('how', ['cut off', 'other bytes', 'missing', 'no position'])
def test_a_damaged_checkpoint_is_set_aside_for_the_one_before(tmp_path, how):
  rng = np.random.default_rng(0)
  state = {'weights': jnp.asarray(rng.normal(size=(200, 200)))}
  checkpoints = Checkpoints(tmp_path, 3)
  for step in (1, 2, 3):
    checkpoints.save(step, jax.tree.map(lambda x, s=step: x + s, state), EMA, {})
  checkpoints.close()
  for step in (2, 3):
    damage(tmp_path / 'checkpoints' / str(step), how)
  checkpoints = Checkpoints(tmp_path, 3)
  with pytest.warns(UserWarning, match='checkpoints/3 is damaged and now in .* before'):
    step, found, _, _ = checkpoints.restore_newest(shapes(state), shapes(EMA))
  assert step == 1
  np.testing.assert_array_equal(found['weights'], state['weights'] + 1)
  assert {p.name for p in (tmp_path / 'damaged-checkpoints').iterdir()} == {'2', '3'}
  checkpoints.save(3, state, EMA, {})
  checkpoints.close()
  assert newest(tmp_path) == 3


def test_what_is_still_being_saved_is_the_newest(tmp_path):
  state = {'weights': jnp.ones((1000, 1000))}
  checkpoints = Checkpoints(tmp_path, 3)
  checkpoints.save(1, state, EMA, {})
  step, _, _, _ = checkpoints.restore_newest(shapes(state), shapes(EMA))
  assert step == 1
  checkpoints.close()


def test_nothing_is_set_aside_where_no_checkpoint_can_be_read(tmp_path):
  saved(tmp_path, steps=(1, 2))
  checkpoints = Checkpoints(tmp_path, 2)
  with pytest.raises(ValueError, match='shape'):
    checkpoints.restore_newest(shapes({**STATE, 'weights': jnp.ones(3)}), shapes(EMA))
  checkpoints.close()
  assert newest(tmp_path) == 2
  assert not (tmp_path / 'damaged-checkpoints').exists()


FULL = """
import pathlib, resource, signal, sys
import jax.numpy as jnp
import numpy as np
from composer_jax.checkpoints import Checkpoints

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
state = {'x': jnp.asarray(np.random.default_rng(0).normal(size=(512, 512)))}
checkpoints = Checkpoints(pathlib.Path(sys.argv[1]), 2)
checkpoints.save(1, state, state, {})
checkpoints.wait()
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
checkpoints.save(2, state, state, {})
checkpoints.close()
"""


def test_where_no_more_can_be_written_the_last_good_checkpoint_stays(tmp_path):
  code = [sys.executable, '-c', FULL, str(tmp_path)]
  done = subprocess.run(code, capture_output=True, text=True)
  assert done.returncode == 1
  assert f'OSError: A checkpoint cannot be written to {tmp_path}' in done.stderr
  assert newest(tmp_path) == 1
  like = {'x': jax.ShapeDtypeStruct((512, 512), np.float32)}
  checkpoints = Checkpoints(tmp_path, 2)
  step, state, _, _ = checkpoints.restore_newest(like, like)
  assert step == 1
  assert np.isfinite(state['x']).all()
  checkpoints.save(2, state, state, {})
  checkpoints.close()
  assert newest(tmp_path) == 2
