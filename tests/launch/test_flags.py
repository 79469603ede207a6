from __future__ import annotations

import json

import pytest

from composer_jax import cli

DEMO = ['--name=base', '--config=configs/demo/base.py', '--config.data.path=/data/a']
TPUS = ['--topology=v5e:4x4', '--image=registry.example/c:1', '--bucket=gs://mine']
TARGETS = {
  'slurm': [
    *('--topology=gpu:2x4', '--partition=a100', '--cpus-per-task=4', '--image=i'),
    *('--mounts=/data,/shared', '--setup=cd src  # First.', '--env=A'),
  ],
  'gke': [*TPUS, '--queue=q', '--namespace=n', '--reservation=r', '--env=A=b'],
  'queued-resource': [
    *TPUS,
    '--project=p',
    '--zone=z',
    '--setup=true',
    '--reserved=yes',
  ],
  'ray': ['--topology=gpu:2x4', '--address=http://head:8265', '--workdir=/shared/w'],
}


def contents(folder):
  return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.mark.parametrize('target', TARGETS)
def test_a_written_description_gives_the_same_files_again(tmp_path, target):
  first, second = tmp_path / 'first', tmp_path / 'second'
  words = ['launch', target, *DEMO, *TARGETS[target], '--dry-run']
  assert cli.main([*words, f'--out={first}']) == 0
  again = ['launch', target, f'--job={first}/job.json', f'--out={second}', '--dry-run']
  assert cli.main(again) == 0
  assert contents(second) == contents(first)
  assert target in json.loads((first / 'job.json').read_text())


def test_a_part_of_the_file_may_be_empty(tmp_path):
  path = tmp_path / 'job.yaml'
  path.write_text('topology: gpu:2x4\nslurm:\ngke:\n')
  words = ['launch', 'slurm', *DEMO, f'--job={path}', f'--out={tmp_path}', '--dry-run']
  assert cli.main(words) == 0
  assert (tmp_path / 'base.sbatch').exists()


def test_an_option_of_several_lines_is_refused(tmp_path, capsys):
  words = [*DEMO, '--topology=gpu:2x4', '--setup=a\nb', f'--out={tmp_path}/out']
  assert cli.main(['launch', 'slurm', *words, '--dry-run']) == 1
  assert 'slurm.setup holds' in capsys.readouterr().err
