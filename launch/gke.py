"""The target `gke`: a JobSet for slices of TPUs on Google Kubernetes Engine."""

from __future__ import annotations

import dataclasses
import pathlib
import re
from typing import Any

import yaml

from launch import restarts
from launch.job import KUBERNETES_NAME, MOUNT, SECRET, Job


@dataclasses.dataclass(frozen=True)
class Options:
  """What only this target is told.

  Attributes:
    namespace: of Kubernetes.
    queue: local queue of Kueue, if the cluster has Kueue.
    priority: priority class of the pods.
    service_account: Kubernetes service account that may use the bucket.
    reservation: name of a reservation to take the slices from.
  """

  namespace: str = 'default'
  queue: str = ''
  priority: str = ''
  service_account: str = ''
  reservation: str = ''

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if not re.fullmatch(f'({KUBERNETES_NAME})?', value):
        raise ValueError(
          f'{field.name} is {value!r}; expected lower-case letters, digits and hyphens.'
        )
    if not self.namespace:
      raise ValueError('namespace is empty; expected one, such as default.')


HEADER = """\
# {name}: {config} on {slices} x {topology},
# which are {hosts} hosts of {machine} for each slice.
#
#   kubectl apply -f {name}.yaml
#   kubectl get jobset,pods -n {namespace} -l jobset.sigs.k8s.io/jobset-name={name}
#   kubectl logs -n {namespace} -f {name}-slice-0-0-...
#   kubectl delete jobset -n {namespace} {name}
#
# To change it, render it again: most of its fields cannot be edited in the cluster.
"""


def render(job: Job, options: Options) -> dict[str, str]:
  """The manifest.

  GKE itself tells the pods of a slice of each other (`TPU_WORKER_ID`,
  `TPU_WORKER_HOSTNAMES`) and slices of each other (`MEGASCALE_*`).

  Returns:
    File names and contents.

  Raises:
    ValueError: the job lacks an image or storage, has no TPUs, or has a variable that
      a pod cannot have.
  """
  job.require('gke', 'image')
  if not job.bucket and not job.volume:
    raise ValueError(
      'bucket and volume are empty; the target gke needs one of them, as what a pod'
      ' saves elsewhere is lost with it. Give --bucket or --volume.'
    )
  topology = job.topology
  hosts, machine = topology.hosts, topology.machine_type
  if job.slices > 1 and hosts == 1:
    raise ValueError(
      f'slices is {job.slices} and topology {topology}, of one host; GKE joins only'
      ' slices of several hosts. Take one larger slice.'
    )
  header = HEADER.format(
    name=job.name,
    config=job.config,
    slices=job.slices,
    topology=topology,
    hosts=hosts,
    machine=machine,
    namespace=options.namespace,
  )
  text = yaml.safe_dump(_jobset(job, options), sort_keys=False, width=88)
  return {f'{job.name}.yaml': header + text}


def _jobset(job: Job, options: Options) -> dict[str, Any]:
  metadata: dict[str, Any] = {'name': job.name, 'namespace': options.namespace}
  if options.queue:
    metadata['labels'] = {'kueue.x-k8s.io/queue-name': options.queue}
  # One slice is one node pool; no two jobs share one.
  metadata['annotations'] = {
    'alpha.jobset.sigs.k8s.io/exclusive-topology': 'cloud.google.com/gke-nodepool'
  }
  return {
    'apiVersion': 'jobset.x-k8s.io/v1alpha2',
    'kind': 'JobSet',
    'metadata': metadata,
    'spec': {
      'network': {'enableDNSHostnames': True, 'publishNotReadyAddresses': True},
      'successPolicy': {'operator': 'All'},
      'failurePolicy': {
        'maxRestarts': job.max_restarts,
        # Chips of the old pods must be free before the new ones want them.
        'restartStrategy': 'BlockingRecreate',
        'rules': [
          {
            # Saved or preempted, as the policy of the pods below finds out.
            'name': 'preempted',
            'action': 'RestartJobSetAndIgnoreMaxRestarts',
            'onJobFailureReasons': ['PodFailurePolicy'],
          },
          {'name': 'failed', 'action': 'RestartJobSet'},
        ],
      },
      'replicatedJobs': [
        {'name': 'slice', 'replicas': job.slices, 'template': _slice(job, options)}
      ],
    },
  }


def _slice(job: Job, options: Options) -> dict[str, Any]:
  """The job of one slice, with a pod for each host."""
  return {
    'spec': {
      'completionMode': 'Indexed',
      'parallelism': job.topology.hosts,
      'completions': job.topology.hosts,
      # Pods are not replaced one by one: all slices start again.
      'backoffLimit': 0,
      'podFailurePolicy': {
        'rules': [
          {
            'action': 'FailJob',
            'onExitCodes': {
              'containerName': 'train',
              'operator': 'In',
              'values': [restarts.SAVED],
            },
          },
          {
            'action': 'FailJob',
            'onPodConditions': [{'type': 'DisruptionTarget', 'status': 'True'}],
          },
        ]
      },
      'template': _pod(job, options),
    }
  }


def _pod(job: Job, options: Options) -> dict[str, Any]:
  topology = job.topology
  selector = {
    'cloud.google.com/gke-tpu-accelerator': topology.tpu.gke,
    'cloud.google.com/gke-tpu-topology': topology.grid,
  }
  if job.spot:
    selector['cloud.google.com/gke-spot'] = 'true'
  if options.reservation:
    selector['cloud.google.com/reservation-name'] = options.reservation
  # Readers of data hand batches over in shared memory; the default is 64 MB.
  volumes: list[dict[str, Any]] = [
    {'name': 'shm', 'emptyDir': {'medium': 'Memory'}},
    {'name': 'storage', **_storage(job)},
  ]
  mounts = [
    {'name': 'shm', 'mountPath': '/dev/shm'},
    {'name': 'storage', 'mountPath': MOUNT},
  ]
  chips = {'google.com/tpu': topology.devices_per_host}
  container = {
    'name': 'train',
    'image': job.image,
    'command': job.command,
    'env': [_variable(name, value) for name, value in job.environment.items()],
    # Of the chips, of the profiler and of jax.distributed.
    'ports': [{'containerPort': port} for port in (8471, 8431, 8476)],
    'resources': {'requests': chips, 'limits': dict(chips)},
    'volumeMounts': mounts,
  }
  if not job.environment:
    del container['env']
  spec: dict[str, Any] = {
    'restartPolicy': 'Never',
    'terminationGracePeriodSeconds': job.grace_seconds,
    'nodeSelector': selector,
    'containers': [container],
    'volumes': volumes,
  }
  if options.service_account:
    spec['serviceAccountName'] = options.service_account
  if options.priority:
    spec['priorityClassName'] = options.priority
  if not job.bucket:
    return {'spec': spec}
  return {'metadata': {'annotations': {'gke-gcsfuse/volumes': 'true'}}, 'spec': spec}


def _storage(job: Job) -> dict[str, Any]:
  """The source of the volume that holds data and checkpoints."""
  if job.volume:
    return {'persistentVolumeClaim': {'claimName': job.volume}}
  return {
    'csi': {
      'driver': 'gcsfuse.csi.storage.gke.io',
      'volumeAttributes': {
        'bucketName': job.bucket.removeprefix('gs://'),
        'mountOptions': 'implicit-dirs',
      },
    }
  }


def _variable(name: str, value: str | None) -> dict[str, Any]:
  if value is None:
    raise ValueError(
      f'environment variable {name} has no value, and a pod has none to pass through;'
      f' expected {name}=VALUE or {name}=secret:NAME/KEY.'
    )
  if not value.startswith(SECRET):
    return {'name': name, 'value': value}
  secret, _, key = value.removeprefix(SECRET).partition('/')
  if not re.fullmatch(KUBERNETES_NAME, secret):
    raise ValueError(
      f'environment variable {name} is {value!r}; expected secret:NAME/KEY with a NAME'
      " of lower-case letters, digits, '-' and '.', as Kubernetes has it."
    )
  return {
    'name': name,
    'valueFrom': {'secretKeyRef': {'name': secret, 'key': key}},
  }


def start_command(job: Job, folder: pathlib.Path) -> list[str]:
  """What hands the files over that were rendered into a folder."""
  return ['kubectl', 'apply', '-f', f'{folder}/{job.name}.yaml']
