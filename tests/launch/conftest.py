from __future__ import annotations

import pathlib
import stat
import subprocess
import sys

import pytest


@pytest.fixture
def shellcheck(tmp_path):
  """Checks the text of a shell script; shows what is wrong with it."""
  program = pathlib.Path(sys.executable).with_name('shellcheck')

  def check(text):
    path = tmp_path / 'checked.sh'
    path.write_text(text)
    done = subprocess.run([program, path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout

  return check


@pytest.fixture
def programs(tmp_path):
  """Puts shell scripts on the PATH; a function that returns the environment for it."""

  def put(**scripts):
    folder = tmp_path / 'programs'
    folder.mkdir()
    for name, text in scripts.items():
      path = folder / name
      path.write_text(f'#!/usr/bin/env bash\n{text}')
      path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return {'PATH': f'{folder}:/usr/bin:/bin', 'FOLDER': str(tmp_path)}

  return put
