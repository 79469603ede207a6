from __future__ import annotations

import pathlib
import shutil
import subprocess

import pytest

SCRIPT = pathlib.Path(__file__).parents[2] / 'launch' / 'chromium.sh'
APT = """echo "$@" >>"$FOLDER/asked"
if [[ $1 == install && -z ${BROKEN:-} ]]; then
  printf '#!/bin/sh\\n' >"$FOLDER/programs/chromium"
  chmod +x "$FOLDER/programs/chromium"
fi
[[ ${BROKEN:-} != "$1" ]]"""


@pytest.fixture
def run(programs, tmp_path):
  """Runs the script where only these programs are, and what it needs itself."""

  def go(user=0, broken='', **scripts):
    environment = programs(id=f'echo {user}', **scripts)
    for name in ('bash', 'chmod', 'env'):
      (tmp_path / 'programs' / name).symlink_to(shutil.which(name))
    environment |= {'PATH': str(tmp_path / 'programs'), 'BROKEN': broken}
    return subprocess.run(
      [shutil.which('bash'), SCRIPT], env=environment, capture_output=True, text=True
    )

  return go


@pytest.mark.parametrize('name', ['chromium', 'chromium-browser', 'google-chrome'])
def test_one_that_is_there_is_taken(run, tmp_path, name):
  done = run(**{name: 'true', 'apt-get': APT})
  assert done.returncode == 0
  assert done.stdout.strip() == str(tmp_path / 'programs' / name)
  assert not (tmp_path / 'asked').exists()


def test_root_gets_one_installed(run, tmp_path):
  done = run(**{'apt-get': APT})
  assert done.returncode == 0, done.stderr
  assert done.stdout.strip().endswith('/chromium')
  asked = (tmp_path / 'asked').read_text().splitlines()
  assert asked[0].startswith('update') and asked[1].endswith(' chromium')


@pytest.mark.parametrize(
  ('scripts', 'more', 'message'),
  [
    ({'apt-get': APT}, {'user': 1000}, 'apt-get install chromium'),
    ({}, {}, 'found no Chromium'),
    ({'apt-get': APT}, {'broken': 'update'}, 'apt-get cannot install chromium'),
    ({'apt-get': APT}, {'broken': 'install'}, 'apt-get cannot install chromium'),
    ({'apt-get': 'true'}, {}, 'not on the PATH'),
  ],
)
def test_without_one_it_ends_with_what_to_do(run, scripts, more, message):
  done = run(**more, **scripts)
  assert done.returncode == 1
  assert message in done.stderr


def test_the_scripts_pass_shellcheck(shellcheck):
  shellcheck(SCRIPT.read_text())
  shellcheck(SCRIPT.with_name('setup.sh').read_text())
