"""`composer-jax compose`: an image from conditions of other images."""

from __future__ import annotations

import argparse
import pathlib
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from composer_jax import conditions
from composer_jax.conditions import palette
from composer_jax.images import open_image
from composer_jax.sampling import expression as expressions
from composer_jax.seeds import generator
from composer_jax.shipped import model_folder

EPILOG = """examples:
  the lines and the colours of one image:
    composer-jax compose --model demo/model --from a.png --use sketch,palette \\
      --out c.png
  the lines of one, the colours of another:
    composer-jax compose --model demo/model --from a.png --use sketch \\
      --from b.png --use palette --out c.png
  a sketch, the colours of one of two images, and nothing like snow:
    composer-jax compose --model demo/model --out c.png \\
      --expression "sketch:a.png & (palette:b.png | palette:#aa3322) & !caption:'snow'"
  the sketch at half strength, and only in the first 60 % of the sampling:
    composer-jax compose --model demo/model --from a.png --use sketch,palette \\
      --strength sketch=0.5 --window sketch=0:0.6 --out c.png
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
        f'{part!r} is no colour; expected colours like #aa3322, or #aa3322:2 with'
        ' a weight above 0, separated by commas.'
      )
    digits = match[1] if len(match[1]) == 6 else ''.join(c * 2 for c in match[1])
    colours.append([int(digits[i : i + 2], 16) for i in (0, 2, 4)])
    weights.append(float(match[2] or 1))
  return palette.from_colours(np.array(colours, np.uint8), np.array(weights))


def parse_window(text: str) -> tuple[float, float]:
  """`0:0.6` to (0.0, 0.6).

  Raises:
    ValueError: it is not two shares of the sampling in order.
  """
  try:
    start, end = (float(part) for part in text.split(':'))
  except ValueError as error:
    raise ValueError(f'{text!r} is no window; expected START:END, as 0:0.6.') from error
  if not 0 <= start <= end <= 1:
    raise ValueError(f'{text!r} is no window; expected 0 <= START <= END <= 1.')
  return start, end


def parse_strength(text: str) -> float:
  """`0.5` to 0.5.

  Raises:
    ValueError: it is no number from 0 up.
  """
  if not re.fullmatch(r'\d{1,6}(\.\d*)?|\.\d+', text):
    raise ValueError(f'{text!r} is no strength; expected a number from 0 up, as 0.5.')
  return float(text)


def _named(flag: str, texts: list[str] | None, parse: Callable[[str], Any]) -> dict:
  """`NAME=VALUE` of each use of a flag, by name."""
  found = {}
  for text in texts or []:
    name, equals, value = text.partition('=')
    if not equals:
      raise ValueError(f'{flag} is {text!r}; expected NAME=VALUE.')
    (condition,) = conditions.by_name([name])
    found[condition.name] = parse(value)
  return found


class Values:
  """Stored values of conditions, from images, captions and colours."""

  def __init__(self, composer: Any, seed: int):
    self._composer, self._seed = composer, seed
    self._found: dict[str, dict[str, np.ndarray]] = {}

  def __call__(self, name: str, text: str) -> dict[str, np.ndarray]:
    """The condition that a text stands for: a caption, colours, or an image's own."""
    (condition,) = conditions.by_name([name])
    if condition.from_text:
      return self._composer.embed_caption(text)
    if name == palette.Palette.name and text.startswith('#'):
      return {name: parse_palette(text)}
    return {name: self.of_image(condition, text)}

  def of_image(self, condition: conditions.Condition, path: str) -> np.ndarray:
    name = condition.name
    if condition.from_text:
      raise ValueError(f'--use {name}: an image file has none; give --caption TEXT.')
    if path not in self._found:
      picture = open_image(path, name=path)
      self._found[path] = self._composer.decompose(picture, seed=self._seed)
    if name not in self._found[path]:
      raise ValueError(f'{name} of {path}: the model has no encoder/ to make it with.')
    return self._found[path][name]


SETTINGS = (
  'sampler',
  'steps',
  'spacing',
  'eta',
  'guidance',
  'rescale',
  'percentile',
  'tile',
  'overlap',
)


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog='composer-jax compose',
    description='Makes an image from any conditions of any images.',
    epilog=EPILOG,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument('--model', type=model_folder, required=True, metavar='DIR')
  parser.add_argument('--out', type=pathlib.Path, required=True, metavar='PNG')
  parser.add_argument('--again', type=pathlib.Path, metavar='PNG')
  what = parser.add_argument_group('what it follows')
  what.add_argument('--from', dest='sources', action='append', metavar='IMAGE')
  what.add_argument('--use', action='append', metavar='NAME,...')
  what.add_argument('--palette', metavar='#RRGGBB,...')
  what.add_argument('--caption', metavar='TEXT')
  what.add_argument('--expression', metavar='TEXT', help='with & | ! ( ) and weights')
  what.add_argument(
    '--base', metavar='TEXT', help='conditions that guidance leads away from'
  )
  what.add_argument('--strength', action='append', metavar='NAME=S', help='1 is all')
  what.add_argument(
    '--window', action='append', metavar='NAME=A:B', help='when, from 0 to 1'
  )
  what.add_argument(
    '--no-prior',
    action='store_true',
    default=None,
    help='no semantics from the caption, although the model has a prior',
  )
  how = parser.add_argument_group('how it is sampled')
  how.add_argument('--seed', type=int, help='0 to 4294967295; 0 by default')
  how.add_argument('--sampler', choices=('ddim', 'ddpm', 'dpm_solver'))
  how.add_argument('--steps', type=int, help='of the base model')
  how.add_argument('--spacing', choices=('leading', 'trailing', 'linspace'))
  how.add_argument('--eta', type=float, help='0 is DDIM, 1 as random as DDPM')
  how.add_argument('--guidance', type=float, help='1 is none')
  how.add_argument('--interval', metavar='A:B', help='when it guides, from 0 to 1')
  how.add_argument('--rescale', type=float, help='0 to 1, against too much contrast')
  how.add_argument('--percentile', type=float, help='of dynamic thresholding')
  large = parser.add_argument_group('how upsamplers make large images')
  large.add_argument('--tile', type=int, help='side of tiles, in pixels; 0 for none')
  large.add_argument('--overlap', type=int, help='of neighbouring tiles, in pixels')
  large.add_argument('--spatial', type=int, help='devices that share an image')
  return parser


def main(argv: list[str]) -> int:
  """Runs the verb; returns its exit status."""
  parser = _parser()
  flags = parser.parse_args(argv)
  sources, uses = flags.sources or [], flags.use or []
  if len(sources) != len(uses):
    parser.error('each --from IMAGE needs a --use NAME,... of its own')
  free = ('model', 'out', 'again', 'spatial')
  given = [name for name, value in vars(flags).items() if value is not None]
  if flags.again and set(given) - set(free):
    parser.error('--again takes everything from the PNG; leave out the rest')
  seed = 0 if flags.seed is None else flags.seed
  if not 0 <= seed < 2**32:
    parser.error(f'--seed is {seed}; expected 0 to 4294967295')
  for name in ('eta', 'guidance', 'rescale', 'percentile'):
    if not np.isfinite(getattr(flags, name) or 0):
      parser.error(f'--{name} is {getattr(flags, name)}; expected a finite number')
  if flags.caption is not None and not flags.caption.strip():
    parser.error('--caption is empty; leave it out for none')
  if flags.out.suffix.lower() != '.png' or flags.out.is_dir():
    parser.error(f'--out is {flags.out}; expected the name of a file in .png')
  if not flags.out.absolute().parent.is_dir():
    parser.error(f'--out is {flags.out}; its folder does not exist')
  wanted = [conditions.by_name(name.strip() for name in use.split(',')) for use in uses]
  asked = [condition.name for chosen in wanted for condition in chosen]
  if flags.palette is not None:
    asked.append(palette.Palette.name)
  if twice := [name for name in asked if asked.count(name) > 1]:
    parser.error(
      f'{twice[0]} is asked for twice; take one of them, or join both in --expression'
    )
  colours = None if flags.palette is None else parse_palette(flags.palette)
  strengths = _named('--strength', flags.strength, parse_strength)
  windows = _named('--window', flags.window, parse_window)
  settings = {name: getattr(flags, name) for name in SETTINGS if name in given}
  if flags.interval:
    settings['interval'] = parse_window(flags.interval)
  expression = expressions.parse(flags.expression) if flags.expression else None
  base = expressions.parse(flags.base) if flags.base else None

  from composer_jax import recipe as recipes
  from composer_jax.composer import Composer
  from composer_jax.config import SampleConfig, settings_from

  settings_from(SampleConfig(), settings)  # Before anything is loaded.
  composer = Composer.load(flags.model, spatial=flags.spatial)
  if flags.again:
    recipe = recipes.from_png(flags.again)
  else:
    values = Values(composer, seed)
    stored = {
      condition.name: values.of_image(condition, source)
      for source, chosen in zip(sources, wanted, strict=True)
      for condition in chosen
    }
    if colours is not None:
      stored[palette.Palette.name] = colours
    if flags.caption:
      stored |= composer.embed_caption(flags.caption)
    parts: list[expressions.Expression]
    parts = [expressions.Is(name, value) for name, value in stored.items()]
    if expression:
      parts.append(expressions.resolve(expression, values))
    rng = generator(seed, 'expression')
    away = {}
    if base:
      first, *rest = expressions.terms(expressions.resolve(base, values), rng)
      if rest:
        raise ValueError(
          f'--base is {flags.base!r}; expected conditions joined by &, each once.'
        )
      away = first.values
    first, *rest = expressions.terms(expressions.And(tuple(parts)), rng)
    if not flags.no_prior:
      first = first._replace(values=composer.imagine(first.values, seed))
    told = [first.values, *(term.values for term in rest), away]
    followed = set().union(*told)
    for flag, chosen in (('strength', strengths), ('window', windows)):
      if idle := chosen.keys() - followed:
        raise ValueError(
          f'--{flag} names {min(idle)}, which the image does not follow; expected any'
          f' of {", ".join(sorted(followed)) or "none"}.'
        )
    recipe = recipes.Recipe(
      model=composer.fingerprint,
      seed=seed,
      terms=(first, *rest),
      strengths=strengths,
      windows=windows,
      base=away,
      sampling=settings,
    )
  flags.out.write_bytes(recipes.to_png(recipes.make(composer, recipe), recipe))
  print(flags.out)
  return 0
