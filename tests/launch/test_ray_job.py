from __future__ import annotations

import json

import pytest

from launch import job, ray_job

FIELDS = {
  'name': 'base',
  'config': 'configs/demo/base.py',
  'topology': 'gpu:4x8',
  'workdir': '/shared/runs/base',
}


def files(**changes):
  return ray_job.render(job.from_dict(FIELDS | changes), ray_job.Options())


def test_the_script_passes_shellcheck_and_submits_the_driver(shellcheck):
  script = files()['base-ray.sh']
  shellcheck(script)
  assert 'ray job submit --address=http://127.0.0.1:8265' in script
  assert '-- python -m launch.ray_driver base-ray.json' in script


def test_the_driver_reads_the_same_job_again():
  words = json.loads(files(environment={'A': 'b', 'HF_TOKEN': None})['base-ray.json'])
  assert job.from_dict(words).environment == {'A': 'b', 'HF_TOKEN': None}
  assert job.from_dict(words).topology.hosts == 4


@pytest.mark.parametrize(
  ('changes', 'why'),
  [
    ({'workdir': 'runs/base'}, 'a folder that all hosts share'),
    ({'image': 'i'}, "image is 'i', which the target ray"),
    ({'environment': {'HF_TOKEN': 'secret:a/b'}}, 'Ray keeps no secrets'),
  ],
)
def test_what_cannot_be_run_there_is_refused(changes, why):
  with pytest.raises(ValueError, match=why):
    files(**changes)
  with pytest.raises(ValueError, match='address is'):
    ray_job.Options(address='head; rm')
