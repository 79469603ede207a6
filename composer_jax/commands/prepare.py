"""`composer-jax prepare`: images to a data set with all conditions."""

from __future__ import annotations

import argparse
import functools
import os
import pathlib
from typing import TYPE_CHECKING, Any

from composer_jax import conditions
from composer_jax.buckets import open_path
from composer_jax.shipped import model_folder

if TYPE_CHECKING:
  from composer_jax.trained import TrainedEncoder

EPILOG = """sources:
  twemoji            emoji drawings with their names (comes with a package)
  folder:PATH        any tree of images; captions from .txt files, jsonl or csv
  tfds:NAME          a TensorFlow Datasets set that is on disk
  webdataset:GLOB    .tar shards

folders, data sets included, may be in a bucket: s3://... (the extra `s3`) or gs://...
(the extra `gcs`)

learned extractors, from files on this machine (the extra `extractors`):
  --depth dpt:DIR | depth_anything:DIR
  --instances mask2former:DIR | maskformer:DIR | detr:DIR, or mask2former-panoptic:DIR
                     and so on for a panoptic model
  --sketch onnx:FILE[,FILE]
  --captions blip:DIR
  --semantics clip:DIR   a folder of `composer-jax import --kind clip` or of training

examples:
  composer-jax prepare --source folder:photos --out data/photos --size 64
  composer-jax prepare --source folder:photos --out data/learned --size 64 \\
      --depth dpt:models/dpt-large --captions blip:models/blip
  composer-jax prepare --source folder:s3://bucket/photos --out s3://bucket/data \\
      --engine ray --address 10.0.0.1:6379 --workers 64 --ray-cpus 2
"""

EXTRACTORS = {
  'depth': ('depth', 'what measures depth'),
  'instances': ('instances', 'what finds instances'),
  'sketch': ('sketch', 'what draws lines; a second file simplifies them'),
  'captions': ('text', 'what captions pictures that have no caption'),
}
"""Flag to the field of a record that it is about, and its help."""

RAY = {
  'address': (str, None, 'of the cluster; by default the one on this machine'),
  'ray_cpus': (float, 1, 'processors for each worker'),
  'ray_gpus': (float, 0, 'GPUs for each worker; fractions share one'),
  'ray_tpus': (float, 0, 'TPU chips for each worker'),
}
"""Flags of `--engine ray`: type, default and help."""


def _names(text: str) -> list[str]:
  if text == 'none':
    return []
  try:
    return [c.name for c in conditions.by_name(n.strip() for n in text.split(','))]
  except ValueError as error:
    # Of any other error argparse shows only the name of this function.
    raise argparse.ArgumentTypeError(str(error)) from error


def _encoder(text: str) -> pathlib.Path:
  kind, _, path = text.partition(':')
  if kind != 'clip' or not path:
    raise argparse.ArgumentTypeError(f'{text!r}, expected clip:DIR.')
  return model_folder(os.path.expanduser(path))


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
  kind.add_argument('--onto', metavar='DIR', help='add conditions to this data set')
  parser.add_argument('--out', metavar='DIR', help='with --source')
  parser.add_argument('--size', type=int, default=64, help='side in pixels')
  parser.add_argument('--shards', type=int, help='files in all; 1 a 512 images')
  parser.add_argument('--conditions', type=_names, metavar='NAME,...')
  parser.add_argument('--workers', type=int, default=0, help='processes; 0 is none')
  parser.add_argument('--engine', choices=('local', 'ray'), default='local')
  parser.add_argument('--crop', choices=('centre', 'random'), default='centre')
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument(
    '--copies',
    type=int,
    default=1,
    help='of each training image, over other backgrounds and in other crops',
  )
  parser.add_argument(
    '--encoder', type=model_folder, metavar='DIR', help='with --onto: a trained one'
  )
  parser.add_argument(
    '--overwrite',
    action='store_true',
    help="with --onto or --semantics: replace another encoder's",
  )
  for name, (kind_of, default, what) in RAY.items():
    flag = '--' + name.replace('_', '-')
    parser.add_argument(flag, type=kind_of, default=default, help=f'with Ray: {what}')
  for flag, (_, what) in EXTRACTORS.items():
    parser.add_argument(f'--{flag}', metavar='KIND:PATH', help=what)
  parser.add_argument(
    '--semantics',
    type=_encoder,
    metavar='clip:DIR',
    help='what embeds the original pictures, and the captions',
  )
  flags = parser.parse_args(argv)
  if flags.workers < 0:
    parser.error(f'--workers is {flags.workers}; expected 0 or more')
  return _add(parser, flags) if flags.onto else _make(parser, flags)


def _make(parser: argparse.ArgumentParser, flags: argparse.Namespace) -> int:
  from data_pipelines.prepare import prepare

  if flags.out is None:
    parser.error('--source needs --out DIR')
  if flags.encoder or (flags.overwrite and not flags.semantics):
    parser.error('--encoder and --overwrite go with --onto, not with --source')
  given = {field: getattr(flags, flag) for flag, (field, _) in EXTRACTORS.items()}
  engine, out = _engine(parser, flags), open_path(flags.out)
  encoder = None
  if flags.semantics:
    from composer_jax.trained import load_encoder

    encoder = load_encoder(flags.semantics)  # Hours may pass before it is used.
  info = prepare(
    flags.source,
    out,
    size=flags.size,
    shards=flags.shards,
    conditions=flags.conditions,
    extractors={field: spec for field, spec in given.items() if spec},
    workers=flags.workers,
    crop=flags.crop,
    seed=flags.seed,
    copies=flags.copies,
    engine=engine,
  )
  print(f'{info["kept"]} images in {out}')
  if info['rejected']:
    reasons = info['counts']['by_reason']
    listed = ', '.join(f'{count} {reason}' for reason, count in reasons.items())
    print(f'{info["rejected"]} left out ({listed}); see {out / "rejected.jsonl"}')
  if 'captioned' in info:
    print(f'{info["captioned"]} captions by {flags.captions}')
  if encoder:
    _embed_originals(flags, encoder, info)
  return 0


def _engine(parser: argparse.ArgumentParser, flags: argparse.Namespace) -> Any:
  if flags.engine == 'ray':
    from data_pipelines.engines import ray_engine

    ray_engine.require_ray()  # Before a long listing of the source.
    asked = {name.removeprefix('ray_'): getattr(flags, name) for name in RAY}
    return functools.partial(ray_engine.run, **asked)
  from data_pipelines.engines import local

  for name in RAY:
    if getattr(flags, name) != parser.get_default(name):
      parser.error(f'--{name.replace("_", "-")} goes with --engine ray')
  return local.run


def _embed_originals(
  flags: argparse.Namespace, encoder: TrainedEncoder, info: dict[str, Any]
) -> None:
  from data_pipelines.embed import prepare_onto
  from data_pipelines.extractors.semantics import Originals

  size = encoder.image_size
  names = [c.name for c in conditions.ALL if c.embedded]
  provenance = _provenance(encoder) | {
    'folder': flags.semantics.resolve().name,
    'pictures': f'originals, {size} x {size}',
  }
  prepare_onto(
    flags.out,
    names,
    encoder,
    provenance=provenance,
    originals=Originals(info, size),
    overwrite=flags.overwrite,
  )
  print(f'Added {", ".join(names)} to {flags.out}')


def _provenance(encoder: TrainedEncoder) -> dict[str, Any]:
  return {'weights': encoder.fingerprint, 'step': encoder.step}


def _add(parser: argparse.ArgumentParser, flags: argparse.Namespace) -> int:
  from composer_jax.trained import load_encoder
  from data_pipelines.embed import prepare_onto

  if flags.encoder is None:
    parser.error('--onto needs --encoder DIR')
  of_source = ('out', 'size', 'shards', 'workers', 'engine', 'crop', 'seed', 'copies')
  for name in (*of_source, *RAY, 'semantics', *EXTRACTORS):
    if getattr(flags, name) != parser.get_default(name):
      flag = name.replace('_', '-')
      parser.error(f'--{flag} goes with --source; --onto takes what is in DIR')
  names = flags.conditions or [c.name for c in conditions.ALL if c.embedded]
  encoder = load_encoder(flags.encoder)
  prepare_onto(
    flags.onto,
    names,
    encoder,
    provenance=_provenance(encoder),
    overwrite=flags.overwrite,
  )
  print(f'Added {", ".join(names)} to {flags.onto}')
  return 0
