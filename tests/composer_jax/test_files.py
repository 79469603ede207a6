from __future__ import annotations

import re

import pytest

from composer_jax.files import read_json, write_json, write_text


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
