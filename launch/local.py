"""The target `local`: N processes on this machine, restarted together."""

from __future__ import annotations

import codecs
import dataclasses
import os
import pathlib
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import BinaryIO, Literal

from launch.job import SECRET, Job
from launch.processes import Command, Processes
from launch.supervisor import Supervisor, stopped_by_signals

_TAIL_LINES = 20

DISTRIBUTED = ('JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID')
"""Variables that tell `composer-jax train` of its peers."""


@dataclasses.dataclass(frozen=True)
class Options:
  """What only this target is told: nothing."""


class LocalFleet:
  """Processes on this machine, each with a log; see `supervise` for the arguments."""

  def __init__(
    self,
    command: Sequence[str],
    processes: int,
    devices_per_process: int | None,
    platform: Literal['cpu', 'gpu'],
    logs: pathlib.Path,
    environment: Mapping[str, str],
    terminal: bool,
  ):
    if processes < 1:
      raise ValueError(f'processes is {processes}; expected at least 1.')
    self._command, self._count = list(command), processes
    self._devices, self._platform = devices_per_process, platform
    self._environment = os.environ | dict(environment)
    self._terminal = terminal
    self._logs = [logs / f'process-{i}.log' for i in range(processes)]
    self._starts = [0] * processes
    self._running: Processes | None = None
    self._shown: BinaryIO | None = None
    self._decoder = codecs.getincrementaldecoder('utf-8')('replace')

  def start(self, attempt: int) -> None:
    self._logs[0].parent.mkdir(parents=True, exist_ok=True)
    now = time.strftime('%Y-%m-%d %H:%M:%S')
    for index, log in enumerate(self._logs):
      with log.open('ab') as file:
        file.write(f'== attempt {attempt}, {now}\n'.encode())
        self._starts[index] = file.tell()
    if self._shown:
      self._shown.close()
    self._shown = self._logs[0].open('rb')
    self._shown.seek(self._starts[0])
    self._running = Processes(
      [
        Command(self._command, environment, log)
        for environment, log in zip(self._environments(), self._logs, strict=True)
      ]
    )

  def poll(self) -> Sequence[int | None]:
    return self._running.poll() if self._running else []

  def signal(self, number: int) -> None:
    if self._running:
      self._running.signal(number)

  def kill(self) -> None:
    if self._running:
      self._running.close()

  def show(self) -> None:
    # The processes write to files themselves, so that they need no reader to go on.
    if self._shown and self._terminal:
      sys.stdout.write(self._decoder.decode(self._shown.read()))
      sys.stdout.flush()

  def tail(self, index: int) -> str:
    with self._logs[index].open('rb') as file:
      file.seek(self._starts[index])
      lines = file.read().decode(errors='replace').splitlines()[-_TAIL_LINES:]
    if not lines:
      return f'It has written nothing to {self._logs[index]}.'
    return '\n  '.join([f'The end of {self._logs[index]}:', *lines])

  def _environments(self) -> Iterator[dict[str, str]]:
    """The variables of each process."""
    base = self._environment | {'PYTHONUNBUFFERED': '1'}
    for name in DISTRIBUTED:
      base.pop(name, None)  # Of a job that this one is started in.
    if self._platform == 'cpu':
      base.setdefault('JAX_PLATFORMS', 'cpu')
      base['JAX_CPU_COLLECTIVES_IMPLEMENTATION'] = 'gloo'
      if self._devices:
        flags = base.get('XLA_FLAGS', '')
        flags += f' --xla_force_host_platform_device_count={self._devices}'
        base['XLA_FLAGS'] = flags.strip()
    address = f'127.0.0.1:{_free_port()}'
    for index in range(self._count):
      own = dict(base)
      if self._platform == 'gpu' and self._devices:
        first = index * self._devices
        mine = range(first, first + self._devices)
        own['CUDA_VISIBLE_DEVICES'] = ','.join(map(str, mine))
      if self._count > 1:
        values = (address, str(self._count), str(index))
        own |= dict(zip(DISTRIBUTED, values, strict=True))
      yield own


def _free_port() -> int:
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    return probe.getsockname()[1]


def supervise(
  command: Sequence[str],
  processes: int,
  *,
  devices_per_process: int | None = None,
  platform: Literal['cpu', 'gpu'] = 'cpu',
  max_restarts: int = 3,
  grace_seconds: float = 120.0,
  logs: pathlib.Path,
  environment: Mapping[str, str] | None = None,
  terminal: bool = True,
) -> int:
  """Runs a command as N processes of one job; all start again when one of them dies.

  Each process finds `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`
  in its environment, with a new port at each start; a job of one process does not.
  SIGTERM and SIGINT are passed on to all processes. If this process dies, by whatever
  signal, they die with it.

  Args:
    command: program and arguments of every process.
    processes: how many.
    devices_per_process: host devices of a CPU process; with `gpu`, the number of GPUs
      that each process sees. None leaves that to JAX.
    platform: `cpu` or `gpu`.
    max_restarts: failures after which all are started again. A process that ends with
      `restarts.SAVED` has not failed.
    grace_seconds: time to save between SIGTERM and SIGKILL.
    logs: folder of `process-N.log`, which go on over restarts.
    environment: variables besides those of this process.
    terminal: whether to show the output of process 0 and what happens.

  Returns:
    0 when all have finished, `restarts.SAVED` when stopped and saved.

  Raises:
    FileNotFoundError: there is no such program.
    RuntimeError: it was given up after too many failures, or could not be stopped in
      time; names the process, its exit code or signal, and the end of its log.
  """
  fleet = LocalFleet(
    command,
    processes,
    devices_per_process,
    platform,
    logs,
    environment or {},
    terminal,
  )
  supervisor = Supervisor(fleet, max_restarts, grace_seconds, terminal)
  with stopped_by_signals(supervisor):
    return supervisor.run()


def supervisor_of(job: Job, logs: pathlib.Path, terminal: bool = True) -> Supervisor:
  """What runs a job on this machine.

  Args:
    job: on `cpu:PROCESSES` or `cpu:PROCESSESxDEVICES`, or `gpu:PROCESSESxGPUS`.
    logs: folder of the logs.
    terminal: whether to show the output of process 0 and what happens.

  Raises:
    ValueError: the job needs what one machine does not have.
  """
  job.refuse('local', image='', bucket='', volume='', slices=1, spot=False)
  topology = job.topology
  if topology.kind not in ('cpu', 'gpu'):
    raise ValueError(f'topology is {topology}; the target local takes cpu or gpu.')
  environment = {}
  for name, value in job.environment.items():
    known = os.environ.get(name) if value is None else value
    if known is None or known.startswith(SECRET):
      raise ValueError(
        f'environment variable {name} has no value here; set it and give --env {name}.'
      )
    environment[name] = known
  fleet = LocalFleet(
    [sys.executable, '-m', 'composer_jax', *job.command[1:]],
    topology.hosts,
    topology.devices_per_host,
    'gpu' if topology.kind == 'gpu' else 'cpu',
    logs,
    environment,
    terminal,
  )
  return Supervisor(fleet, job.max_restarts, job.grace_seconds, terminal)


def render(job: Job, options: Options) -> dict[str, str]:
  """No files: this machine needs none besides the description of the job itself."""
  del options
  supervisor_of(job, pathlib.Path('logs'))  # Refuses what can't be run.
  return {}
