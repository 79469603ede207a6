from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys

import pytest

import composer_jax
from composer_jax import cli

ROOT = pathlib.Path(composer_jax.__file__).parent.parent


def run(*arguments):
  """Runs Python as its own process, from the repository root."""
  environment = os.environ | {'PYTHONPATH': str(ROOT)}
  return subprocess.run(
    [sys.executable, *arguments], env=environment, capture_output=True, text=True
  )


def test_help_lists_each_verb_with_what_it_does(capsys):
  assert cli.main(['--help']) == 0
  output = capsys.readouterr()
  files = (ROOT / 'composer_jax' / 'commands').glob('*.py')
  modules = {path.stem for path in files if 'def main(' in path.read_text('utf-8')}
  assert {cli.MODULES.get(verb, verb) for verb in cli.VERBS} == modules
  for verb, what in cli.VERBS.items():
    assert re.search(rf'^  {verb} +{re.escape(what)}$', output.out, re.MULTILINE)
  assert output.err == ''


@pytest.mark.parametrize('arguments', [['--help'], ['--version'], ['wrong'], []])
def test_what_needs_no_model_imports_none_of_the_slow_packages(arguments):
  code = (
    'import sys; from composer_jax.cli import main;'
    f' main({arguments!r}); print(*sys.modules, file=sys.stderr)'
  )
  done = run('-c', code)
  assert done.returncode == 0, done.stderr
  loaded = set(done.stderr.splitlines()[-1].split())
  assert 'composer_jax.cli' in loaded
  slow = {'jax', 'flax', 'numpy', 'scipy', 'PIL', 'tensorflow_datasets'}
  assert loaded & slow == set()


def test_the_package_can_be_run():
  done = run('-m', 'composer_jax', '--version')
  assert (done.returncode, done.stdout) == (0, f'{composer_jax.__version__}\n')
  done = run('-m', 'composer_jax', 'paint')
  assert (done.returncode, done.stdout) == (2, '')
  assert "'paint'" in done.stderr


def test_the_version_is_a_release_number(capsys):
  assert cli.main(['--version']) == 0
  assert re.fullmatch(r'\d+\.\d+\.\d+\n', capsys.readouterr().out)


def test_an_unknown_verb_is_refused_with_those_that_there_are(capsys):
  assert cli.main(['paint', '--out', 'x']) == 2
  output = capsys.readouterr()
  assert output.out == ''
  assert output.err.startswith("composer-jax: unknown verb 'paint'")
  assert all(verb in output.err for verb in cli.VERBS)


def test_nothing_asked_is_an_error_that_shows_the_usage(capsys):
  assert cli.main([]) == 2
  shown = capsys.readouterr().out
  assert all(verb in shown for verb in cli.VERBS)


def test_arguments_come_from_the_process_where_none_are_given(capsys, monkeypatch):
  monkeypatch.setattr(sys, 'argv', ['composer-jax', '--version'])
  assert cli.main() == 0
  assert capsys.readouterr().out == f'{composer_jax.__version__}\n'


@pytest.mark.parametrize('verb', list(cli.VERBS))
def test_each_verb_has_help_of_its_own(capsys, verb):
  with pytest.raises(SystemExit) as stop:
    cli.main([verb, '--help'])
  assert stop.value.code == 0
  assert capsys.readouterr().out.startswith(f'usage: composer-jax {verb} ')


@pytest.mark.parametrize(
  'verb', [v for v in cli.VERBS if v not in ('train', 'describe')]
)
def test_each_verb_refuses_flags_that_it_lacks(capsys, verb):
  with pytest.raises(SystemExit) as stop:
    cli.main([verb, '--no-such-flag'])
  assert stop.value.code == 2
  output = capsys.readouterr()
  assert output.out == ''
  assert output.err.startswith(f'usage: composer-jax {verb} ')


@pytest.mark.parametrize(
  'arguments',
  [
    ['prepare', '--source', 'folder:{absent}', '--out', '{out}'],
    ['decompose', '{absent}', '--out', '{out}'],
    ['decompose', '{text}', '--out', '{out}'],
    ['import', '--kind', 'clip', '--from', '{absent}', '--out', '{out}'],
    ['train', '--workdir', '{out}', '--config', '{absent}'],
    ['train', '--workdir', '{out}', '--config', 'configs/demo/base.py', '--no-such'],
    ['train', '--workdir', '{out}', '--config', 'configs/demo/base.py'],
    ['launch', 'slurm', '--name=a', '--topology=gpu:1x1', '--config={absent}'],
    ['launch', 'slurm', '--name=a', '--topology=gpu', '--config=configs/demo/base.py'],
    ['sweep', '--config', '{absent}', '--out', '{out}'],
    ['compose', '--model', '{absent}', '--out', '{out}.png'],
    ['report', '--model', '{absent}', '--data', '{absent}', '--out', '{out}'],
  ],
  ids=' '.join,
)
def test_what_goes_wrong_is_said_in_one_line_with_the_verb(capsys, tmp_path, arguments):
  text = tmp_path / 'text.png'
  text.write_text('This is no image.\n' * 9)
  paths = {'absent': tmp_path / 'absent', 'text': text, 'out': tmp_path / 'out'}
  verb, *rest = (argument.format(**paths) for argument in arguments)
  assert cli.main([verb, *rest]) == 1
  output = capsys.readouterr()
  assert output.out == ''
  assert re.fullmatch(rf'composer-jax {verb}: \S.*\n', output.err)


def test_an_error_of_the_program_itself_is_not_hidden(monkeypatch):
  from composer_jax.commands import report

  def broken(argv):
    raise TypeError('a slip')

  monkeypatch.setattr(report, 'main', broken)
  with pytest.raises(TypeError, match='a slip'):
    cli.main(['report'])
