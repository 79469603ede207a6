"""`composer-jax task NAME`: one of the things that a Composer is for."""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import shlex
from collections.abc import Callable
from typing import Any

import numpy as np

from composer_jax import __version__
from composer_jax.commands.task_inputs import FLAGS, pixels_of, regions_of, sketch_of
from composer_jax.images import encode_png
from composer_jax.shipped import model_folder

MOST = 64
"""Images that one call makes, at most."""
MOVING = ('.gif', '.webp')
"""Endings of names of files in which images come one after another."""
FIELD = 'composer_jax_task'
"""Name of the text field of a PNG that says, as JSON, what made it."""


@dataclasses.dataclass(frozen=True)
class _Task:
  """A task on the command line.

  Attributes:
    what: it does, in a line.
    example: arguments that show it.
    flags: that it needs, of `FLAGS`.
    options: that it may be given, of `FLAGS`.
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


def _batch(composer: Any, path: str, count: int) -> np.ndarray:
  return np.stack([pixels_of(composer, path)] * count)


def _seeds(flags: argparse.Namespace) -> np.ndarray:
  return flags.seed + np.arange(flags.n)


def _wishes(composer: Any, flags: argparse.Namespace) -> dict[str, np.ndarray]:
  """What a caption and a palette ask for."""
  from composer_jax.tasks.parts import said

  found: dict[str, np.ndarray] = {}
  if flags.caption:
    found |= said(composer, [flags.caption] * flags.n, _seeds(flags))
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
    edits['sketch'] = sketch_of(flags.sketch, composer.condition_size)[None]
  edits |= dict.fromkeys(flags.drop or ())
  images = _batch(composer, flags.image, flags.n)
  return reconfiguration(composer, images, edits, sampling=sampling)


def _region_editing(composer: Any, flags: Any, sampling: dict[str, Any]) -> np.ndarray:
  from composer_jax.tasks.region_editing import region_editing

  return region_editing(
    composer,
    _batch(composer, flags.image, flags.n),
    regions_of(composer, flags),
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
    regions_of(composer, flags),
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
      own.add_argument(f'--{flag}', required=flag in task.flags, **FLAGS[flag])
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
  about = {
    'version': __version__,
    'model': composer.fingerprint,
    'command': shlex.join(['composer-jax', 'task', *argv]),
  }
  _write(flags.out, TASKS[flags.name].run(composer, flags, sampling), about)
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


def _write(path: pathlib.Path, images: np.ndarray, about: dict[str, str]) -> None:
  """Images side by side; or one after another, there and back, in an animated file."""
  if path.suffix.lower() not in MOVING:
    strip = np.concatenate(list(images), axis=1)
    path.write_bytes(encode_png(strip, text={FIELD: json.dumps(about)}))
    return
  from PIL import Image

  frames = [Image.fromarray(image) for image in images]
  frames += frames[-2:0:-1]
  frames[0].save(path, save_all=True, append_images=frames[1:], duration=80, loop=0)
