"""How the benchmarks time two sides and print them."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable


def one_core() -> None:
  """Keeps this process, and the threads it starts, on one core."""
  if hasattr(os, 'sched_setaffinity'):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
  for name in ('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS'):
    os.environ[name] = '1'


def alternate(
  ours: Callable[[], int], theirs: Callable[[], int], *, rounds: int
) -> tuple[list[float], list[float]]:
  """Runs both sides in turn, so that a machine that slows down slows both.

  Args:
    ours: does some work; returns how many images.
    theirs: the same.
    rounds: of one run each, after two that are not counted: one compiles, and the
      next may once more, for what the first has put on the devices.

  Returns:
    Images a second of each run, on both sides.
  """
  speeds: tuple[list[float], list[float]] = ([], [])
  for number in range(-2, rounds):
    for side, work in enumerate((ours, theirs)):
      begin = time.perf_counter()
      count = work()
      speed = count / (time.perf_counter() - begin)
      if number >= 0:
        speeds[side].append(speed)
  return speeds


def show(
  title: str, unit: str, ours: list[float], their_name: str, theirs: list[float]
) -> float:
  """Prints medians, ranges and the ratio of each pair's speeds; returns its median."""
  ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
  print(f'\n{title} ({unit}, median of {len(ours)}, range)')
  for name, speeds in (('composer_jax', ours), (their_name, theirs)):
    low, high = min(speeds), max(speeds)
    print(f'  {name:28} {statistics.median(speeds):10.1f}   {low:.1f} to {high:.1f}')
  ratio = statistics.median(ratios)
  print(f'  {"ratio":28} {ratio:10.2f}   {min(ratios):.2f} to {max(ratios):.2f}')
  return ratio


def machine() -> str:
  """The processor and how many cores this process may use."""
  name = platform.processor() or platform.machine()
  try:
    with open('/proc/cpuinfo', encoding='utf-8') as file:
      name = next(line for line in file if 'model name' in line).partition(': ')[2]
  except (OSError, StopIteration):
    name = f'{name} '
  cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else '?'
  return f'{name.strip()}, {cores} core(s)'
