"""The tables of docs/scale.md: paper-size models, compiled for pods.

python benchmarks/pods.py --out pods.jsonl [--only base] [--topology v5e:16x16]
  [--level O1]

Each line of the file is a compilation, which takes minutes; those that are there are
not done again. Prints the file as the tables of that page, and how long each took.
`--level O1` has the compiler optimise less, which is much faster and enough to know
what fits; what was compiled in full already stays.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterable, Sequence
from typing import Any

MODELS = {
  'prior': 'configs/paper/prior.py',
  'base': 'configs/paper/base64_stage2.py',
  'upsampler256': 'configs/paper/upsampler256.py',
  'upsampler1024': 'configs/paper/upsampler1024.py',
}
NAMES = {
  'prior': 'prior',
  'base': 'base',
  'upsampler256': '64 to 256',
  'upsampler1024': '256 to 1024',
}
PODS = ('v5p:4x4x8', 'v5e:16x16', 'v6e:16x16')
SAMPLER_SLICE, SAMPLER_BATCH = 'v5e:2x4', 8

WEAK = {'v5e:4x4': 128, 'v5e:8x8': 512, 'v5e:8x16': 1024, 'v5e:16x16': 2048}
"""Slices to images in a batch, eight on each chip: weak scaling of the base."""

WEAK_FSDP = 8
"""Along all 16 of the smallest the compiler would not scatter gradients."""


def jobs() -> list[dict[str, Any]]:
  train = [
    {'model': model, 'topology': pod, 'what': 'train', 'batch': None}
    for model in MODELS
    for pod in PODS
  ]
  sample = [
    {
      'model': model,
      'topology': SAMPLER_SLICE,
      'what': 'sample',
      'batch': SAMPLER_BATCH,
    }
    for model in MODELS
  ]
  weak = [
    {
      'model': 'base',
      'topology': pod,
      'what': 'train',
      'batch': batch,
      'fsdp': WEAK_FSDP,
    }
    for pod, batch in WEAK.items()
  ]
  return train + sample + weak


def job_of(row: dict[str, Any]) -> dict[str, Any]:
  return {key: row[key] for key in row if key not in ('level', 'found')}


def compile_one(job: dict[str, Any], level: str | None) -> dict[str, Any]:
  words = [
    *(sys.executable, '-m', 'composer_jax', 'compile', '--json'),
    f'--config={MODELS[job["model"]]}',
    f'--topology={job["topology"]}',
    f'--what={job["what"]}',
  ]
  if job['batch']:
    words.append(f'--config.data.batch_size={job["batch"]}')
  if 'fsdp' in job:
    words.append(f'--config.mesh.fsdp={job["fsdp"]}')
  settings = os.environ | ({'JAX_OPTIMIZATION_LEVEL': level} if level else {})
  done = subprocess.run(words, capture_output=True, text=True, env=settings)
  if not done.stdout.startswith('{'):
    return {'error': done.stderr.strip().splitlines()[-1][:500]}
  return json.loads(done.stdout)


def lines(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
  every = [head, ['---'] * len(head), *rows]
  return '\n'.join(f'| {" | ".join(row)} |' for row in every)


def costs(rows: list[dict[str, Any]]) -> str:
  head = ('model', 'program', 'slice', 'batch', 'memory of a chip', 'TFLOP a chip')
  head += ('GB moved', 'estimated step', 'images/s/chip', 'MFU', 'kernels')
  head += ('compiled in',)
  return lines(
    head,
    [[*name(row), *cost(row['found'], row.get('level'))] for row in rows],
  )


def name(row: dict[str, Any]) -> list[str]:
  return [NAMES[row['model']], row['what'], row['topology']]


def cost(found: dict[str, Any], level: str | None = None) -> list[str]:
  if 'error' in found:
    return ['', found['error'], *[''] * 7]
  seconds, speed = found['estimated_step_seconds'], found['images_per_second_per_chip']
  return [
    f'{speed * seconds * found["chips"]:.0f}',
    f'{found["total_bytes"] / 1e9:.1f} of {found["hbm_bytes"] / 1e9:.0f} GB',
    f'{found["flops_per_chip"] / 1e12:.1f}',
    f'{found["bytes_moved"] / 1e9:,.0f}',
    f'{seconds:.3g} s',
    f'{speed:.3g}',
    f'{found["mfu"]:.0%}',
    f'{found["kernel_seconds"]:.3g} s',
    f'{found["compile_seconds"]:.0f} s' + (f' ({level})' if level else ''),
  ]


def collectives(rows: list[dict[str, Any]]) -> str:
  kinds = ('all-gather', 'reduce-scatter', 'all-reduce')
  found = [row for row in rows if 'collectives' in row['found']]
  return lines(
    ('model', 'slice', *(f'{kind}s' for kind in kinds)),
    [
      [
        *(NAMES[row['model']], row['topology']),
        *(moved(row['found']['collectives'].get(kind)) for kind in kinds),
      ]
      for row in found
    ],
  )


def moved(collective: dict[str, int] | None) -> str:
  if collective is None:
    return ''
  return f'{collective["count"]}, {collective["bytes"] / 1e9:.1f} GB'


def weak_scaling(rows: list[dict[str, Any]]) -> str:
  """Of each slice the time of a step, also as a multiple of the smallest slice's."""
  found = [(row['topology'], row['found']) for row in rows if 'chips' in row['found']]
  seconds = [each['estimated_step_seconds'] for _, each in found]
  return lines(
    ('slice', 'chips', 'batch', 'memory of a chip', 'estimated step', 'of the first'),
    [
      [
        *(topology, str(each['chips']), *cost(each)[:2]),
        *(f'{time:.4f} s', f'{time / seconds[0]:.3f}'),
      ]
      for (topology, each), time in zip(found, seconds, strict=True)
    ],
  )


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--out', type=pathlib.Path, required=True)
  parser.add_argument('--only', choices=MODELS)
  parser.add_argument('--topology')
  parser.add_argument('--level', choices=('O0', 'O1'))
  flags = parser.parse_args()
  rows = []
  if flags.out.exists():
    rows = [json.loads(line) for line in flags.out.open()]
  for job in jobs():
    levels = [row.get('level') for row in rows if job_of(row) == job]
    wanted = flags.only in (None, job['model'])
    wanted &= flags.topology in (None, job['topology'])
    if None in levels or flags.level in levels or not wanted:
      continue
    print(job, flush=True)
    row = {**job, 'level': flags.level, 'found': compile_one(job, flags.level)}
    rows.append(row)
    with flags.out.open('a') as file:
      file.write(json.dumps(row) + '\n')
  rows.sort(key=lambda row: row.get('level') is None)  # Then these are the last.
  best = [[row for row in rows if job_of(row) == job][-1:] for job in jobs()]
  rows = [row for found in best for row in found]
  weak = [row for row in rows if 'fsdp' in row]
  rest = [row for row in rows if 'fsdp' not in row]
  trained = [row for row in rest if row['what'] == 'train']
  print('', costs(rest), collectives(trained), weak_scaling(weak), sep='\n\n')


if __name__ == '__main__':
  main()
