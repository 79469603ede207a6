from __future__ import annotations

import json
import os
import stat

import pytest
import yaml

from composer_jax import cli

GKE = [
  'launch',
  'gke',
  '--name=base',
  '--config=configs/paper/base64_stage1.py',
  '--topology=v5p:4x4x8',
  '--image=registry.example/c:1',
  '--bucket=gs://mine',
  '--config.data.path=/mnt/composer/data',
]

DEMO = ['--name=base', '--config=configs/demo/base.py', '--config.data.path=/data']


def test_a_dry_run_writes_files_and_says_how_to_start_them(tmp_path, capsys):
  out = tmp_path / 'files'
  words = [*GKE, f'--out={out}', '--dry-run']
  assert cli.main(words) == 0
  assert f'kubectl apply -f {out}/base.yaml' in capsys.readouterr().out
  manifest = yaml.safe_load((out / 'base.yaml').read_text())
  assert manifest['kind'] == 'JobSet'
  job = json.loads((out / 'job.json').read_text())
  assert job['overrides'] == ['data.path=/mnt/composer/data']


def test_a_written_description_can_be_given_again_and_flags_win(tmp_path, capsys):
  first, second = tmp_path / 'first', tmp_path / 'second'
  assert cli.main([*GKE, f'--out={first}', '--dry-run', '--env=A=1', '--env=B=2']) == 0
  again = ['launch', 'gke', f'--job={first}/job.json', f'--out={second}', '--dry-run']
  assert cli.main(again) == 0
  assert (second / 'base.yaml').read_text() == (first / 'base.yaml').read_text()
  more = ['--slices=2', '--env=B=3', '--config.train.steps=7', '--spot']
  assert cli.main([*again, *more]) == 0
  job = json.loads((second / 'job.json').read_text())
  assert (job['slices'], job['spot']) == (2, True)
  assert job['environment'] == {'A': '1', 'B': '3'}
  assert job['overrides'] == ['data.path=/mnt/composer/data', 'train.steps=7']


def test_a_file_may_have_a_part_for_each_target(tmp_path, capsys):
  path = tmp_path / 'job.yaml'
  path.write_text(
    'name: base\nconfig: configs/demo/base.py\ntopology: gpu:2x4\n'
    'slurm: {partition: a100, cpus_per_task: 4}\n'
    'ray: {address: "http://head:8265"}\nworkdir: /shared/base\n'
    'overrides: {data.path: /shared/data}\n'
  )
  out = tmp_path / 'out'
  for target in ('slurm', 'ray'):
    words = ['launch', target, f'--job={path}', f'--out={out}', '--dry-run']
    assert cli.main(words) == 0
  batch = (out / 'base.sbatch').read_text()
  assert '--partition=a100\n' in batch and '--cpus-per-task=4\n' in batch
  assert 'http://head:8265' in (out / 'base-ray.sh').read_text()
  path.write_text(path.read_text().replace('cpus_per_task: 4', "cpus_per_task: '4'"))
  assert cli.main(['launch', 'slurm', f'--job={path}', '--dry-run']) == 1
  assert "slurm.cpus_per_task is '4'" in capsys.readouterr().err


def test_it_starts_what_it_has_written_and_gives_its_status(tmp_path, monkeypatch):
  program = tmp_path / 'sbatch'
  program.write_text(f'#!/bin/sh\necho "$*" >{tmp_path}/called\nexit 3\n')
  program.chmod(program.stat().st_mode | stat.S_IXUSR)
  monkeypatch.setenv('PATH', f'{tmp_path}:{os.environ["PATH"]}')
  out = tmp_path / 'out'
  words = [*DEMO, '--topology=gpu:2x4']
  assert cli.main(['launch', 'slurm', *words, f'--out={out}']) == 3
  assert (tmp_path / 'called').read_text() == f'{out}/base.sbatch\n'


def test_a_missing_program_leaves_the_files_and_says_what_to_do(
  tmp_path, monkeypatch, capsys
):
  monkeypatch.setenv('PATH', str(tmp_path))
  out = tmp_path / 'out'
  words = [*DEMO, '--topology=gpu:2x4']
  assert cli.main(['launch', 'slurm', *words, f'--out={out}']) == 1
  assert f'sbatch {out}/base.sbatch' in capsys.readouterr().err
  assert (out / 'base.sbatch').exists()


@pytest.mark.parametrize(
  ('words', 'why'),
  [
    (['--config.model.no_such=3'], 'no_such'),
    (['--no-such=3'], "'--no-such=3' is not a flag"),
    (['--topology=v5p:5x5x5'], 'topology is v5p:5x5x5'),
    (['--env=HF_TOKEN=hunter2'], 'HF_TOKEN looks like a secret'),
    (['--config=configs/absent.py'], 'no such file'),
    (['--name='], 'name is missing'),
    (['--config.data.path='], 'config.data.path is empty'),
    (['--config.mesh.fsdp=3'], 'product is 128, the number of devices'),
    (['--config.data.batch_size=100'], 'batch_size is 100; expected a multiple of 128'),
    (['--job=absent.yaml'], 'absent.yaml: there is no such file'),
  ],
  ids=lambda value: str(value[0]) if isinstance(value, list) else '',
)
def test_bad_input_is_one_error_and_writes_nothing(tmp_path, capsys, words, why):
  out = tmp_path / 'out'
  assert cli.main([*GKE, f'--out={out}', '--dry-run', *words]) == 1
  output = capsys.readouterr()
  assert output.err.startswith('composer-jax launch: ') and why in output.err
  assert output.out == '' and not out.exists()


def test_a_local_dry_run_says_what_would_run(tmp_path, capsys):
  words = [*DEMO, '--topology=cpu:4x2']
  assert cli.main(['launch', 'local', *words, f'--out={tmp_path}', '--dry-run']) == 0
  assert '4 processes would run: composer-jax train' in capsys.readouterr().out


@pytest.mark.parametrize('target', ['local', 'slurm', 'gke', 'queued-resource', 'ray'])
def test_each_target_has_help_with_its_options_and_an_example(capsys, target):
  with pytest.raises(SystemExit) as stop:
    cli.main(['launch', target, '--help'])
  assert stop.value.code == 0
  shown = capsys.readouterr().out
  assert 'examples:' in shown and '--topology' in shown
