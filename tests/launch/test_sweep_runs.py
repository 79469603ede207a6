from __future__ import annotations

import json
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from launch.sweep import Unit
from launch.sweep_runs import Runs, state

ROOT = pathlib.Path(__file__).parents[2]
PROGRAM = """
import pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
wish = (folder.parent / f'{folder.name}.wish').read_text()
with (folder.parent / 'order').open('a') as file:
  file.write(f'{folder.name} ')
if wish == 'fail':
  sys.exit('it looked around\\nthis one cannot\\n')
if wish == 'wait':
  def save(*_):
    (folder / 'saved').touch()
    sys.exit(75)
  signal.signal(signal.SIGTERM, save)
  (folder / 'ready').touch()
  time.sleep(60)
"""
SCRIPT = """
import pathlib, sys
from launch.local import LocalFleet
from launch.supervisor import Supervisor
from launch.sweep import Unit
from launch.sweep_runs import Runs

out, parallel = pathlib.Path(sys.argv[1]), int(sys.argv[2])

def start(unit, folder):
  command = [sys.executable, str(out / 'program.py'), str(folder)]
  fleet = LocalFleet(command, 1, None, 'cpu', folder / 'logs', {}, False)
  return Supervisor(fleet, 0, 20, terminal=False)

units = [Unit(name, {'a': name}, (f'a={name}',)) for name in sys.argv[3:]]
print('complete' if Runs(units, out, start, parallel).run() else 'stopped')
"""


@pytest.fixture
def launch(tmp_path):
  """Starts runs in a process of their own; what each does is its wish."""
  (tmp_path / 'program.py').write_text(textwrap.dedent(PROGRAM))

  def start(parallel=1, **wishes):
    for name, wish in wishes.items():
      (tmp_path / f'{name}.wish').write_text(wish)
    return subprocess.Popen(
      [sys.executable, '-c', SCRIPT, str(tmp_path), str(parallel), *wishes],
      cwd=ROOT,
      stdout=subprocess.PIPE,
      text=True,
    )

  return start


def states(tmp_path, names='abcd'):
  return [state(tmp_path / name) for name in names]


def order(tmp_path):
  return (tmp_path / 'order').read_text().split()


def test_one_that_fails_does_not_stop_the_rest_and_is_tried_again(launch, tmp_path):
  wishes = dict(a='go', b='fail', c='go')
  out, _ = launch(**wishes).communicate()
  assert states(tmp_path, 'abc') == ['finished', 'failed', 'finished']
  assert out.splitlines()[-1] == 'complete'
  assert 'b: failed: this one cannot\n' in out
  kept = json.loads((tmp_path / 'b' / 'unit.json').read_text())
  assert 'this one cannot' in kept['error']
  assert kept['overrides'] == ['a=b']
  out, _ = launch(**wishes | {'b': 'go'}).communicate()
  assert states(tmp_path, 'abc') == ['finished'] * 3
  assert '2 of 3 have finished.' in out
  assert order(tmp_path) == ['a', 'b', 'c', 'b']


def ready(tmp_path, *names):
  deadline = time.monotonic() + 20
  while not all((tmp_path / name / 'ready').exists() for name in names):
    assert time.monotonic() < deadline
    time.sleep(0.02)


def test_stopped_it_saves_starts_no_more_and_goes_on_later(launch, tmp_path):
  wishes = dict(a='go', b='wait', c='wait', d='go')
  running = launch(2, **wishes)
  ready(tmp_path, 'b', 'c')
  running.send_signal(signal.SIGTERM)
  out, _ = running.communicate(timeout=20)
  assert out.splitlines()[-1] == 'stopped'
  assert states(tmp_path) == ['finished', 'stopped', 'stopped', 'missing']
  assert (tmp_path / 'b' / 'saved').exists() and (tmp_path / 'c' / 'saved').exists()
  launch(2, **dict.fromkeys('abcd', 'go')).communicate()
  assert states(tmp_path) == ['finished'] * 4
  assert sorted(order(tmp_path)) == sorted('abcbcd')


def test_one_that_was_killed_outright_is_run_again(launch, tmp_path):
  running = launch(a='wait')
  ready(tmp_path, 'a')
  assert state(tmp_path / 'a') == 'running'
  running.kill()
  running.communicate()
  launch(a='go').communicate()
  assert state(tmp_path / 'a') == 'finished'


def test_what_training_says_itself_counts(tmp_path):
  assert state(tmp_path) == 'missing'
  (tmp_path / 'unit.json').write_text('{"state": "running"}')
  (tmp_path / 'finished').touch()
  assert state(tmp_path) == 'finished'


def test_one_that_cannot_be_started_is_a_failure_of_its_own(tmp_path, capsys):
  def start(unit, folder):
    raise ValueError('topology is none')

  units = [Unit(name, {}, ()) for name in 'ab']
  assert Runs(units, tmp_path, start).run()
  assert states(tmp_path, 'ab') == ['failed', 'failed']
  assert 'a: failed: topology is none' in capsys.readouterr().out
  with pytest.raises(ValueError, match='--parallel is 0'):
    Runs(units, tmp_path, start, 0)
