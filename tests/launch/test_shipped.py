"""The order of trainings of the shipped model, and how they end; with stand-ins."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import time

import pytest

SCRIPT = pathlib.Path(__file__).parents[2] / 'launch' / 'shipped.sh'

# A training takes a second, saves when it is told to end, and may fail.
COMMAND = """#!/usr/bin/env bash
log() { echo "$1 $name" >>"$LOG"; }
verb=$1 name=$1
while (($#)); do
  [[ $verb == train && $1 == --workdir ]] && workdir=$2 name=${2##*/}
  shift
done
trap 'log saved; exit 75' TERM
log begun
[[ -n ${workdir-} ]] && for _ in {1..10}; do sleep 0.1; done
[[ $name == "$FAILING" ]] && exit 3
[[ -n ${workdir-} ]] && mkdir -p "$workdir" && touch "$workdir/finished"
log done
"""


@pytest.fixture
def start(tmp_path):
  command = tmp_path / 'command'
  command.write_text(COMMAND)
  command.chmod(0o755)

  def run(failing='') -> subprocess.Popen[str]:
    return subprocess.Popen(
      ['bash', str(SCRIPT), '--out', str(tmp_path / 'out')],
      env={
        **os.environ,
        'COMPOSER_JAX': str(command),
        'LOG': str(tmp_path / 'log'),
        'FAILING': failing,
      },
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )

  return run


def events(tmp_path):
  return [tuple(line.split()) for line in (tmp_path / 'log').read_text().splitlines()]


def test_a_stage_begins_when_what_it_needs_is_done(start, tmp_path):
  process = start()
  output, _ = process.communicate(timeout=60)
  assert process.returncode == 0, output
  order = {event: place for place, event in enumerate(events(tmp_path))}
  for after in ('base', 'prior'):
    assert order['begun', after] > order['done', 'encoder']
  for stage in ('base', 'prior', 'upsampler', 'upsampler128'):
    assert order['begun', 'export'] > order['done', stage]


def test_what_fails_ends_the_rest_which_saves(start, tmp_path):
  process = start(failing='encoder')
  output, _ = process.communicate(timeout=60)
  assert process.returncode == 1
  assert 'encoder ended with status 3' in output
  seen = events(tmp_path)
  assert ('begun', 'base') not in seen
  for stage in ('upsampler', 'upsampler128'):
    assert ('saved', stage) in seen or ('done', stage) in seen


def test_an_end_from_outside_is_passed_on(start, tmp_path):
  process = start()
  deadline = time.monotonic() + 30
  log = tmp_path / 'log'
  while not log.exists() or ('begun', 'encoder') not in events(tmp_path):
    assert time.monotonic() < deadline
    time.sleep(0.02)
  process.send_signal(signal.SIGTERM)
  process.communicate(timeout=60)
  assert process.returncode == 143
  assert ('saved', 'encoder') in events(tmp_path)


def test_the_script_passes_shellcheck(shellcheck):
  shellcheck(SCRIPT.read_text())
