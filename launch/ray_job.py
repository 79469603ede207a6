"""The target `ray`: one process on each of several hosts of a Ray cluster."""

from __future__ import annotations

import dataclasses
import pathlib
import re
import shlex

from launch import job as job_lib
from launch.job import SECRET, Job


@dataclasses.dataclass(frozen=True)
class Options:
  """What only this target is told.

  Attributes:
    address: of the cluster's dashboard.
  """

  address: str = 'http://127.0.0.1:8265'

  def __post_init__(self):
    if not re.fullmatch(r'https?://[\w.:/-]+', self.address):
      raise ValueError(
        f'address is {self.address!r}; expected that of the dashboard, such as'
        ' http://127.0.0.1:8265.'
      )


SCRIPT = """\
#!/usr/bin/env bash
# {name}: {config} on {topology}.
#
#   bash {name}-ray.sh [MORE FLAGS OF ray job submit, such as --no-wait]
#
# Needs composer_jax on every host, and a folder {directory}
# that all of them share.
set -euo pipefail
cd -- "$(dirname -- "${{BASH_SOURCE[0]}}")"

exec ray job submit --address={address} --submission-id="{name}-$(date +%s)" \\
  --working-dir=. "$@" -- python -m launch.ray_driver {name}-ray.json
"""


def render(job: Job, options: Options) -> dict[str, str]:
  """A script that submits the job, and the description that its driver reads.

  Returns:
    File names and contents.

  Raises:
    ValueError: the job needs what the hosts of a Ray cluster bring along themselves.
  """
  # Hosts of a cluster have their image, their storage and their prices already.
  job.refuse('ray', image='', bucket='', volume='', slices=1, spot=False)
  if not job.directory.startswith('/'):
    raise ValueError(
      f'workdir is {job.directory!r}; the target ray needs a folder that all hosts'
      ' share, such as /shared/runs/base. Give --workdir.'
    )
  for name, value in job.environment.items():
    if value is not None and value.startswith(SECRET):
      raise ValueError(
        f'environment variable {name} is {value!r}; Ray keeps no secrets. Set it on the'
        f' hosts of the cluster, and give --env {name}.'
      )
  script = SCRIPT.format(
    name=job.name,
    config=job.config,
    topology=job.topology,
    directory=job.directory,
    address=shlex.quote(options.address),
  )
  return {f'{job.name}-ray.sh': script, f'{job.name}-ray.json': job_lib.to_json(job)}


def start_command(job: Job, folder: pathlib.Path) -> list[str]:
  """What hands the files over that were rendered into a folder."""
  return ['bash', f'{folder}/{job.name}-ray.sh']
