from __future__ import annotations

import copy
import importlib.util
import pathlib

import jsonschema
import kubernetes_validate
import pytest
import yaml

from launch import gke, job

# Tests are no package; what they share is read by its path.
_SPEC = importlib.util.spec_from_file_location(
  'jobset_schema', pathlib.Path(__file__).with_name('jobset_schema.py')
)
jobset_schema = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(jobset_schema)

FIELDS = {
  'name': 'base',
  'config': 'configs/paper/base64_stage1.py',
  'topology': 'v5p:4x4x8',
  'slices': 2,
  'image': 'registry.example/composer-jax:1',
  'bucket': 'gs://mine',
  'overrides': ['data.path=/mnt/composer/data'],
  'environment': {'HF_TOKEN': 'secret:hf/token', 'LEVEL': 'info'},
  'grace_seconds': 90,
  'max_restarts': 7,
}


def manifest(options=None, **changes):
  made = job.from_dict(FIELDS | changes)
  [(name, text)] = gke.render(made, gke.Options(**options or {})).items()
  assert name == 'base.yaml'
  return yaml.safe_load(text)


def check(found):
  """Raises if Kubernetes or the controller of JobSets would refuse this."""
  jsonschema.validate(found, jobset_schema.JOBSET)
  for replicated in found['spec']['replicatedJobs']:
    inner = {
      'apiVersion': 'batch/v1',
      'kind': 'Job',
      'metadata': {'name': replicated['name']},
      **replicated['template'],
    }
    kubernetes_validate.validate(inner, '1.31', strict=True)


def pod(found):
  return found['spec']['replicatedJobs'][0]['template']['spec']['template']['spec']


@pytest.mark.parametrize(
  'changes',
  [
    {},
    {'slices': 1, 'topology': 'v5e:1x1'},
    {'slices': 4, 'topology': 'v6e:16x16', 'spot': True},
    {'bucket': '', 'volume': 'claim', 'environment': {}},
  ],
  ids=str,
)
def test_manifests_are_what_kubernetes_and_jobset_accept(changes):
  check(manifest(**changes))
  every = dict.fromkeys(vars(gke.Options()), 'a-name')
  check(manifest(every, **changes))


def test_the_check_notices_misspelt_fields_at_each_level():
  good = manifest()
  for spoil in (
    lambda m: m['spec'].update(failurePolicies={}),
    lambda m: m['spec']['failurePolicy'].update(maxRestart=1),
    lambda m: m['spec']['replicatedJobs'][0]['template']['spec'].update(backofLimit=1),
    lambda m: pod(m)['containers'][0].update(comand=[]),
    lambda m: pod(m).update(terminationGracePeriodSeconds='90'),
  ):
    bad = copy.deepcopy(good)
    spoil(bad)
    with pytest.raises(
      (jsonschema.ValidationError, kubernetes_validate.ValidationError)
    ):
      check(bad)


def test_there_is_a_pod_for_each_host_with_all_of_its_chips():
  found = manifest()
  [slices] = found['spec']['replicatedJobs']
  assert slices['replicas'] == 2
  assert slices['template']['spec']['parallelism'] == 32
  assert slices['template']['spec']['completions'] == 32
  [container] = pod(found)['containers']
  assert container['resources']['limits'] == {'google.com/tpu': 4}
  assert container['command'][:2] == ['composer-jax', 'train']
  assert '--workdir=/mnt/composer/runs/base' in container['command']
  assert '--preempted-exit-code=75' in container['command']
  assert pod(found)['nodeSelector'] == {
    'cloud.google.com/gke-tpu-accelerator': 'tpu-v5p-slice',
    'cloud.google.com/gke-tpu-topology': '4x4x8',
  }
  spot = pod(manifest(spot=True))['nodeSelector']
  assert spot['cloud.google.com/gke-spot'] == 'true'


def test_all_start_again_and_only_failures_are_counted():
  found = manifest()
  policy = found['spec']['failurePolicy']
  assert policy['maxRestarts'] == 7
  free, counted = policy['rules']
  assert free['action'] == 'RestartJobSetAndIgnoreMaxRestarts'
  assert free['onJobFailureReasons'] == ['PodFailurePolicy']
  assert counted['action'] == 'RestartJobSet'
  inner = found['spec']['replicatedJobs'][0]['template']['spec']
  assert inner['backoffLimit'] == 0
  saved, disrupted = inner['podFailurePolicy']['rules']
  # 76, and any other code, is a failure and matches no rule.
  assert saved['onExitCodes']['values'] == [75]
  assert disrupted['onPodConditions'] == [
    {'type': 'DisruptionTarget', 'status': 'True'}
  ]
  assert {saved['action'], disrupted['action']} == {'FailJob'}
  # Policies on exit codes need pods that are not restarted in place.
  assert pod(found)['restartPolicy'] == 'Never'
  assert pod(found)['terminationGracePeriodSeconds'] == 90


def test_secrets_are_references():
  [container] = pod(manifest())['containers']
  assert container['env'] == [
    {
      'name': 'HF_TOKEN',
      'valueFrom': {'secretKeyRef': {'name': 'hf', 'key': 'token'}},
    },
    {'name': 'LEVEL', 'value': 'info'},
  ]


def test_storage_is_a_bucket_or_a_claim():
  [_, bucket] = pod(manifest())['volumes']
  assert bucket['csi']['volumeAttributes']['bucketName'] == 'mine'
  template = manifest()['spec']['replicatedJobs'][0]['template']['spec']['template']
  assert template['metadata']['annotations'] == {'gke-gcsfuse/volumes': 'true'}
  [_, claim] = pod(manifest(bucket='', volume='claim'))['volumes']
  assert claim['persistentVolumeClaim'] == {'claimName': 'claim'}


@pytest.mark.parametrize(
  ('changes', 'why'),
  [
    ({'image': ''}, 'image is empty'),
    ({'bucket': ''}, 'bucket and volume are empty'),
    ({'environment': {'A': 'secret:My_own/key'}}, 'as Kubernetes has it'),
    ({'topology': 'gpu:2x8', 'slices': 1}, 'has no TPUs'),
    ({'topology': 'v5e:2x4'}, 'several hosts'),
    ({'environment': {'HF_TOKEN': None}}, 'HF_TOKEN=secret:NAME/KEY'),
  ],
)
def test_what_cannot_be_run_there_is_refused(changes, why):
  with pytest.raises(ValueError, match=why):
    manifest(**changes)
  with pytest.raises(ValueError, match='queue is'):
    gke.Options(queue='Two words')
