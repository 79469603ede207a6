"""`composer-jax import`: published weights to a model folder."""

from __future__ import annotations

import argparse
import pathlib

from composer_jax.weights.clip_weights import read_clip
from composer_jax.weights.karlo_decoder import read_decoder
from composer_jax.weights.karlo_prior import read_prior
from composer_jax.weights.karlo_upsampler import read_upsampler
from composer_jax.weights.model_folder import Kind, import_model

KINDS = {
  'clip': Kind(read_clip),
  'karlo-prior': Kind(read_prior, 'prior'),
  'karlo-decoder': Kind(read_decoder, 'decoder', 'text_proj'),
  'karlo-sr': Kind(read_upsampler, 'super_res_first'),
}

EPILOG = """kinds:
  clip           a CLIPModel of transformers: a dual encoder
  karlo-prior    a PriorTransformer of diffusers, such as Karlo's
  karlo-decoder  a UNet2DConditionModel, with its UnCLIPTextProjModel in text_proj/
                 beside it: a base model
  karlo-sr       a UNet2DModel: an upsampler

example:
  composer-jax import --kind clip --from clip-vit-large-patch14-336 --out models/clip
  composer-jax prepare --onto data/photos --encoder models/clip
"""


def main(argv: list[str]) -> int:
  """Runs the verb; returns its exit status."""
  parser = argparse.ArgumentParser(
    prog='composer-jax import',
    description='Makes a model folder of published weights in safetensors files, as'
    ' training would leave it. Nothing is downloaded, and no code of theirs runs.',
    epilog=EPILOG,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('--kind', choices=tuple(KINDS), required=True)
  parser.add_argument(
    '--from',
    dest='source',
    type=pathlib.Path,
    required=True,
    metavar='DIR',
    help='as published: config.json, safetensors, tokenizer; or the folder of the'
    ' pipeline that it is part of',
  )
  parser.add_argument('--out', type=pathlib.Path, required=True, metavar='DIR')
  flags = parser.parse_args(argv)
  imported = import_model(flags.kind, KINDS[flags.kind], flags.source, flags.out)
  licence = imported['licence'] or 'not stated in the folder'
  print(f'{flags.kind} of {imported["from"]} is in {flags.out}; licence: {licence}.')
  return 0
