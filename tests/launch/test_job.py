from __future__ import annotations

import pytest

from launch import job as job_lib

LEAST = {'name': 'base', 'config': 'configs/demo/base.py', 'topology': 'cpu:1'}


def test_a_job_file_gives_the_same_as_its_own_json(tmp_path):
  path = tmp_path / 'job.yaml'
  path.write_text(
    'name: base\n'
    'config: configs/demo/base.py\n'
    'topology: v5e:4x4\n'
    'slices: 2\n'
    'overrides:\n'
    '  train.steps: 100\n'
    '  data.path: /mnt/composer/data\n'
    'environment:\n'
    '  HF_TOKEN: secret:hf/token\n'
    '  HOME_OF_LOGS:\n'
  )
  job = job_lib.from_dict(job_lib.read(path))
  assert job.overrides == ('train.steps=100', 'data.path=/mnt/composer/data')
  assert job.environment == {'HF_TOKEN': 'secret:hf/token', 'HOME_OF_LOGS': None}
  path.write_text(job_lib.to_json(job))
  assert job_lib.from_dict(job_lib.read(path)) == job


def test_the_command_is_one_that_can_be_given_again_and_again():
  job = job_lib.from_dict({**LEAST, 'overrides': ['train.steps=5']})
  assert job.command == [
    'composer-jax',
    'train',
    '--config=configs/demo/base.py',
    '--workdir=runs/base',
    '--config.train.steps=5',
    '--preempted-exit-code=75',
  ]


@pytest.mark.parametrize(
  ('fields', 'directory'),
  [
    ({}, 'runs/base'),
    ({'workdir': 'w'}, 'w'),
    ({'bucket': 'gs://mine'}, '/mnt/composer/runs/base'),
    ({'volume': 'claim', 'workdir': 'w'}, '/mnt/composer/w'),
    ({'bucket': 'gs://mine', 'workdir': '/mnt/composer/w'}, '/mnt/composer/w'),
    ({'workdir': '/w'}, '/w'),
  ],
)
def test_a_run_is_kept_where_there_is_storage(fields, directory):
  assert job_lib.from_dict(LEAST | fields).directory == directory


@pytest.mark.parametrize(
  ('fields', 'why'),
  [
    ({'name': ''}, 'name is missing'),
    ({'name': 'Base'}, "name is 'Base'"),
    ({'name': 'b' * 41}, '40 lower-case letters'),
    ({'name': 7}, 'name is 7; expected text'),
    ({'config': ''}, 'config is missing'),
    ({'topology': None}, 'topology is missing'),
    ({'slices': 0}, 'slices is 0'),
    ({'slices': True}, 'slices is True'),
    ({'slices': 2}, 'only TPUs come in slices'),
    ({'max_restarts': -1}, 'max_restarts is -1'),
    ({'grace_seconds': '9'}, "grace_seconds is '9'"),
    ({'spot': 'yes'}, "spot is 'yes'; expected bool"),
    ({'image': 3}, 'image is 3; expected str'),
    ({'bucket': 'mine'}, "bucket is 'mine'"),
    ({'bucket': 'gs://mine/folder'}, 'without a folder'),
    ({'bucket': 'gs://mine', 'volume': 'v'}, 'expected one of them'),
    ({'overrides': 'train.steps=5'}, "overrides is 'train.steps=5'"),
    ({'overrides': ['train.steps']}, 'expected field=value'),
    ({'machines': 3}, "'machines' is no field of a job"),
    ({'environment': {'A-B': 'c'}}, "variable 'A-B'"),
    ({'environment': {'A': 1}}, 'A is 1; expected text'),
    ({'environment': {'A': 'secret:hf'}}, 'secret:NAME/KEY'),
    ({'image': 'a image'}, "image is 'a image'"),
    ({'image': 'a$(b)'}, 'expected letters, digits and'),
    ({'volume': 'My_claim'}, "volume is 'My_claim'"),
    ({'volume': 'v', 'workdir': 'a/../../b'}, "without '..'"),
    ({'bucket': 'gs://mine', 'workdir': '/mnt/composer/..'}, "without '..'"),
    ({'bucket': 'gs://mine', 'workdir': '/w'}, 'one below /mnt/composer'),
    ({'volume': 'v', 'workdir': '/mnt/composers/w'}, 'one below /mnt/composer'),
    ({'overrides': {'data.path': None}}, 'override data.path has no value'),
  ],
)
def test_a_bad_field_is_named_with_what_was_expected(fields, why):
  with pytest.raises(ValueError, match=why):
    job_lib.from_dict(LEAST | fields)


@pytest.mark.parametrize(
  ('fields', 'why'),
  [
    ({'name': 'base\n'}, 'name holds'),
    ({'config': 'c.py\nrm'}, 'config holds'),
    ({'workdir': 'a\nb'}, 'workdir holds'),
    ({'image': 'a\x1b'}, 'image holds'),
    ({'volume': 'v\n'}, 'volume holds'),
    ({'bucket': 'gs://mine\n'}, 'bucket holds'),
    ({'overrides': ['data.path=a\rb']}, 'override holds'),
    ({'environment': {'A': 'b\nc'}}, 'variable A holds'),
  ],
)
def test_what_would_end_a_line_of_a_script_is_refused(fields, why):
  with pytest.raises(ValueError, match=f'{why} .*expected one line'):
    job_lib.from_dict(LEAST | fields)


@pytest.mark.parametrize(
  'name',
  [
    *('HF_TOKEN', 'WANDB_API_KEY', 'AWS_SECRET_ACCESS_KEY', 'DB_PASSWORD', 'APIKEY'),
    *('AWS_CREDENTIALS', 'MY_CREDENTIAL', 'SSH_PASSPHRASE', 'DB_PASS'),
  ],
)
def test_secrets_are_refused_by_their_value_and_taken_by_reference(name):
  with pytest.raises(ValueError, match=f'{name} looks like a secret') as refusal:
    job_lib.from_dict({**LEAST, 'environment': [f'{name}=hunter2']})
  assert 'hunter2' not in str(refusal.value)
  for value in (None, 'secret:a/b'):
    words = {**LEAST, 'environment': {name: value}}
    assert job_lib.from_dict(words).environment == {name: value}


def test_ordinary_variables_are_not_taken_for_secrets():
  words = {'TOKENIZERS_PARALLELISM': 'false', 'KEYS_PER_FILE': '3', 'BYPASS': '1'}
  last = ('HF_TOKEN_PATH', 'API_KEY_FILE', 'AWS_ACCESS_KEY_ID', 'SECRET_DIR')
  words |= dict.fromkeys(last, 'x')
  words['GOOGLE_APPLICATION_CREDENTIALS'] = '/etc/account.json'
  assert job_lib.from_dict({**LEAST, 'environment': words}).environment == words


@pytest.mark.parametrize(
  ('text', 'why'),
  [
    ('- a\n- b\n', 'expected an object'),
    ('a: [', 'no YAML or JSON'),
    ('1: 2', 'object'),
  ],
)
def test_a_file_that_is_no_job_is_named(tmp_path, text, why):
  path = tmp_path / 'job.yaml'
  path.write_text(text)
  with pytest.raises(ValueError, match=why) as refusal:
    job_lib.read(path)
  assert str(path) in str(refusal.value)
  with pytest.raises(FileNotFoundError, match='no such file'):
    job_lib.read(tmp_path / 'absent.yaml')
  with pytest.raises(IsADirectoryError, match='is a folder; expected a file'):
    job_lib.read(tmp_path)
