"""`composer-jax compose`: an image from conditions of other images."""

from __future__ import annotations

import argparse
import pathlib
import re

import numpy as np

from composer_jax import conditions
from composer_jax.conditions import palette
from composer_jax.images import open_image

EPILOG = """examples:
  the lines and the colours of one image:
    composer-jax compose --model demo/model --from a.png --use sketch,palette \\
      --out c.png
  the lines of one, the colours of another:
    composer-jax compose --model demo/model --from a.png --use sketch \\
      --from b.png --use palette --out c.png
  the same image again:
    composer-jax compose --model demo/model --again c.png --out d.png
"""


def parse_palette(text: str) -> np.ndarray:
  """Colours such as `#aa3322,#fff:2`, each with an optional weight, to a palette.

  Raises:
    ValueError: a colour is not one.
  """
  colours, weights = [], []
  for part in text.split(','):
    match = re.fullmatch(
      r'\s*#?([0-9a-fA-F]{6}|[0-9a-fA-F]{3})(?::(\d{1,9}(?:\.\d{1,9})?))?\s*', part
    )
    if not match or (match[2] and float(match[2]) <= 0):
      raise ValueError(
        f'--palette has {part!r}; expected colours like #aa3322, or #aa3322:2 with'
        ' a weight above 0, separated by commas.'
      )
    digits = match[1] if len(match[1]) == 6 else ''.join(c * 2 for c in match[1])
    colours.append([int(digits[i : i + 2], 16) for i in (0, 2, 4)])
    weights.append(float(match[2] or 1))
  return palette.from_colours(np.array(colours, np.uint8), np.array(weights))


def main(argv: list[str]) -> int:
  """Runs the verb; returns its exit status."""
  parser = argparse.ArgumentParser(
    prog='composer-jax compose',
    description='Makes an image from any conditions of any images.',
    epilog=EPILOG,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('--model', type=pathlib.Path, required=True, metavar='DIR')
  parser.add_argument('--from', dest='sources', action='append', metavar='IMAGE')
  parser.add_argument('--use', action='append', metavar='NAME,...')
  parser.add_argument('--palette', metavar='#RRGGBB,...')
  parser.add_argument('--caption', metavar='TEXT')
  parser.add_argument('--again', type=pathlib.Path, metavar='PNG')
  parser.add_argument('--seed', type=int, help='0 to 4294967295; 0 by default')
  parser.add_argument('--steps', type=int, help='DDIM steps of the base model')
  parser.add_argument('--guidance', type=float, help='1 is none')
  parser.add_argument('--eta', type=float, help='0 is DDIM, 1 as random as DDPM')
  parser.add_argument('--out', type=pathlib.Path, required=True, metavar='PNG')
  flags = parser.parse_args(argv)
  sources, uses = flags.sources or [], flags.use or []
  if len(sources) != len(uses):
    parser.error('each --from IMAGE needs a --use NAME,... of its own')
  own = ('seed', 'steps', 'guidance', 'eta', 'palette', 'caption')
  given = [name for name in own if getattr(flags, name) is not None]
  if flags.again and (sources or given):
    parser.error('--again takes everything from the PNG; leave out the rest')
  seed = 0 if flags.seed is None else flags.seed
  if not 0 <= seed < 2**32:
    parser.error(f'--seed is {seed}; expected 0 to 4294967295')
  for name in ('guidance', 'eta'):
    if not np.isfinite(getattr(flags, name) or 0):
      parser.error(f'--{name} is {getattr(flags, name)}; expected a finite number')
  if flags.caption == '':
    parser.error('--caption is empty; leave it out for none')
  if not flags.out.absolute().parent.is_dir():
    parser.error(f'--out is {flags.out}; its folder does not exist')
  wanted = [conditions.by_name(name.strip() for name in use.split(',')) for use in uses]

  from composer_jax import recipe as recipes
  from composer_jax.composer import Composer

  composer = Composer.load(flags.model)
  if flags.again:
    recipe = recipes.from_png(flags.again)
  else:
    stored = {}
    for source, chosen in zip(sources, wanted, strict=True):
      found = composer.decompose(open_image(source, name=source), seed=seed)
      for condition in chosen:
        if condition.from_text:
          raise ValueError(
            f'--use {condition.name}: an image file has none; give --caption TEXT.'
          )
        if condition.name not in found:
          raise ValueError(
            f'--use {condition.name}: {flags.model} has no encoder/ to make it with.'
          )
        stored[condition.name] = found[condition.name]
    if flags.palette:
      stored[palette.Palette.name] = parse_palette(flags.palette)
    if flags.caption:
      stored |= composer.embed_caption(flags.caption)
    recipe = recipes.Recipe(
      model=composer.fingerprint,
      seed=seed,
      steps=flags.steps,
      guidance=flags.guidance,
      eta=flags.eta,
      conditions=stored,
    )
  flags.out.write_bytes(recipes.to_png(recipes.make(composer, recipe), recipe))
  print(flags.out)
  return 0
