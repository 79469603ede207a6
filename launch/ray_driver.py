"""What runs inside a Ray cluster: `python -m launch.ray_driver JOB.json`.

It reserves a host of the cluster for each process, starts the processes through one
actor a host, and restarts all of them together as on one machine.
"""

from __future__ import annotations

import os
import pathlib
import socket
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from launch import job as job_lib
from launch.local import DISTRIBUTED
from launch.processes import Command, Processes
from launch.supervisor import Supervisor, stopped_by_signals
from launch.topology import Topology

_LOST = -9
"""What a process whose host is gone is taken for: killed."""

_ANSWER_SECONDS = 60.0
_TAIL_BYTES = 2000


class Host:
  """One process on one host; an actor."""

  def address(self) -> str:
    """Where process 0 can be reached by all, at a port that is free now."""
    with socket.socket() as probe:
      probe.bind(('', 0))
      return f'{ray.util.get_node_ip_address()}:{probe.getsockname()[1]}'

  def start(self, words: Sequence[str], environment: dict[str, str]) -> None:
    """Starts the process, with these variables besides those of the host."""
    handle, name = tempfile.mkstemp(prefix='composer-jax-', suffix='.log')
    os.close(handle)
    self._log = pathlib.Path(name)
    self._shown = 0
    own = os.environ | {'PYTHONUNBUFFERED': '1'} | environment
    self._running = Processes([Command(words, own, self._log)])

  def poll(self) -> int | None:
    """The exit code, or None while it runs."""
    return self._running.poll()[0]

  def signal(self, number: int) -> None:
    """Sends a signal."""
    self._running.signal(number)

  def kill(self) -> None:
    """Kills what is left."""
    self._running.close()

  def news(self) -> bytes:
    """What was written since the last call."""
    with self._log.open('rb') as file:
      file.seek(self._shown)
      new = file.read()
      self._shown = file.tell()
    return new

  def tail(self) -> bytes:
    """The end of what was written."""
    return self._log.read_bytes()[-_TAIL_BYTES:]


class RayFleet:
  """The processes of a job, each on a host of its own.

  Args:
    command: program and arguments of each.
    topology: hosts, and the devices that each must have.
    environment: variables besides those of the hosts.
  """

  def __init__(
    self, command: Sequence[str], topology: Topology, environment: Mapping[str, str]
  ):
    self._command, self._topology = list(command), topology
    self._environment = dict(environment)
    self._group: Any = None
    self._hosts: list[Any] = []
    self._codes: list[int | None] = []
    self._tails: dict[int, str] = {}

  def start(self, attempt: int) -> None:
    topology = self._topology
    count, devices = topology.hosts, topology.devices_per_host
    resources: dict[str, float] = {'CPU': 1}
    if topology.kind == 'gpu':
      resources['GPU'] = devices
    elif topology.kind != 'cpu':
      resources['TPU'] = devices
    # The only host of a process is also the only one that has its devices.
    self._group = placement_group([resources] * count, strategy='STRICT_SPREAD')
    print(f'attempt {attempt}: waiting for {count} hosts with {resources}', flush=True)
    ray.get(self._group.ready())
    self._hosts = [
      ray.remote(Host)
      .options(
        num_cpus=1,
        num_gpus=resources.get('GPU', 0),
        resources={'TPU': resources['TPU']} if 'TPU' in resources else None,
        scheduling_strategy=PlacementGroupSchedulingStrategy(self._group, index),
      )
      .remote()
      for index in range(count)
    ]
    self._codes, self._tails = [None] * count, {}
    starting = [
      host.start.remote(self._command, environment)
      for host, environment in zip(self._hosts, self._environments(), strict=True)
    ]
    ray.get(starting)

  def _environments(self) -> list[dict[str, str]]:
    count, given = len(self._hosts), dict(self._environment)
    # TPUs know their slice; JAX asks them.
    if count == 1 or self._topology.kind not in ('cpu', 'gpu'):
      return [given] * count
    if self._topology.kind == 'cpu':
      given |= {'JAX_PLATFORMS': 'cpu', 'JAX_CPU_COLLECTIVES_IMPLEMENTATION': 'gloo'}
    address = ray.get(self._hosts[0].address.remote())
    return [
      given | dict(zip(DISTRIBUTED, (address, str(count), str(index)), strict=True))
      for index in range(count)
    ]

  def poll(self) -> Sequence[int | None]:
    for index, host in enumerate(self._hosts):
      if self._codes[index] is None:
        self._codes[index] = self._ask(host.poll, _LOST)
    return list(self._codes)

  def signal(self, number: int) -> None:
    for host in self._hosts:
      self._ask(host.signal, None, number)

  def kill(self) -> None:
    for index, host in enumerate(self._hosts):
      gone = b'Its host is gone.'
      self._tails[index] = self._ask(host.tail, gone).decode(errors='replace')
      self._ask(host.kill, None)
    self.show()
    self.poll()
    for host in self._hosts:
      ray.kill(host)
    self._hosts = []
    if self._group is not None:
      remove_placement_group(self._group)
      self._group = None

  def show(self) -> None:
    if self._hosts:
      text = self._ask(self._hosts[0].news, b'').decode(errors='replace')
      print(text, end='', flush=True)

  def tail(self, index: int) -> str:
    return f'The end of its log:\n{self._tails.get(index, "")}'

  def _ask(self, method: Any, otherwise: Any, *arguments: Any) -> Any:
    """The answer of an actor, or something else if its host is gone."""
    try:
      return ray.get(method.remote(*arguments), timeout=_ANSWER_SECONDS)
    except RayError:
      return otherwise


def main(argv: list[str]) -> int:
  """Runs the job of a file; returns its exit status."""
  job = job_lib.from_dict(job_lib.read(pathlib.Path(argv[0])))
  # Those without a value are the hosts' own, and reach the processes by themselves.
  environment = {k: v for k, v in job.environment.items() if v is not None}
  ray.init()
  fleet = RayFleet(job.command, job.topology, environment)
  supervisor = Supervisor(fleet, job.max_restarts, job.grace_seconds)
  with stopped_by_signals(supervisor):
    try:
      return supervisor.run()
    except RuntimeError as error:
      print(f'launch: {error}', file=sys.stderr)
      return 1


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
