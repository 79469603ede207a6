from __future__ import annotations

import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]
DOCKERFILE = ROOT / 'Dockerfile'


def test_it_passes_hadolint():
  program = pathlib.Path(sys.executable).with_name('hadolint')
  done = subprocess.run([program, DOCKERFILE], capture_output=True, text=True)
  assert done.returncode == 0, done.stdout


def test_hadolint_would_notice(tmp_path):
  program = pathlib.Path(sys.executable).with_name('hadolint')
  bad = tmp_path / 'Dockerfile'
  bad.write_text('FROM python\nRUN cd /tmp && pip install jax\n')
  done = subprocess.run([program, bad], capture_output=True, text=True)
  assert done.returncode == 1
  assert 'DL3006' in done.stdout


def test_what_it_copies_is_there_and_not_ignored():
  copied = [
    name
    for line in re.findall(r'^COPY (.*) \S+$', DOCKERFILE.read_text(), re.MULTILINE)
    for name in line.split()
  ]
  kept = (ROOT / '.dockerignore').read_text().splitlines()
  assert {'requirements.lock', 'composer_jax', 'launch', 'configs'} <= set(copied)
  for name in copied:
    assert (ROOT / name).exists()
    assert f'!{name}' in kept


def test_every_installed_tree_is_copied():
  roots = re.search(r'roots = \((.*)\)', (ROOT / 'setup.py').read_text())[1]
  for name in re.findall(r"'(\w+)'", roots):
    assert f'\nCOPY {name} {name}\n' in DOCKERFILE.read_text()
