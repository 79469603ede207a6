"""`composer-jax decompose`: one image to its conditions."""

from __future__ import annotations

import argparse
import json
import pathlib
from typing import Any

import numpy as np

from composer_jax import __version__, conditions
from composer_jax.composer import decompose, square_of
from composer_jax.images import encode_png, open_image
from composer_jax.shipped import model_folder
from composer_jax.trained import load_encoder

LARGEST = 4096
"""Side in pixels; conditions of larger images do not fit most machines."""


def main(argv: list[str]) -> int:
  """Runs the verb; returns its exit status."""
  parser = argparse.ArgumentParser(
    prog='composer-jax decompose',
    description='Writes the conditions of an image: conditions.npz with one array'
    ' for each under its name and the pixels as `image`, conditions.json with their'
    ' types, and a picture of each.',
    epilog='example: composer-jax decompose photo.jpg --out conditions --size 64',
    allow_abbrev=False,
  )
  parser.add_argument('image', type=pathlib.Path)
  parser.add_argument('--out', type=pathlib.Path, required=True, metavar='DIR')
  parser.add_argument('--size', type=int, default=64, help='side in pixels')
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--caption', default='', help='what the image shows')
  parser.add_argument(
    '--model', type=model_folder, metavar='DIR', help='for semantics and caption'
  )
  flags = parser.parse_args(argv)
  if not 8 <= flags.size <= LARGEST:
    parser.error(f'--size is {flags.size}; expected 8 to {LARGEST}')
  encoder = None
  if flags.model:
    encoder = load_encoder(flags.model)
  square = square_of(open_image(flags.image, name=str(flags.image)), flags.size)
  found = decompose(
    square, flags.size, seed=flags.seed, caption=flags.caption, encoder=encoder
  )

  flags.out.mkdir(parents=True, exist_ok=True)
  arrays: dict[str, Any] = {'image': square.pixels, **found}
  np.savez_compressed(flags.out / 'conditions.npz', **arrays)
  about = {
    'version': __version__,
    'image': flags.image.name,
    'caption': flags.caption,
    'size': flags.size,
    'seed': flags.seed,
    'conditions': {
      c.name: {**c.spec(flags.size).to_json(), 'shape': found[c.name].shape}
      for c in conditions.by_name(found)
    },
    'left_out': [c.name for c in conditions.ALL if c.name not in found],
  }
  (flags.out / 'conditions.json').write_text(json.dumps(about, indent=2) + '\n')
  (flags.out / 'image.png').write_bytes(encode_png(square.pixels))
  for condition in conditions.by_name(found):
    picture = encode_png(condition.draw(found[condition.name]))
    (flags.out / f'{condition.name}.png').write_bytes(picture)
  for name in about['left_out']:  # The folder may have those of another image.
    (flags.out / f'{name}.png').unlink(missing_ok=True)
  print(f'{flags.out}: {", ".join(found)}')
  if about['left_out']:
    print(f'left out, for want of --model DIR: {", ".join(about["left_out"])}')
  return 0
