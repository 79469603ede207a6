"""The table of docs/scale.md: paper-size models, compiled for pods.

python benchmarks/pods.py --out pods.jsonl [--only base] [--topology v5e:16x16]

Each line of the file is a compilation, which takes minutes; those that are there are
not done again. Prints the file as a table.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import subprocess
import sys

MODELS = {
  'prior': 'configs/paper/prior.py',
  'base': 'configs/paper/base64_stage2.py',
  'upsampler256': 'configs/paper/upsampler256.py',
  'upsampler1024': 'configs/paper/upsampler1024.py',
}
PODS = ('v5p:4x4x8', 'v5e:16x16', 'v6e:16x16')
SAMPLER_SLICE, SAMPLER_BATCH = 'v5e:2x4', 8

WEAK = {'v5e:4x4': 64, 'v5e:8x8': 256, 'v5e:8x16': 512, 'v5e:16x16': 1024}
"""Slices to images in a batch, as many on each chip: weak scaling of the base."""

WEAK_FSDP = 16
"""What all of them have room for."""


def jobs() -> list[dict[str, object]]:
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


def compile_one(job: dict[str, object]) -> dict[str, object]:
  words = [
    *(sys.executable, '-m', 'composer_jax', 'compile', '--json'),
    f'--config={MODELS[str(job["model"])]}',
    f'--topology={job["topology"]}',
    f'--what={job["what"]}',
  ]
  if job['batch']:
    words.append(f'--config.data.batch_size={job["batch"]}')
  if 'fsdp' in job:
    words.append(f'--config.mesh.fsdp={job["fsdp"]}')
  done = subprocess.run(words, capture_output=True, text=True)
  if not done.stdout.startswith('{'):
    return {'error': done.stderr.strip().splitlines()[-1][:500]}
  return json.loads(done.stdout)


def table(rows: list[dict[str, object]]) -> str:
  head = (
    '| model | program | slice | fsdp | batch | memory, of | estimated s'
    ' | images/s/chip | MFU | TFLOP | GB moved | collectives | compiled in |'
  )
  lines = [head, '|' + '---|' * 13]
  for row in rows:
    name = (
      f'| {row["model"]} | {row["what"]} | {row["topology"]} | {row.get("fsdp", "")}'
    )
    found = row['found']
    assert isinstance(found, dict)
    if 'error' in found:
      lines.append(f'{name} | | {found["error"]} |' + ' |' * 7)
      continue
    seconds = found['estimated_step_seconds']
    speed = found['images_per_second_per_chip']
    collectives = ', '.join(
      f'{entry["count"]} {kind} ({entry["bytes"] / 1e9:.2f} GB)'
      for kind, entry in found['collectives'].items()
      if entry['bytes'] > 5e6
    )
    lines.append(
      f'{name} | {speed * seconds * found["chips"]:.0f}'
      f' | {found["total_bytes"] / 1e9:.1f} of {found["hbm_bytes"] / 1e9:.0f} GB'
      f' | {seconds:.4f} | {speed:.1f} | {found["mfu"]:.1%}'
      f' | {found["flops_per_chip"] / 1e12:.1f} | {found["bytes_moved"] / 1e9:.0f}'
      f' | {collectives} | {found["compile_seconds"]:.0f} s |'
    )
  return '\n'.join(lines)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--out', type=pathlib.Path, required=True)
  parser.add_argument('--only', choices=MODELS)
  parser.add_argument('--topology')
  flags = parser.parse_args()
  rows = []
  if flags.out.exists():
    rows = [json.loads(line) for line in flags.out.open()]
  done = [{key: row[key] for key in row if key != 'found'} for row in rows]
  for job in jobs():
    wanted = flags.only in (None, job['model'])
    if job in done or not wanted or flags.topology not in (None, job['topology']):
      continue
    print(job, flush=True)
    rows.append({**job, 'found': compile_one(job)})
    with flags.out.open('a') as file:
      file.write(json.dumps(rows[-1]) + '\n')
  print(table(rows))


if __name__ == '__main__':
  main()
