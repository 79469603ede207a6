"""`composer-jax prepare`: images to a data set with all conditions."""

from __future__ import annotations

import argparse
import pathlib

from composer_jax import conditions

EPILOG = """sources:
  twemoji            emoji drawings with their names (comes with a package)
  folder:PATH        any tree of images; captions from .txt files, jsonl or csv
  tfds:NAME          a TensorFlow Datasets set that is on disk
  webdataset:GLOB    .tar shards

example:
  composer-jax prepare --source folder:photos --out data/photos --size 64
"""


def _names(text: str) -> list[str]:
  try:
    return [c.name for c in conditions.by_name(n.strip() for n in text.split(','))]
  except ValueError as error:
    # Of any other error argparse shows only the name of this function.
    raise argparse.ArgumentTypeError(str(error)) from error


def main(argv: list[str]) -> int:
  """Runs the verb; returns its exit status."""
  parser = argparse.ArgumentParser(
    prog='composer-jax prepare',
    description='Decodes images, extracts their conditions, writes shards of'
    ' ArrayRecord that TensorFlow Datasets opens. Run again to resume.',
    epilog=EPILOG,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  kind = parser.add_mutually_exclusive_group(required=True)
  kind.add_argument('--source', help='where the images are; see below')
  kind.add_argument(
    '--onto', type=pathlib.Path, metavar='DIR', help='add conditions to this data set'
  )
  parser.add_argument('--out', type=pathlib.Path, metavar='DIR', help='with --source')
  parser.add_argument('--size', type=int, default=64, help='side in pixels')
  parser.add_argument('--shards', type=int, help='files in all; 1 a 512 images')
  parser.add_argument('--conditions', type=_names, metavar='NAME,...')
  parser.add_argument('--workers', type=int, default=0, help='processes; 0 is none')
  parser.add_argument('--crop', choices=('centre', 'random'), default='centre')
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument(
    '--encoder', type=pathlib.Path, metavar='DIR', help='with --onto: a trained one'
  )
  parser.add_argument(
    '--overwrite', action='store_true', help="with --onto: replace another encoder's"
  )
  flags = parser.parse_args(argv)
  return _add(parser, flags) if flags.onto else _make(parser, flags)


def _make(parser: argparse.ArgumentParser, flags: argparse.Namespace) -> int:
  from data_pipelines.prepare import prepare

  if flags.out is None:
    parser.error('--source needs --out DIR')
  if flags.encoder or flags.overwrite:
    parser.error('--encoder and --overwrite go with --onto, not with --source')
  info = prepare(
    flags.source,
    flags.out,
    size=flags.size,
    shards=flags.shards,
    conditions=flags.conditions,
    workers=flags.workers,
    crop=flags.crop,
    seed=flags.seed,
  )
  print(f'{info["kept"]} images in {flags.out}')
  if info['rejected']:
    reasons = info['counts']['by_reason']
    listed = ', '.join(f'{count} {reason}' for reason, count in reasons.items())
    print(f'{info["rejected"]} left out ({listed}); see {flags.out / "rejected.jsonl"}')
  return 0


def _add(parser: argparse.ArgumentParser, flags: argparse.Namespace) -> int:
  from composer_jax.trained import load_encoder
  from data_pipelines.embed import prepare_onto

  if flags.encoder is None:
    parser.error('--onto needs --encoder DIR')
  for name in ('out', 'size', 'shards', 'workers', 'crop', 'seed'):
    if getattr(flags, name) != parser.get_default(name):
      parser.error(f'--{name} goes with --source; --onto takes what is in DIR')
  names = flags.conditions or [c.name for c in conditions.ALL if c.embedded]
  encoder = load_encoder(flags.encoder)
  prepare_onto(
    flags.onto,
    names,
    encoder,
    provenance={'weights': encoder.fingerprint, 'step': encoder.step},
    overwrite=flags.overwrite,
  )
  print(f'Added {", ".join(names)} to {flags.onto}')
  return 0
