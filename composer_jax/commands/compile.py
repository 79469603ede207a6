"""`composer-jax compile`: what a config costs on TPUs that are not at hand."""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
from typing import TYPE_CHECKING

from composer_jax import config_files

if TYPE_CHECKING:
  from composer_jax.ahead_of_time import Compilation

EPILOG = """Fields of the config are set with --config.field=value.

example:
  composer-jax compile --config configs/paper/base64_stage2.py --topology v5p:4x4x8

With JAX_OPTIMIZATION_LEVEL=O1 it takes half as long and says as well whether it fits;
the kernels of that program are slow.
"""


def table(found: Compilation) -> str:
  """The figures, one a line."""
  rows = [
    ('parameters', f'{found.parameters / 1e9:.3f} billion'),
    ('chips', f'{found.chips}'),
    ('FLOPs a step and chip', f'{found.flops_per_chip / 1e12:.2f} T'),
    ('bytes moved', f'{found.bytes_moved / 1e9:.1f} GB'),
    *(
      (kind, f'{entry["count"]}, {entry["bytes"] / 1e9:.2f} GB')
      for kind, entry in found.collectives.items()
    ),
    ('arguments', f'{found.argument_bytes / 1e9:.2f} GB'),
    ('temporaries', f'{found.temporary_bytes / 1e9:.2f} GB'),
    (
      'memory',
      f'{found.total_bytes / 1e9:.2f} of {found.hbm_bytes / 1e9:.0f} GB:'
      f' {"fits" if found.fits else "does NOT fit"}',
    ),
    ('estimated step', f'{found.estimated_step_seconds:.4f} s'),
    ('cycles of its kernels', f'{found.kernel_seconds:.4f} s'),
    ('images a second and chip', f'{found.images_per_second_per_chip:.1f}'),
    ('share of the peak (MFU)', f'{found.mfu:.1%}'),
    ('compiled in', f'{found.compile_seconds:.0f} s'),
  ]
  width = max(len(name) for name, _ in rows)
  return '\n'.join(f'{name:{width}}  {value}' for name, value in rows)


def main(argv: list[str]) -> int:
  """Runs the verb; returns its exit status."""
  parser = argparse.ArgumentParser(
    prog='composer-jax compile',
    description="Compiles a config's train step or sampler for a TPU topology, with"
    ' shapes instead of arrays, and says what it costs. The exit status is 1 if it does'
    ' not fit the memory of its chips.',
    epilog=EPILOG,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument('--config', metavar='FILE', help='such as configs/paper/prior.py')
  parser.add_argument(
    '--topology', required=True, metavar='CHIP:EXTENT', help='such as v5e:16x16'
  )
  parser.add_argument(
    '--slices', type=int, default=1, metavar='N', help='of that extent; 1 by default'
  )
  parser.add_argument('--what', choices=('train', 'sample'), default='train')
  parser.add_argument(
    '--out', type=pathlib.Path, metavar='FILE', help='where the compiled program goes'
  )
  parser.add_argument('--json', action='store_true', help='all figures by name')
  flags, rest = parser.parse_known_args(argv)
  if flags.slices < 1:
    parser.error(f'--slices is {flags.slices}; expected 1 or more.')
  given = [f'--config={flags.config}'] if flags.config else []
  config = config_files.parse([*given, *rest])

  from composer_jax.ahead_of_time import compile_for, save_program

  found, compiled = compile_for(config, flags.topology, flags.what, flags.slices)
  if flags.out:
    save_program(compiled, flags.out)
  if flags.json:
    print(json.dumps(dataclasses.asdict(found) | {'fits': found.fits}, indent=2))
  else:
    print(table(found))
  return 0 if found.fits else 1
