from __future__ import annotations

import pathlib
import re
import subprocess

import pytest

from launch import job, slurm

FIELDS = {
  'name': 'base',
  'config': 'configs/paper/base64_stage1.py',
  'topology': 'gpu:4x8',
  'overrides': ['data.path=/shared/my data'],
  'environment': {'HF_TOKEN': None, 'LEVEL': "it's"},
  'grace_seconds': 90,
  'max_restarts': 1,
}


def script(options=None, **changes):
  made = job.from_dict(FIELDS | changes)
  [(name, text)] = slurm.render(made, slurm.Options(**options or {})).items()
  assert name == 'base.sbatch'
  return text


@pytest.mark.parametrize(
  ('options', 'changes'),
  [
    ({}, {}),
    ({'partition': 'gpu', 'setup': 'module load cuda'}, {'environment': {}}),
    ({'setup': 'cd src;  # It is there.'}, {}),
    (
      {'cpus_per_task': 8, 'mounts': '/shared,/data'},
      {'image': 'registry.example/composer-jax:1'},
    ),
    ({}, {'topology': 'cpu:2'}),
  ],
)
def test_scripts_pass_shellcheck(shellcheck, options, changes):
  shellcheck(script(options, **changes))


def test_directives_ask_for_a_process_a_gpu_notice_and_requeueing():
  options = {'partition': 'gpu', 'account': 'us', 'time': '2-00:00:00'}
  text = script(options)
  asked = re.findall(r'^#SBATCH --(\S+)$', text, re.MULTILINE)
  # Slurm reads no directive after the first command.
  assert text.index('set -uo') > text.rindex('#SBATCH')
  assert set(asked) >= {
    'job-name=base',
    'nodes=4',
    'ntasks-per-node=8',
    'gpus-per-node=8',
    'partition=gpu',
    'account=us',
    'time=2-00:00:00',
    'signal=TERM@90',
    'requeue',
    'open-mode=append',
  }
  assert not any(
    a.startswith('gpus') for a in re.findall('#SBATCH --(.*)', script(topology='cpu:2'))
  )


def test_a_container_sees_the_folders_of_the_run():
  text = script({'mounts': '/shared,/data'}, image='i', workdir='/data/runs')
  assert '--container-mounts="$PWD:$PWD",/shared:/shared,/data:/data ' in text
  here = pathlib.Path.cwd()
  overrides = ['data.path=/elsewhere', f'data.path={here}/data']
  assert '"$PWD:$PWD" ' in script(image='i', workdir=f'{here}/w', overrides=overrides)


def test_a_setup_may_end_in_a_comment_and_stops_the_job_if_it_fails(programs):
  text = script({'setup': 'false;  # Not today.'})
  environment = programs(srun='touch "$FOLDER/srun"') | {'HF_TOKEN': 'a'}
  done = subprocess.run(['bash', '-c', text], env=environment, capture_output=True)
  assert done.returncode == 1 and done.stderr == b''
  assert not pathlib.Path(environment['FOLDER'], 'srun').exists()


def run(programs, codes, **variables):
  """Runs the script where srun ends with these codes, one after the other."""
  environment = programs(
    srun='printf "%s|" "$@" "$LEVEL" "$HF_TOKEN" >>"$FOLDER/srun"\n'
    'echo >>"$FOLDER/srun"\n'
    f'codes=({" ".join(map(str, codes))})\n'
    'exit "${codes[$(($(wc -l <"$FOLDER/srun") - 1))]}"',
    scontrol='echo "$@" >>"$FOLDER/scontrol"',
    sleep='exit 0',
  )
  environment |= {'SLURM_JOB_ID': '12', 'HF_TOKEN': 'of the caller', **variables}
  done = subprocess.run(
    ['bash', '-c', script()], env=environment, capture_output=True, text=True
  )
  return done, environment['FOLDER']


def lines(folder, name):
  path = f'{folder}/{name}'
  try:
    with open(path) as file:
      return file.read().splitlines()
  except FileNotFoundError:
    return []


def test_a_finished_job_ends(programs):
  done, folder = run(programs, [0])
  assert done.returncode == 0
  [call] = lines(folder, 'srun')
  assert call.split('|')[:3] == ['--kill-on-bad-exit=1', 'composer-jax', 'train']
  # Values arrive as they were given.
  assert call.endswith(
    "--config.data.path=/shared/my data|--preempted-exit-code=75|it's|of the caller|"
  )
  assert lines(folder, 'scontrol') == []


def test_a_saved_job_goes_back_into_the_queue(programs):
  done, folder = run(programs, [75])
  assert done.returncode == 75
  assert lines(folder, 'scontrol') == ['requeue 12']
  assert len(lines(folder, 'srun')) == 1


@pytest.mark.parametrize('codes', [[1, 0], [76, 0], [137, 0]])
def test_a_failed_job_starts_again_in_the_same_allocation(programs, codes):
  done, folder = run(programs, codes)
  assert done.returncode == 0
  assert len(lines(folder, 'srun')) == 2
  assert f'Ended with code {codes[0]}, failure 1.' in done.stderr


def test_it_gives_up_with_the_code_of_the_last_failure(programs):
  done, folder = run(programs, [1, 9])
  assert done.returncode == 9
  assert len(lines(folder, 'srun')) == 2
  assert 'Gave up after 1 restarts' in done.stderr


def test_a_variable_to_pass_through_has_to_be_there(programs):
  done, folder = run(programs, [0], HF_TOKEN='')
  assert done.returncode != 0
  assert 'set it where you call sbatch' in done.stderr
  assert lines(folder, 'srun') == []


@pytest.mark.parametrize(
  ('changes', 'why'),
  [
    ({'bucket': 'gs://mine'}, "bucket is 'gs://mine', which the target slurm"),
    ({'spot': True}, 'spot is True'),
    ({'topology': 'v5e:4x4'}, 'takes gpu:NODESxGPUS'),
    ({'environment': {'HF_TOKEN': 'secret:hf/token'}}, 'Slurm keeps no secrets'),
    ({'image': 'i'}, "data.path is '/shared/my data', which the container"),
    ({'image': 'i', 'overrides': [], 'workdir': '/w'}, "workdir is '/w'.*--mounts"),
    ({'image': 'i', 'overrides': ['data.path=/a/../b']}, "data.path is '/a/../b'"),
  ],
)
def test_what_cannot_be_run_there_is_refused(changes, why):
  with pytest.raises(ValueError, match=why):
    script(**changes)
  for bad in (
    {'partition': 'a b'},
    {'time': 'soon'},
    {'cpus_per_task': -1},
    {'mounts': 'shared'},
    {'mounts': '/a:/b'},
    {'setup': 'echo "a'},
    {'setup': 'cd a \\'},
  ):
    with pytest.raises(ValueError, match=f'{next(iter(bad))} is'):
      script(bad)
