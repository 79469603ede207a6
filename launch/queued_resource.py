"""The target `queued-resource`: a script for TPU slices without Kubernetes."""

from __future__ import annotations

import dataclasses
import pathlib
import re
import shlex

from launch import restarts
from launch.job import MOUNT, SECRET, Job, check_setup

_BODY = pathlib.Path(__file__).with_name('queued_resource_body.sh')


@dataclasses.dataclass(frozen=True)
class Options:
  """What only this target is told.

  Attributes:
    project: of Google Cloud.
    zone: where the slices are, such as `us-east5-a`.
    runtime_version: software of the TPU VMs; the usual one of the generation if empty.
    reserved: `yes` to take the slices from a reservation.
    service_account: of the TPU VMs; it must read the image and the bucket.
    setup: a line of shell that runs first on each host, such as one that installs
      Cloud Storage FUSE.
  """

  project: str = ''
  zone: str = ''
  runtime_version: str = ''
  reserved: str = 'no'
  service_account: str = ''
  setup: str = ''

  def __post_init__(self):
    for name in ('project', 'zone', 'runtime_version', 'service_account'):
      if not re.fullmatch(r'[a-z0-9@.:-]*', value := getattr(self, name)):
        raise ValueError(
          f'{name} is {value!r}; expected lower-case letters, digits and hyphens.'
        )
    if self.reserved not in ('yes', 'no'):
      raise ValueError(f'reserved is {self.reserved!r}; expected yes or no.')
    check_setup(self.setup)


HEADER = """\
#!/usr/bin/env bash
# {name}: {config} on {nodes} x {topology}.
#
#   bash {name}.sh up

name={name}
project={project}
zone={zone}
accelerator_type={accelerator_type}
runtime_version={runtime_version}
nodes={nodes}
hosts={hosts} # Of all slices.
flags=({flags})
max_restarts={max_restarts}
grace_seconds={grace_seconds}
saved={saved} # The exit code that asks to be started again.
poll_seconds=${{POLL_SECONDS:-30}}

# What each host runs. The slices find each other by the metadata of their VMs.
start=$(
  cat <<'END_OF_START'
{start}
END_OF_START
)

"""


def render(job: Job, options: Options) -> dict[str, str]:
  """The script, with the verbs `up`, `status`, `logs`, `stop` and `delete`.

  Returns:
    File names and contents.

  Raises:
    ValueError: the job lacks an image or a bucket, has no TPUs, or has a variable that
      a TPU VM cannot have.
  """
  job.refuse('queued-resource', volume='')
  job.require('queued-resource', 'image', 'bucket')
  if job.spot and options.reserved == 'yes':
    raise ValueError(
      "spot is True and reserved 'yes'; expected one of them, as reserved slices are"
      ' not taken away.'
    )
  for name in ('project', 'zone'):
    if not getattr(options, name):
      raise ValueError(
        f'{name} is empty; the target queued-resource needs it. Give --{name}.'
      )
  topology = job.topology
  flags = [f'--node-id={job.name}']
  if job.slices > 1:
    flags = [f'--node-count={job.slices}', f'--node-prefix={job.name}']
  if job.spot:
    flags.append('--spot')
  if options.reserved == 'yes':
    flags.append('--reserved')
  if options.service_account:
    flags.append(f'--service-account={options.service_account}')
  header = HEADER.format(
    name=job.name,
    config=job.config,
    topology=topology,
    project=options.project,
    zone=options.zone,
    accelerator_type=topology.accelerator_type,
    runtime_version=options.runtime_version or topology.tpu.runtime,
    nodes=job.slices,
    hosts=job.slices * topology.hosts,
    flags=' '.join(flags),
    max_restarts=job.max_restarts,
    grace_seconds=job.grace_seconds,
    saved=restarts.SAVED,
    start=_start(job, options),
  )
  return {f'{job.name}.sh': header + _BODY.read_text('utf-8')}


def _start(job: Job, options: Options) -> str:
  """Shell that starts the container of one host."""
  lines = ['set -e']
  if options.setup:
    lines.append(options.setup)
  registry = job.image.split('/')[0]
  if registry.endswith('.pkg.dev'):
    lines.append(f'sudo gcloud auth configure-docker {registry} --quiet')
  run = [
    # TPUs are devices of the host, and slices are found by its network.
    'docker run --detach --privileged --net=host --ipc=host --init',
    f'--name={job.name}',
    f'--stop-timeout={job.grace_seconds}',
    f'--volume={MOUNT}:{MOUNT}',
  ]
  lines += [
    f'sudo mkdir -p {MOUNT}',
    f'mountpoint -q {MOUNT} ||',
    f'  sudo gcsfuse --implicit-dirs {job.bucket.removeprefix("gs://")} {MOUNT}',
  ]
  secrets = []
  for name, value in job.environment.items():
    if value is None:
      raise ValueError(
        f'environment variable {name} has no value, and a TPU VM has none to pass'
        f' through; expected {name}=VALUE or {name}=secret:NAME/VERSION, such as'
        f' secret:{name.lower()}/latest, of Secret Manager.'
      )
    if value.startswith(SECRET):
      secret, _, version = value.removeprefix(SECRET).partition('/')
      read = f'gcloud secrets versions access {version} --secret={secret}'
      lines.append(f'{name}=$({read})\nexport {name}')
      secrets.append(name)
      run.append(f'--env={name}')  # By name, so that no list of processes shows it.
    else:
      run.append(f'--env={shlex.quote(f"{name}={value}")}')
  sudo = f'sudo --preserve-env={",".join(secrets)}' if secrets else 'sudo'
  run.append(shlex.quote(job.image))
  lines.append(f'{sudo} ' + ' \\\n  '.join([*run, job.shell_command]))
  return '\n'.join(lines)


def start_command(job: Job, folder: pathlib.Path) -> list[str]:
  """What hands the files over that were rendered into a folder."""
  return ['bash', f'{folder}/{job.name}.sh', 'up']
