"""`composer-jax task NAME`: one of the things that a Composer is for."""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from composer_jax import conditions
from composer_jax.commands.compose import parse_palette
from composer_jax.images import encode_png, open_image
from composer_jax.shipped import model_folder

MOST = 64
"""Images that one call makes, at most."""
MOVING = ('.gif', '.webp')
"""Endings of names of files in which images come one after another."""


@dataclasses.dataclass(frozen=True)
class _Task:
  """A task on the command line.

  Attributes:
    what: it does, in a line.
    example: arguments that show it.
    flags: that it needs, of `_FLAGS`.
    options: that it may be given, of `_FLAGS`.
    run: from the model, the arguments and what the sampling takes to images.
    draws: whether there is something to draw from a seed, and guidance. What goes back
      from an image to its noise has neither.
  """

  what: str
  example: str
  flags: tuple[str, ...]
  options: tuple[str, ...]
  run: Callable[[Any, argparse.Namespace, dict[str, Any]], np.ndarray]
  draws: bool = True


def _names(text: str) -> tuple[str, ...]:
  return tuple(c.name for c in conditions.by_name(n.strip() for n in text.split(',')))


def _checked(parse: Callable[[str], Any]) -> Callable[[str], Any]:
  """What `parse` says of a bad text becomes what the command line says."""

  def read(text: str) -> Any:
    try:
      return parse(text)
    except ValueError as error:
      raise argparse.ArgumentTypeError(str(error)) from error

  return read


def _share(text: str) -> float:
  share = float(text)
  if not 0 <= share <= 1:
    raise ValueError(f'{text}, expected 0 to 1')
  return share


def _source(text: str) -> tuple[str, str]:
  """`sketch=a.png` to its two parts."""
  name, equals, path = text.partition('=')
  if not equals:
    raise ValueError(f'{text!r}, expected NAME=IMAGE')
  return _names(name)[0], path


def _box(text: str) -> tuple[float, ...]:
  """`0.2,0.2,0.8,0.6` to left, top, right and bottom, as shares of the sides."""
  parts = text.split(',')
  if len(parts) != 4:
    raise ValueError(f'{text!r} is no box; expected L,T,R,B, as 0.2,0.2,0.8,0.6')
  left, top, right, bottom = map(float, parts)
  if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
    raise ValueError(f'{text!r} is no box; expected 0 <= L < R <= 1, 0 <= T < B <= 1')
  return left, top, right, bottom


_IMAGE: dict[str, Any] = {'metavar': 'IMAGE'}
_FLAGS: dict[str, dict[str, Any]] = {
  'image': _IMAGE,
  'to': _IMAGE | {'help': 'where the way ends'},
  'style': _IMAGE | {'help': 'whose manner is taken'},
  'pose': _IMAGE | {'help': 'whose outlines are taken'},
  'garment': _IMAGE | {'help': 'what comes into the region'},
  'region': _IMAGE | {'help': 'white, or opaque, where the image may change; or --box'},
  'box': {
    'type': _checked(_box),
    'metavar': 'L,T,R,B',
    'help': 'the region as a rectangle, in shares of the middle square',
  },
  'caption': {'metavar': 'TEXT'},
  'palette': {'type': _checked(parse_palette), 'metavar': '#RRGGBB[:WEIGHT],...'},
  'sketch': _IMAGE | {'help': 'lines on a plain ground, instead of its own'},
  'keep': {
    'type': _checked(_names),
    'metavar': 'NAME,...',
    'help': 'conditions that stay',
  },
  'drop': {
    'type': _checked(_names),
    'metavar': 'NAME,...',
    'help': 'conditions to do without',
  },
  'move': {
    'type': _checked(_names),
    'metavar': 'NAME,...',
    'help': 'conditions that change',
  },
  'strength': {
    'type': _checked(_share),
    'default': 1.0,
    'help': '0 to 1; 1 by default',
  },
  'frames': {
    'type': int,
    'default': 8,
    'help': 'images on the way, both ends included; 8 by default',
  },
  'use': {
    'action': 'append',
    'type': _checked(_source),
    'metavar': 'NAME=IMAGE',
    'help': 'a condition and the image to take it from; once for each',
  },
  'expression': {'metavar': 'TEXT', 'help': 'with & | ! ( ) and weights'},
  'no-prior': {'action': 'store_true', 'help': 'from the caption alone'},
}


def _pixels(composer: Any, path: str) -> np.ndarray:
  """The middle of an image, transparent parts over white, at the model's side."""
  from composer_jax.composer import square_of

  return square_of(open_image(path, name=path), composer.image_size).pixels


def _batch(composer: Any, path: str, count: int) -> np.ndarray:
  return np.stack([_pixels(composer, path)] * count)


def _seeds(flags: argparse.Namespace) -> np.ndarray:
  return flags.seed + np.arange(flags.n)


def _drawn(path: str) -> np.ndarray:
  """What is drawn in the middle square of an image: bool (S, S).

  That is what is opaque, if anything is transparent; else, what is light.
  """
  picture = open_image(path, name=path)
  shown = picture.pixels.mean(-1) if picture.alpha is None else picture.alpha
  height, width = shown.shape
  side = min(height, width)
  top, left = (height - side) // 2, (width - side) // 2
  return shown[top : top + side, left : left + side] > 127


def _regions(composer: Any, flags: argparse.Namespace) -> np.ndarray:
  from composer_jax.tasks.region_editing import cover

  side = composer.image_size
  if flags.region:
    whole, marked = (open_image(p, name=p).pixels for p in (flags.image, flags.region))
    ratios = [pixels.shape[1] / pixels.shape[0] for pixels in (whole, marked)]
    if abs(ratios[0] / ratios[1] - 1) > 0.02:
      raise ValueError(
        f'{flags.region} is {ratios[1]:.2f} times as wide as high, {flags.image}'
        f' {ratios[0]:.2f} times; expected the same.'
      )
    region = cover(_drawn(flags.region)[None], side)[0]
    if not region.any():
      raise ValueError(f'{flags.region} has no white part, so nothing may change.')
  else:
    region = np.zeros((side, side), bool)
    left, top = (int(side * share) for share in flags.box[:2])
    right, bottom = (-int(-side * share // 1) for share in flags.box[2:])
    region[top:bottom, left:right] = True
  return np.stack([region] * flags.n)


def _sketch(path: str, side: int) -> np.ndarray:
  """Lines that someone has drawn, as the sketch condition: uint8 (side, side, 1)."""
  from skimage.morphology import skeletonize

  from composer_jax.tasks.region_editing import cover

  lines = _drawn(path)
  if lines.mean() > 0.5:  # Dark on light.
    lines = ~lines
  edges = skeletonize(cover(lines[None], side)[0])
  if not edges.any() or lines.mean() > 0.4:
    raise ValueError(
      f'{path}: {lines.mean():.0%} of it is drawn on; expected lines on a plain ground.'
    )
  return np.where(edges, 255, 0).astype(np.uint8)[..., None]


def _wishes(composer: Any, flags: argparse.Namespace) -> dict[str, np.ndarray]:
  """What a caption and a palette ask for."""
  found: dict[str, np.ndarray] = {}
  if flags.caption:
    made = [
      composer.imagine(composer.embed_caption(flags.caption), int(seed))
      for seed in _seeds(flags)
    ]
    found |= {name: np.stack([one[name] for one in made]) for name in made[0]}
  if flags.palette is not None:
    found['palette'] = np.stack([flags.palette] * flags.n)
  return found


def _text_to_image(composer: Any, flags: Any, sampling: dict[str, Any]) -> np.ndarray:
  from composer_jax.tasks.text_to_image import text_to_image

  return text_to_image(
    composer,
    [flags.caption] * flags.n,
    seeds=_seeds(flags),
    prior=not flags.no_prior,
    sampling=sampling,
  )


def _variation(composer: Any, flags: Any, sampling: dict[str, Any]) -> np.ndarray:
  from composer_jax.tasks.variation import variation

  more = {'keep': flags.keep} if flags.keep else {}
  images = _batch(composer, flags.image, flags.n)
  return variation(composer, images, seeds=_seeds(flags), sampling=sampling, **more)


def _interpolation(composer: Any, flags: Any, sampling: dict[str, Any]) -> np.ndarray:
  from composer_jax.tasks.interpolation import interpolation

  more = {'names': flags.move} if flags.move else {}
  return interpolation(
    composer,
    _batch(composer, flags.image, flags.frames),
    _batch(composer, flags.to, flags.frames),
    np.linspace(0, 1, flags.frames),
    held=flags.keep or (),
    sampling=sampling,
    **more,
  )


def _reconfiguration(composer: Any, flags: Any, sampling: dict[str, Any]) -> np.ndarray:
  from composer_jax.tasks.reconfiguration import reconfiguration

  edits: dict[str, Any] = _wishes(composer, flags)
  if flags.sketch:
    edits['sketch'] = _sketch(flags.sketch, composer.condition_size)[None]
  edits |= dict.fromkeys(flags.drop or ())
  images = _batch(composer, flags.image, flags.n)
  return reconfiguration(composer, images, edits, sampling=sampling)


def _region_editing(composer: Any, flags: Any, sampling: dict[str, Any]) -> np.ndarray:
  from composer_jax.tasks.region_editing import region_editing

  return region_editing(
    composer,
    _batch(composer, flags.image, flags.n),
    _regions(composer, flags),
    _wishes(composer, flags),
    seeds=_seeds(flags),
    sampling=sampling,
  )


def _colorization(composer: Any, flags: Any, sampling: dict[str, Any]) -> np.ndarray:
  from composer_jax.tasks.colorization import colorization

  palettes = np.stack([flags.palette] * flags.n)
  images = _batch(composer, flags.image, flags.n)
  return colorization(
    composer, images, palettes, seeds=_seeds(flags), sampling=sampling
  )


def _style_transfer(composer: Any, flags: Any, sampling: dict[str, Any]) -> np.ndarray:
  from composer_jax.tasks.style_transfer import style_transfer

  more = {'keep': flags.keep} if flags.keep else {}
  return style_transfer(
    composer,
    _batch(composer, flags.image, flags.n),
    _batch(composer, flags.style, flags.n),
    np.full(flags.n, flags.strength),
    seeds=_seeds(flags),
    sampling=sampling,
    **more,
  )


def _translation(composer: Any, flags: Any, sampling: dict[str, Any]) -> np.ndarray:
  from composer_jax.tasks.translation import translation

  more: dict[str, Any] = {'keep': flags.keep} if flags.keep else {}
  if flags.palette is not None:
    more['palettes'] = np.stack([flags.palette] * flags.n)
  return translation(
    composer,
    _batch(composer, flags.image, flags.n),
    [flags.caption] * flags.n,
    seeds=_seeds(flags),
    sampling=sampling,
    **more,
  )


def _pose_transfer(composer: Any, flags: Any, sampling: dict[str, Any]) -> np.ndarray:
  from composer_jax.tasks.pose_transfer import pose_transfer

  subjects, poses = (
    _batch(composer, flags.image, flags.n),
    _batch(composer, flags.pose, flags.n),
  )
  return pose_transfer(
    composer, subjects, poses, seeds=_seeds(flags), sampling=sampling
  )


def _try_on(composer: Any, flags: Any, sampling: dict[str, Any]) -> np.ndarray:
  from composer_jax.tasks.try_on import try_on

  return try_on(
    composer,
    _batch(composer, flags.image, flags.n),
    _batch(composer, flags.garment, flags.n),
    _regions(composer, flags),
    seeds=_seeds(flags),
    sampling=sampling,
  )


def _composition(composer: Any, flags: Any, sampling: dict[str, Any]) -> np.ndarray:
  from composer_jax.tasks.composition import composition

  sources = {name: _batch(composer, path, flags.n) for name, path in flags.use}
  return composition(composer, sources, seeds=_seeds(flags), sampling=sampling)


def _boolean(composer: Any, flags: Any, sampling: dict[str, Any]) -> np.ndarray:
  from composer_jax.commands.compose import Values
  from composer_jax.sampling import expression as expressions
  from composer_jax.tasks.boolean import boolean

  parsed = expressions.parse(flags.expression)
  asked = expressions.resolve(parsed, Values(composer, flags.seed))
  return boolean(composer, asked, seeds=_seeds(flags), sampling=sampling)


TASKS = {
  'text-to-image': _Task(
    'draw what a text says',
    "--caption 'red apple' --n 4",
    ('caption',),
    ('no-prior',),
    _text_to_image,
  ),
  'variation': _Task(
    'other images that share some conditions with one',
    '--image a.png --keep semantics,palette --n 4',
    ('image',),
    ('keep',),
    _variation,
  ),
  'interpolation': _Task(
    'the way from one image to another; .gif or .webp moves',
    '--image a.png --to b.png --frames 8',
    ('image', 'to'),
    ('frames', 'move', 'keep'),
    _interpolation,
    draws=False,
  ),
  'reconfiguration': _Task(
    'an image with some conditions exchanged, all else kept',
    "--image a.png --palette '#203050,#e0c080'",
    ('image',),
    ('palette', 'sketch', 'caption', 'drop'),
    _reconfiguration,
    draws=False,
  ),
  'region-editing': _Task(
    'new content in a part of an image',
    "--image a.png --box 0.5,0,1,1 --caption 'smiling face'",
    ('image',),
    ('region', 'box', 'caption', 'palette'),
    _region_editing,
  ),
  'colorization': _Task(
    'light and shade of an image in given colours',
    "--image a.png --palette '#aa3322:2,#ffeecc'",
    ('image', 'palette'),
    (),
    _colorization,
  ),
  'style-transfer': _Task(
    'what one image shows in the manner of another',
    '--image a.png --style b.png --strength 0.7',
    ('image', 'style'),
    ('strength', 'keep'),
    _style_transfer,
  ),
  'translation': _Task(
    'the shapes of an image as what a text says',
    "--image a.png --caption 'green frog'",
    ('image', 'caption'),
    ('palette', 'keep'),
    _translation,
  ),
  'pose-transfer': _Task(
    'what one image shows in the outlines of another',
    '--image a.png --pose b.png',
    ('image', 'pose'),
    (),
    _pose_transfer,
  ),
  'try-on': _Task(
    'what one image shows in a region of another',
    '--image person.png --garment shirt.png --box 0.2,0.5,0.8,1',
    ('image', 'garment'),
    ('region', 'box'),
    _try_on,
  ),
  'composition': _Task(
    'each condition from an image of its own',
    '--use sketch=a.png --use palette=b.png',
    ('use',),
    (),
    _composition,
  ),
  'boolean': _Task(
    'conditions joined by And, Or and Not',
    "--expression 'sketch:a.png & (palette:b.png | palette:#aa3322)'",
    ('expression',),
    (),
    _boolean,
  ),
}


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog='composer-jax task',
    description='One of the things that a Composer is for.',
  )
  names = parser.add_subparsers(dest='name', metavar='NAME', required=True)
  for name, task in TASKS.items():
    own = names.add_parser(
      name,
      help=task.what,
      description=f'{task.what[0].upper()}{task.what[1:]}.',
      epilog=f'example:\n  composer-jax task {name} {task.example} --out out.png',
      formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for flag in (*task.flags, *task.options):
      own.add_argument(f'--{flag}', required=flag in task.flags, **_FLAGS[flag])
    own.add_argument(
      '--model',
      type=model_folder,
      default='demo',
      metavar='DIR',
      help='by default the one that comes with the package',
    )
    own.add_argument('--out', type=pathlib.Path, required=True, metavar='FILE')
    own.add_argument('--steps', type=int, help='of the base model')
    if task.draws:
      own.add_argument('--n', type=int, default=1, help='images, side by side')
      own.add_argument('--seed', type=int, default=0, help='of the first image')
      own.add_argument('--guidance', type=float, help='1 is none')
    own.set_defaults(n=1, seed=0, guidance=None, parser=own)
  return parser


def main(argv: list[str]) -> int:
  """Runs the verb; returns its exit status."""
  flags = _parser().parse_args(argv)
  _check(flags.parser, flags)
  names = ('steps', 'guidance')
  sampling = {n: getattr(flags, n) for n in names if getattr(flags, n) is not None}

  from composer_jax.composer import Composer
  from composer_jax.config import SampleConfig, settings_from

  settings_from(SampleConfig(), sampling)  # Before anything is loaded.
  composer = Composer.load(flags.model)
  _write(flags.out, TASKS[flags.name].run(composer, flags, sampling))
  print(flags.out)
  return 0


def _check(parser: argparse.ArgumentParser, flags: argparse.Namespace) -> None:
  """Ends with a message where arguments make no sense, before anything is loaded."""
  given = vars(flags)
  if not 1 <= flags.n <= MOST:
    parser.error(f'--n is {flags.n}; expected 1 to {MOST}')
  if 'frames' in given and not 2 <= flags.frames <= MOST:
    parser.error(f'--frames is {flags.frames}; expected 2 to {MOST}')
  if not 0 <= flags.seed < 2**32 - MOST:
    parser.error(f'--seed is {flags.seed}; expected 0 to {2**32 - MOST - 1}')
  if given.get('caption') == '':
    parser.error('--caption is empty')
  if 'box' in given and (flags.box is None) == (flags.region is None):
    parser.error('expected either --region IMAGE or --box L,T,R,B')
  if 'use' in given and len(dict(flags.use)) < len(flags.use):
    parser.error('--use names a condition twice')
  if flags.out.suffix.lower() not in ('.png', *MOVING):
    parser.error(f'--out is {flags.out}; expected a name in .png, .gif or .webp')
  if not flags.out.absolute().parent.is_dir():
    parser.error(f'--out is {flags.out}; its folder does not exist')


def _write(path: pathlib.Path, images: np.ndarray) -> None:
  """Images side by side; or one after another, there and back, in an animated file."""
  if path.suffix.lower() not in MOVING:
    path.write_bytes(encode_png(np.concatenate(list(images), axis=1)))
    return
  from PIL import Image

  frames = [Image.fromarray(image) for image in images]
  frames += frames[-2:0:-1]
  frames[0].save(path, save_all=True, append_images=frames[1:], duration=80, loop=0)
