"""`composer-jax export`: a trained model as a folder to hand on."""

from __future__ import annotations

import argparse
import pathlib

EPILOG = """formats:
  composer   what `composer_jax.load` opens: safetensors, configs, tokenizer, provenance
  diffusers  what the classes of diffusers open: prior, decoder and super-resolution,
             as far as models of ours are of their kind

example:
  composer-jax export --workdir demo/model --out composer-demo --dtype float16
"""


def main(argv: list[str]) -> int:
  """Runs the verb; returns its exit status."""
  parser = argparse.ArgumentParser(
    prog='composer-jax export',
    description='Writes a trained model as safetensors with all that belongs to it.',
    epilog=EPILOG,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument(
    '--workdir',
    type=pathlib.Path,
    required=True,
    metavar='DIR',
    help='a model folder, or that of a single run',
  )
  parser.add_argument('--out', type=pathlib.Path, required=True, metavar='DIR')
  parser.add_argument('--format', choices=('composer', 'diffusers'), default='composer')
  parser.add_argument(
    '--ema',
    action=argparse.BooleanOptionalAction,
    default=True,
    help='the averaged weights (default) or the last ones',
  )
  parser.add_argument(
    '--dtype',
    choices=('float32', 'float16', 'bfloat16'),
    default='float32',
    help='of the weights in the files',
  )
  parser.add_argument(
    '--compute',
    choices=('float32', 'bfloat16'),
    help='what the opened model computes in; as in training by default',
  )
  parser.add_argument(
    '--sampler',
    type=int,
    metavar='BATCH',
    help='also the compiled sampler of so many images, which needs JAX alone',
  )
  flags = parser.parse_args(argv)
  if flags.sampler is not None and (flags.sampler < 1 or flags.format != 'composer'):
    parser.error('--sampler takes a number above 0, and goes with --format composer')
  if flags.compute and flags.format != 'composer':
    parser.error('--compute goes with --format composer')
  if flags.format == 'diffusers':
    from composer_jax.weights.diffusers_export import export_diffusers

    written = export_diffusers(
      flags.workdir, flags.out, ema=flags.ema, dtype=flags.dtype
    )
    print(f'{", ".join(written)} for diffusers in {flags.out}')
    return 0

  from composer_jax.weights.export import export_model

  about = export_model(
    flags.workdir,
    flags.out,
    ema=flags.ema,
    dtype=flags.dtype,
    compute=flags.compute,
    sampler_batch=flags.sampler,
  )
  print(f'{", ".join(about["stages"])} in {flags.out}')
  return 0
