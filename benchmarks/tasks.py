"""Each task on held-out images, measured by the property that defines it.

python benchmarks/tasks.py --data demo/data [--model demo] [--n 64] [--only NAME,...]

Beside each figure stands what the same metric says where the wish is another image's,
or before the edit. Means with 95 % bootstrap intervals.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
from scipy.stats import spearmanr

from composer_jax.composer import Composer
from composer_jax.conditions import by_name
from composer_jax.evaluation.bootstrap import estimate
from composer_jax.evaluation.fidelity import derangement
from composer_jax.images import Picture, resize_squares
from composer_jax.sampling import expression
from composer_jax.seeds import generator
from composer_jax.tasks.colorization import colorization
from composer_jax.tasks.composition import composition
from composer_jax.tasks.interpolation import interpolation
from composer_jax.tasks.parts import take_apart
from composer_jax.tasks.pose_transfer import pose_transfer
from composer_jax.tasks.reconfiguration import reconfiguration
from composer_jax.tasks.region_editing import region_editing
from composer_jax.tasks.style_transfer import style_transfer
from composer_jax.tasks.text_to_image import text_to_image
from composer_jax.tasks.translation import translation
from composer_jax.tasks.try_on import try_on
from composer_jax.tasks.variation import variation
from data_pipelines.loader import load_dataset

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


class Cases:
  """Held-out images, what they are, and other images for each."""

  def __init__(self, composer: Composer, data: str, count: int):
    self.composer = composer
    dataset = load_dataset(data, 'test')
    order = np.random.default_rng(0).permutation(len(dataset))
    records = [dataset[int(index)] for index in order]
    records = [record for record in records if record['text']][:count]
    if not 32 <= len(records) == count:
      raise ValueError(
        f'{data} has {len(records)} held-out images with a caption, --n is {count};'
        ' expected at least 32, and as many as there are.'
      )
    self.images = np.stack([record['image'] for record in records])
    self.texts = [record['text'] for record in records]
    self.other = derangement(count, 0)
    self.seeds = np.arange(count)
    self.own = take_apart(composer, self.images, captions=self.texts)

  def found(self, made: np.ndarray, name: str) -> np.ndarray:
    """A condition measured in images that were made."""
    (condition,) = by_name([name])
    seen = resize_squares(made, self.composer.condition_size)
    if condition.embedded:
      assert self.composer.encoder is not None
      return self.composer.encoder.embed_images(seen)
    return np.stack(
      [condition.extract(Picture(one), generator(0, name)) for one in seen]
    )

  def score(
    self, made: np.ndarray, name: str, wanted: np.ndarray, metric: str
  ) -> np.ndarray:
    """How well each image keeps what was wanted, by one metric of the condition."""
    (condition,) = by_name([name])
    pairs = zip(wanted, self.found(made, name), strict=True)
    return np.array([condition.fidelity(a, b)[metric] for a, b in pairs])

  def beside(
    self, what: str, made: np.ndarray, name: str, wanted: np.ndarray, metric: str
  ) -> None:
    """Prints a metric, and the same against the wishes of other images."""
    kept = estimate(self.score(made, name, wanted, metric))
    others = estimate(self.score(made, name, wanted[self.other], metric))
    show(what, f'{name} {metric}', kept, f'of another {others}')


def show(task: str, what: str, figure: object, beside: object = '') -> None:
  print(f'{task:16} {what:42} {figure!s:26} {beside}', flush=True)


def psnr(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  error = ((a.astype(float) - b.astype(float)) ** 2).mean((1, 2, 3))
  return 10 * np.log10(255**2 / np.maximum(error, 1e-6))


def middle(count: int, side: int) -> np.ndarray:
  """A square region in the middle, half a side wide: bool (count, side, side)."""
  region = np.zeros((count, side, side), bool)
  region[:, side // 4 : 3 * side // 4, side // 4 : 3 * side // 4] = True
  return region


def of_text(cases: Cases) -> None:
  encoder = cases.composer.encoder
  assert encoder is not None
  _, texts = encoder.embed_captions(cases.texts)
  for prior in (True, False):
    made = text_to_image(cases.composer, cases.texts, seeds=cases.seeds, prior=prior)
    seen = cases.found(made, 'semantics')
    hits = []
    for begin in range(0, len(made) - 31, 32):
      part = slice(begin, begin + 32)
      hits += list((seen[part] @ texts[part].T).argmax(1) == np.arange(32))
    name = 'with the prior' if prior else 'without the prior'
    chance = f'chance {1 / 32:.3f}'
    show('text to image', f'retrieval of 32, {name}', estimate(np.array(hits)), chance)


def of_variation(cases: Cases) -> None:
  made, again = (
    variation(cases.composer, cases.images, seeds=cases.seeds + shift)
    for shift in (0, len(cases.seeds))
  )
  cases.beside('variation', made, 'semantics', cases.own['semantics'], 'cosine')
  cases.beside('variation', made, 'palette', cases.own['palette'], 'cosine')
  show('variation', 'PSNR between two seeds, dB', estimate(psnr(made, again)))


def path_figures(cases: Cases, task: str, made: list[np.ndarray]) -> None:
  """Whether the colours leave those of one image for those of another."""
  far = [
    [cases.score(images, 'palette', wanted, 'earth_movers_lab') for images in made]
    for wanted in (cases.own['palette'], cases.own['palette'][cases.other])
  ]
  for distances, what in zip(far, ('from its own', 'to the other'), strict=True):
    rank = [spearmanr(SHARES, row)[0] for row in np.array(distances).T]
    means = ', '.join(f'{each.mean():.1f}' for each in distances)
    show(task, f'Spearman, palette distance {what}', estimate(np.array(rank)), means)


def of_interpolation(cases: Cases) -> None:
  count = len(cases.images)
  other = cases.images[cases.other]
  made = [
    interpolation(cases.composer, cases.images, other, np.full(count, share))
    for share in SHARES
  ]
  path_figures(cases, 'interpolation', made)
  side = cases.composer.sizes[0]
  ends = [psnr(resize_squares(made[0], side), resize_squares(cases.images, side))]
  ends += [psnr(resize_squares(made[-1], side), resize_squares(other, side))]
  show('interpolation', 'PSNR of its two ends, dB', *(estimate(e) for e in ends))


def of_style(cases: Cases) -> None:
  count = len(cases.images)
  other = cases.images[cases.other]
  made = [
    style_transfer(
      cases.composer, cases.images, other, np.full(count, share), seeds=cases.seeds
    )
    for share in SHARES
  ]
  path_figures(cases, 'style transfer', made)
  cases.beside('style transfer', made[-1], 'sketch', cases.own['sketch'], 'f1')


def of_reconfiguration(cases: Cases) -> None:
  composer = cases.composer
  side, full = composer.sizes[0], composer.image_size
  same = reconfiguration(
    composer, cases.images, {}, captions=cases.texts, sampling={'steps': 100}
  )
  small = estimate(psnr(resize_squares(same, side), resize_squares(cases.images, side)))
  large = estimate(psnr(same, resize_squares(cases.images, full)))
  show('reconfiguration', f'unedited, PSNR at {side}, dB', small, f'at {full}: {large}')
  wanted = cases.own['palette'][cases.other]
  made = reconfiguration(composer, cases.images, {'palette': wanted})
  cases.beside('reconfiguration', made, 'sketch', cases.own['sketch'], 'f1')
  before = estimate(cases.score(cases.images, 'palette', wanted, 'cosine'))
  after = estimate(cases.score(made, 'palette', wanted, 'cosine'))
  show('reconfiguration', 'palette cosine to the edited', after, f'before {before}')


def of_region(cases: Cases) -> None:
  count, full = len(cases.images), cases.composer.image_size
  region = middle(count, full)
  images = resize_squares(cases.images, full)
  wishes = {'palette': cases.own['palette'][cases.other]}
  made = region_editing(
    cases.composer, images, region, wishes, seeds=cases.seeds
  ).astype(int)
  change = np.abs(made - images.astype(int)).mean(-1)
  show('region editing', 'largest change outside, gray levels', change[~region].max())
  inside = region
  show('region editing', 'mean change inside', estimate(change[:, inside[0]].mean(1)))
  # Steps over the border of the region, and over lines beside it.
  low, high = full // 4, 3 * full // 4
  rows = slice(low, high)

  def steps(columns: tuple[int, ...]) -> np.ndarray:
    jumps = [
      np.abs(made[:, rows, c] - made[:, rows, c - 1]).mean((1, 2)) for c in columns
    ]
    return np.mean(jumps, axis=0)

  border = estimate(steps((low, high)))
  elsewhere = estimate(steps((low - 8, low + 8, high - 8, high + 8)))
  show(
    'region editing', 'step over the border, gray levels', border, f'beside {elsewhere}'
  )


def of_colors(cases: Cases) -> None:
  wanted = cases.own['palette'][cases.other]
  made = colorization(cases.composer, cases.images, wanted, seeds=cases.seeds)
  cases.beside('colorization', made, 'intensity', cases.own['intensity'], 'correlation')
  cases.beside('colorization', made, 'palette', wanted, 'earth_movers_lab')


def of_translation(cases: Cases) -> None:
  texts = [cases.texts[i] for i in cases.other]
  made = translation(cases.composer, cases.images, texts, seeds=cases.seeds)
  cases.beside('translation', made, 'sketch', cases.own['sketch'], 'f1')
  wanted = take_apart(cases.composer, cases.images, ['caption'], texts)['caption']
  cases.beside('translation', made, 'caption', wanted, 'clip_score')


def of_pose(cases: Cases) -> None:
  poses = cases.images[cases.other]
  made = pose_transfer(cases.composer, cases.images, poses, seeds=cases.seeds)
  wanted = cases.own['instances'][cases.other]
  cases.beside('pose transfer', made, 'instances', wanted, 'mean_iou')
  cases.beside('pose transfer', made, 'palette', cases.own['palette'], 'cosine')


def of_try_on(cases: Cases) -> None:
  count, full = len(cases.images), cases.composer.image_size
  region = middle(count, full)
  people, garments = resize_squares(cases.images, full), cases.images[cases.other]
  made = try_on(cases.composer, people, garments, region, seeds=cases.seeds)
  inside = region[0]
  low, high = full // 4, 3 * full // 4
  change = np.abs(made.astype(int) - people.astype(int))
  show('try-on', 'largest change outside, gray levels', change[:, ~inside].max())
  wanted = cases.own['palette'][cases.other]
  part = made[:, low:high, low:high]
  before = people[:, low:high, low:high]
  moved = estimate(cases.score(part, 'palette', wanted, 'cosine'))
  was = estimate(cases.score(before, 'palette', wanted, 'cosine'))
  show('try-on', 'palette cosine inside to the garment', moved, f'before {was}')


def of_composition(cases: Cases) -> None:
  other = cases.images[cases.other]
  made = composition(
    cases.composer, {'sketch': cases.images, 'palette': other}, seeds=cases.seeds
  )
  cases.beside('composition', made, 'sketch', cases.own['sketch'], 'f1')
  wanted = cases.own['palette'][cases.other]
  cases.beside('composition', made, 'palette', wanted, 'cosine')


def of_boolean(cases: Cases) -> None:
  """Not: along the sketch of each image, away from its palette."""
  for weight in (0.0, 0.5, 1.0):
    wishes = []
    for sketch, palette in zip(cases.own['sketch'], cases.own['palette'], strict=True):
      away = expression.Not(expression.Is('palette', palette))
      parts = (expression.Is('sketch', sketch), expression.Weighted(weight, away))
      wishes.append(expression.terms(expression.And(parts), np.random.default_rng(0)))
    made = cases.composer.compose_terms(wishes, seeds=cases.seeds)
    kept = estimate(cases.score(made, 'palette', cases.own['palette'], 'cosine'))
    show('boolean', f'palette cosine under {weight} * !palette', kept)


TASKS: dict[str, Callable[[Cases], None]] = {
  'text_to_image': of_text,
  'variation': of_variation,
  'interpolation': of_interpolation,
  'reconfiguration': of_reconfiguration,
  'region_editing': of_region,
  'colorization': of_colors,
  'style_transfer': of_style,
  'translation': of_translation,
  'pose_transfer': of_pose,
  'try_on': of_try_on,
  'composition': of_composition,
  'boolean': of_boolean,
}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--model', default='demo', metavar='DIR')
  parser.add_argument('--data', required=True, metavar='DIR')
  parser.add_argument('--n', type=int, default=64, help='cases, at least 32')
  parser.add_argument('--only', default=','.join(TASKS), metavar='NAME,...')
  flags = parser.parse_args()
  composer = Composer.load(flags.model)
  cases = Cases(composer, flags.data, flags.n)
  print(f'{flags.n} held-out cases; mean [95 % interval]')
  for name in flags.only.split(','):
    begin = time.monotonic()
    TASKS[name](cases)
    print(f'({name}: {time.monotonic() - begin:.0f} s)', flush=True)


if __name__ == '__main__':
  main()
