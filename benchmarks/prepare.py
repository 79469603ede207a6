"""Preparing images on one core, beside a plain loop over scikit-image.

Both sides take the same PNG files of drawings with transparency and make, at 64 x 64,
the image and what needs no trained encoder: palette, sketch, instances, depth,
intensity and mask. Ours also writes its shards. Embeddings (caption, semantics) come
from the demo's dual encoder where `--encoder DIR` gives a trained one.

Run:  python benchmarks/prepare.py [--encoder demo/model/encoder]
"""

from __future__ import annotations

import argparse
import pathlib
import tempfile
import time

from timing import alternate, machine, one_core, show

one_core()

import numpy as np  # noqa: E402 - after the number of threads is set
import skimage.color  # noqa: E402
import skimage.feature  # noqa: E402
import skimage.io  # noqa: E402
import skimage.measure  # noqa: E402
import skimage.morphology  # noqa: E402
import skimage.transform  # noqa: E402
from scipy import ndimage  # noqa: E402

from composer_jax.conditions import ALL  # noqa: E402
from composer_jax.conditions.palette import codebook  # noqa: E402
from composer_jax.images import Picture  # noqa: E402
from composer_jax.seeds import generator  # noqa: E402
from data_pipelines.embed import prepare_onto  # noqa: E402
from data_pipelines.loader import load_dataset  # noqa: E402
from data_pipelines.prepare import prepare  # noqa: E402
from data_pipelines.sources.twemoji import TwemojiSource  # noqa: E402

SIZE = 64


def write_drawings(folder: pathlib.Path, count: int) -> None:
  """Some emoji as PNG files of 72 x 72 with alpha."""
  source = TwemojiSource()
  step = len(source.keys()) // count
  for number in range(count):
    picture = source.load(number * step, 72).picture
    alpha = picture.alpha
    if alpha is None:
      alpha = np.full(picture.pixels.shape[:2], 255, np.uint8)
    image = np.dstack([picture.pixels, alpha])
    skimage.io.imsave(folder / f'{number:04d}.png', image, check_contrast=False)


def ours(folder: pathlib.Path) -> int:
  """Prepares the folder, then draws what is drawn each time a record is read."""
  with tempfile.TemporaryDirectory() as out:
    info = prepare(f'folder:{folder}', out, size=SIZE, progress=False, test_fraction=0)
    dataset = load_dataset(out)
    drawn = [condition for condition in ALL if not condition.stored]
    for index in range(len(dataset)):
      picture = Picture(dataset[index]['image'])
      for condition in drawn:
        condition.extract(picture, generator(index, condition.name))
  return info['kept']


def plain_loop(folder: pathlib.Path) -> int:
  """What one would write first: scikit-image and NumPy, an image at a time."""
  rng = np.random.default_rng(0)
  centres = skimage.color.rgb2lab(codebook())
  apart = ((centres[:, None] - centres[None]) ** 2).sum(-1)
  kernel = np.exp(-apart / 200)
  kernel /= kernel.sum(1, keepdims=True)
  paths = sorted(folder.glob('*.png'))
  for path in paths:
    rgba = skimage.io.imread(path)
    rgba = skimage.transform.resize(rgba, (SIZE, SIZE), anti_aliasing=True)
    alpha = rgba[..., 3:]
    image = rgba[..., :3] * alpha + rng.random(3) * (1 - alpha)
    lab = skimage.color.rgb2lab(image).reshape(-1, 3)
    nearest = ((lab[:, None] - centres[None]) ** 2).sum(-1).argmin(1)
    share = np.bincount(nearest, minlength=len(centres)) / len(lab)
    palette = kernel @ share
    gray = image @ np.array([0.299, 0.587, 0.114])
    sketch = skimage.morphology.skeletonize(skimage.feature.canny(gray, sigma=0.8))
    instances = skimage.measure.label(alpha[..., 0] > 0.5)
    depth = np.zeros((SIZE, SIZE))
    for one in range(1, instances.max() + 1):
      depth += ndimage.distance_transform_edt(instances == one)
    mask = np.dstack([image, np.ones((SIZE, SIZE))])
    top, left = rng.integers(0, SIZE // 2, 2)
    mask[top : top + SIZE // 2, left : left + SIZE // 2] = 0
    assert palette.shape == (180,)
    assert sketch.shape == depth.shape == mask.shape[:2]
  return len(paths)


def embed(folder: pathlib.Path, encoder_dir: pathlib.Path) -> float:
  """Images a second of adding caption and semantics."""
  from composer_jax.trained import load_encoder

  encoder = load_encoder(encoder_dir)
  with tempfile.TemporaryDirectory() as out:
    info = prepare(f'folder:{folder}', out, size=SIZE, progress=False)
    names = [condition.name for condition in ALL if condition.embedded]
    for _ in range(2):  # The first compiles.
      begin = time.perf_counter()
      prepare_onto(
        out, names, encoder, provenance={'at': begin}, overwrite=True, progress=False
      )
  return info['kept'] / (time.perf_counter() - begin)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--images', type=int, default=500)
  parser.add_argument('--rounds', type=int, default=3)
  parser.add_argument('--encoder', type=pathlib.Path, metavar='DIR')
  flags = parser.parse_args()
  print(machine())
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    write_drawings(folder, flags.images)
    speeds = alternate(
      lambda: ours(folder), lambda: plain_loop(folder), rounds=flags.rounds
    )
    show('Prepare', 'images a second a core', speeds[0], 'scikit-image loop', speeds[1])
    if flags.encoder:
      speed = embed(folder, flags.encoder)
      both = 1 / (1 / sorted(speeds[0])[len(speeds[0]) // 2] + 1 / speed)
      print(f'\nCaption and semantics: {speed:.1f} images a second a core')
      print(f'All eight conditions: {both:.1f} images a second a core')


if __name__ == '__main__':
  main()
