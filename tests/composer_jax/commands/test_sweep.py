from __future__ import annotations

import json
import pathlib
import re
import shlex

import pytest

from composer_jax import cli, config_files
from composer_jax.commands.sweep import EPILOG
from tests.held import held

SWEEP = """
def get_config():
  return {
    'config': 'configs/demo/base.py',
    'overrides': {'train.steps': 3, 'data.path': 'nowhere'},
    'grid': {'train.seed': [1, 2]},
  }
"""


@pytest.fixture
def sweep(tmp_path):
  path = tmp_path / 'sweep.py'
  path.write_text(SWEEP)
  return path


def test_other_targets_have_a_job_for_each_run(tmp_path, sweep, capsys, monkeypatch):
  monkeypatch.chdir(tmp_path)
  out = pathlib.Path('runs', 'my-sweep')
  words = ['--topology=gpu:1x2', '--partition=a100', '--workdir=/shared/w']
  given = ['sweep', f'--config={sweep}', f'--out={out}', '--target=slurm', *words]
  assert cli.main([*given, '--config.data.path=/shared/d']) == 0
  for seed, name in ((1, '000-seed-1'), (2, '001-seed-2')):
    script = (out / name / f'my-sweep-{name[:3]}.sbatch').read_text()
    assert f'--workdir=/shared/w/{name} ' in script
    assert f'--config.train.seed={seed} ' in script
    assert '--partition=a100\n' in script
    resolved = config_files.load(out / name / 'resolved.json')
    assert (resolved.train.seed, resolved.train.steps) == (seed, 3)
    assert resolved.data.path == '/shared/d'
  started = f'sbatch {out}/000-seed-1/my-sweep-000.sbatch'
  assert started in capsys.readouterr().out


def test_a_slip_in_one_run_is_found_before_any_starts(tmp_path, sweep, capsys):
  sweep.write_text(SWEEP.replace('[1, 2]', "[1, 'two']"))
  out = tmp_path / 'out'
  assert cli.main(['sweep', f'--config={sweep}', f'--out={out}']) == 1
  assert 'seed' in capsys.readouterr().err
  assert not out.exists()


def test_runs_that_fail_are_tried_each_and_then_told(tmp_path, sweep, capsys):
  # Without data; but each has been tried, has its log, and can be retried.
  out = tmp_path / 'out'
  given = ['sweep', f'--config={sweep}', f'--out={out}', '--max-restarts=0']
  assert cli.main([*given, f'--config.data.path={tmp_path / "absent"}']) == 1
  output = capsys.readouterr()
  assert '2 of 2 runs failed' in output.err
  assert output.out.count('failed') >= 2
  for name in ('000-seed-1', '001-seed-2'):
    kept = json.loads((out / name / 'unit.json').read_text())
    assert kept['state'] == 'failed'
    assert 'exit code' in kept['error']
    assert (out / name / 'logs' / 'process-0.log').exists()
  rows = json.loads((out / 'comparison.json').read_text())
  assert [row['values'] for row in rows] == [{'train.seed': 1}, {'train.seed': 2}]


def test_a_folder_holds_one_sweep(tmp_path, sweep, capsys):
  out = tmp_path / 'out'
  given = ['sweep', f'--config={sweep}', f'--out={out}', '--target=slurm']
  assert cli.main([*given, '--topology=gpu:1x1']) == 0
  assert cli.main([*given, '--topology=gpu:1x1', '--config.train.steps=9']) == 1
  assert 'holds another sweep: run 0' in capsys.readouterr().err


def test_runs_elsewhere_can_be_compared_here(tmp_path, sweep, capsys):
  out = tmp_path / 'out'
  for name, loss in (('000-seed-1', 2.0), ('001-seed-2', 1.0)):
    (out / name).mkdir(parents=True)
    lines = [json.dumps({'step': s, 'loss': loss / s}) + '\n' for s in (1, 2, 3)]
    (out / name / 'metrics.jsonl').write_text(''.join(lines))
    (out / name / 'finished').touch()
  assert cli.main(['sweep', f'--config={sweep}', f'--out={out}', '--compare']) == 0
  lines = capsys.readouterr().out.splitlines()
  assert [line.split()[:3] for line in lines[1:]] == [
    ['001', '2', 'finished'],
    ['000', '1', 'finished'],
  ]
  assert (out / 'comparison.png').stat().st_size > 1000
  sweep.write_text(SWEEP.replace("'grid'", "'metric': 'lost', 'grid'"))
  assert cli.main(['sweep', f'--config={sweep}', f'--out={out}', '--compare']) == 1
  refusal = capsys.readouterr().err
  assert "sweep.py: metric is 'lost', which no run in" in refusal
  assert refusal.endswith('expected one of loss.\n')


def test_what_is_no_folder_of_a_sweep_is_not_compared(tmp_path, sweep, capsys):
  out = tmp_path / 'out'
  given = ['sweep', f'--config={sweep}', f'--out={out}', '--compare']
  assert cli.main(given) == 1
  assert f'--out={out}: there is no such folder' in capsys.readouterr().err
  assert not out.exists()
  out.mkdir()  # None has measured anything yet.
  assert cli.main(given) == 0
  assert capsys.readouterr().out.count('missing') == 2


def test_the_data_must_be_named_before_anything_runs(tmp_path, sweep, capsys):
  sweep.write_text(SWEEP.replace("'nowhere'", "''"))
  assert cli.main(['sweep', f'--config={sweep}', f'--out={tmp_path / "out"}']) == 1
  assert 'config.data.path is empty;' in capsys.readouterr().err
  assert not (tmp_path / 'out').exists()


def test_a_second_sweep_waits_but_can_be_compared(tmp_path, sweep, capsys):
  out = tmp_path / 'out'
  given = ['sweep', f'--config={sweep}', f'--out={out}']
  with held(out):
    assert cli.main(given) == 1
    assert f'a sweep runs in {out} already;' in capsys.readouterr().err
    assert not (out / 'sweep.json').exists()
    assert cli.main([*given, '--compare']) == 0


def test_jobs_of_different_folders_have_different_names(tmp_path, sweep, monkeypatch):
  monkeypatch.chdir(tmp_path)
  outs = [
    'runs/lr',
    'lr',
    'a/lr',
    'b/lr',
    'runs/a/lr',
    'a-lr',
    'runs/a-lr',
    'runs/a_lr',
  ]
  outs += [
    '../lr',
    '.',
    'runs',
    'runs/2024',
    'runs/sweep-2024',
    'runs/проба',
    'runs/тест',
  ]
  outs += [f'{tmp_path}/{x}/lr' for x in 'xy'] + [f'runs/{"n" * 40}{x}' for x in 'xy']
  made = []
  for out in outs:
    words = ['--target=slurm', '--topology=gpu:1x1', f'--out={out}']
    assert cli.main(['sweep', f'--config={sweep}', *words]) == 0
    job = json.loads((pathlib.Path(out) / '000-seed-1' / 'job.json').read_text())
    assert job['workdir'] == f'runs/{job["name"].removesuffix("-000")}/000-seed-1'
    made.append(job['name'])
  assert made[0] == 'lr-000'
  assert re.fullmatch('a-lr-[0-9a-f]{8}-000', made[2])
  assert len(set(made)) == len(outs)


def test_the_examples_work_one_after_the_other(tmp_path, capsys, monkeypatch):
  monkeypatch.chdir(tmp_path)
  lines = EPILOG.partition('examples:')[2].replace('\\\n', '').splitlines()
  first, second, third = [shlex.split(line)[1:] for line in lines if line]
  # Its runs would take minutes; what it writes before them is the same.
  assert cli.main([*first, '--target=slurm', '--topology=gpu:1x1']) == 0
  assert cli.main(second) == 0
  assert cli.main(third) == 0


def test_help_has_an_example_and_the_options_of_the_target(capsys):
  with pytest.raises(SystemExit):
    cli.main(['sweep', '--target=gke', '--help'])
  shown = capsys.readouterr().out
  assert '--service-account' in shown and 'configs/sweeps/demo_grid.py' in shown
