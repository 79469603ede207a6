from __future__ import annotations

import multiprocessing
import re
import time

import pytest

from composer_jax.files import alone, read_json, write_json, write_text
from tests.held import held


def test_what_was_written_comes_back(tmp_path):
  value = {'name': 'café', 'sizes': [1, 2]}
  write_json(tmp_path / 'a.json', value)
  assert read_json(tmp_path / 'a.json', ['name'], 'Do it again.') == value
  assert [path.name for path in tmp_path.iterdir()] == ['a.json']


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
  path = tmp_path / 'a.txt'
  write_text(path, 'old')
  with pytest.raises(UnicodeEncodeError):
    write_text(path, 'a lone surrogate: \udcff')
  assert path.read_text() == 'old'


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (b'{"name": "cut o', 'is damaged: Unterminated string'),
    (b'\xff\xfe', 'is damaged: .*utf-8'),
    (b'[]', 'is damaged: not an object of fields'),
    (b'{}', "is damaged: it has no 'name'"),
  ],
)
def test_a_damaged_file_is_named_with_what_to_do(tmp_path, content, message):
  path = tmp_path / 'a.json'
  path.write_bytes(content)
  with pytest.raises(ValueError, match=f'^{re.escape(str(path))} {message}.*Redo it.$'):
    read_json(path, ['name'], 'Redo it.')


def test_a_missing_file_is_named_with_what_to_do(tmp_path):
  with pytest.raises(FileNotFoundError, match=r'a.json is missing. Redo it.'):
    read_json(tmp_path / 'a.json', [], 'Redo it.')


def test_a_folder_is_held_until_its_process_has_ended(tmp_path):
  out = tmp_path / 'out'
  refused = pytest.raises(RuntimeError, match=f'a training runs in {out} already;')
  with held(out) as holder:
    with refused, alone(out, 'a training'):
      pass
    with alone(tmp_path / 'other', 'a training'):
      pass
    holder.kill()
    holder.wait()
    with alone(out, 'a training'):
      pass


@pytest.mark.filterwarnings('ignore:os.fork')
def test_what_a_process_forks_does_not_hold_its_folder(tmp_path):
  with alone(tmp_path, 'a training'):
    left = multiprocessing.get_context('fork').Process(target=time.sleep, args=(60,))
    left.start()
  try:
    with held(tmp_path):
      assert left.is_alive()
  finally:
    left.kill()
