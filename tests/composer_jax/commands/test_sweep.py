from __future__ import annotations

import json

import pytest

from composer_jax import cli, config

SWEEP = """
def get_config():
  return {
    'config': 'configs/demo/base.py',
    'overrides': {'train.steps': 3},
    'grid': {'train.seed': [1, 2]},
  }
"""


@pytest.fixture
def sweep(tmp_path):
  path = tmp_path / 'sweep.py'
  path.write_text(SWEEP)
  return path


def test_other_targets_have_a_job_for_each_run(tmp_path, sweep, capsys):
  out = tmp_path / 'My_sweep'
  words = ['--topology=gpu:1x2', '--partition=a100', '--workdir=/shared/w']
  given = ['sweep', f'--config={sweep}', f'--out={out}', '--target=slurm', *words]
  assert cli.main([*given, '--config.data.path=/shared/d']) == 0
  for seed, name in ((1, '000-seed-1'), (2, '001-seed-2')):
    script = (out / name / f'my-sweep-{name[:3]}.sbatch').read_text()
    assert f'--workdir=/shared/w/{name} ' in script
    assert f'--config.train.seed={seed} ' in script
    assert '--partition=a100\n' in script
    resolved = config.load(out / name / 'resolved.json')
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


def test_help_has_an_example_and_the_options_of_the_target(capsys):
  with pytest.raises(SystemExit):
    cli.main(['sweep', '--target=gke', '--help'])
  shown = capsys.readouterr().out
  assert '--service-account' in shown and 'configs/sweeps/demo_grid.py' in shown
