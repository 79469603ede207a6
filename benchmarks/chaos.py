"""Kills one of several processes again and again, and compares with an unbroken run.

python benchmarks/chaos.py --data demo/data [--kills 10] [--processes 4]

A job of the demo's base model, made small, is killed at random times: one process gets
SIGKILL while the job starts, trains or saves; the others are ended as a launcher would;
all are started again. In the end every loss must have the bits of a run that nothing
happened to.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import random
import socket
import subprocess
import sys
import tempfile
import time

SMALL = (
  '--config.model.channels=16',
  '--config.model.multipliers=(1,)',
  '--config.model.attention=(True,)',
  '--config.model.head_width=8',
  '--config.model.context_width=16',
  '--config.model.local_hidden=8',
  '--config.model.local_width=8',
  "--config.model.conditions=('palette','sketch','intensity','mask')",
  '--config.data.batch_size=16',
  '--config.train.log_every=2',
  '--config.train.save_every=4',
)


def start(
  flags: argparse.Namespace, workdir: pathlib.Path
) -> list[subprocess.Popen[bytes]]:
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    port = probe.getsockname()[1]
  words = [
    *(sys.executable, '-m', 'composer_jax', 'train', '--config=configs/demo/base.py'),
    *(f'--workdir={workdir}', f'--config.data.path={flags.data}', *SMALL),
    f'--config.train.steps={flags.steps}',
  ]
  return [
    subprocess.Popen(
      words,
      env={
        **os.environ,
        'JAX_PLATFORMS': 'cpu',
        'JAX_CPU_COLLECTIVES_IMPLEMENTATION': 'gloo',
        'JAX_COORDINATOR_ADDRESS': f'127.0.0.1:{port}',
        'JAX_NUM_PROCESSES': str(flags.processes),
        'JAX_PROCESS_ID': str(index),
      },
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
    )
    for index in range(flags.processes)
  ]


def wait(processes: list[subprocess.Popen[bytes]]) -> bool:
  """Whether all have ended well; none is left."""
  ended = all(process.wait() == 0 for process in processes)
  for process in processes:
    process.kill()
  return ended


def losses(workdir: pathlib.Path) -> dict[int, float]:
  path = workdir / 'metrics.jsonl'
  if not path.exists():
    return {}
  rows = [json.loads(line) for line in path.open() if line.endswith('\n')]
  return {row['step']: row['loss'] for row in rows}


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--data', required=True, help='prepared at 64 pixels')
  parser.add_argument('--kills', type=int, default=10)
  parser.add_argument('--processes', type=int, default=4)
  parser.add_argument('--steps', type=int, default=200)
  parser.add_argument('--seed', type=int, default=0)
  flags = parser.parse_args()
  rng = random.Random(flags.seed)
  with tempfile.TemporaryDirectory() as folder:
    whole, broken = pathlib.Path(folder) / 'whole', pathlib.Path(folder) / 'broken'
    begin = time.monotonic()
    processes = start(flags, whole)
    while not losses(whole) and all(process.poll() is None for process in processes):
      time.sleep(0.1)
    first = time.monotonic() - begin
    if not wait(processes):
      raise SystemExit('The unbroken run has failed.')
    rest = time.monotonic() - begin - first
    print(f'unbroken: {first:.0f} s to the first loss, {rest:.0f} s more', flush=True)
    for number in range(1, flags.kills + 1):
      processes = start(flags, broken)
      # From the start-up to well into training, which has to outlast all kills.
      time.sleep(rng.uniform(0, first + 1.4 * rest / flags.kills))
      victim = rng.randrange(flags.processes)
      over = all(process.poll() == 0 for process in processes)
      processes[victim].kill()
      for process in processes:
        process.kill()
        process.wait()
      reached = max(losses(broken), default=0)
      print(f'kill {number}: process {victim}, step {reached}', flush=True)
      if over:
        break
    if not wait(start(flags, broken)):
      raise SystemExit('The last start has failed.')
    wanted, found = losses(whole), losses(broken)
  wrong = [step for step in wanted if found.get(step) != wanted[step]]
  print(f'steps with another loss than in the unbroken run: {len(wrong)}')
  return int(bool(wrong or found.keys() != wanted.keys()))


if __name__ == '__main__':
  sys.exit(main())
