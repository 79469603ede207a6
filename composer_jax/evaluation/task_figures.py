"""Each task on held-out images, measured by the property that defines it.

Beside each figure stands what the same metric says where the wish is another image's,
or before the edit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import scipy

from composer_jax.composer import Composer
from composer_jax.conditions import by_name
from composer_jax.evaluation.evaluators import CANDIDATES
from composer_jax.evaluation.fidelity import HeldOut, captioned, derangement
from composer_jax.evaluation.figures import Figure, of_images
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

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Strengths at which a way between two images is looked at."""
INVERSION_STEPS = 100
"""Of the way to the noise and back, where an image is to be given back unedited."""


@dataclasses.dataclass(frozen=True)
class Result:
  """What a task did.

  Attributes:
    figures: that measure it.
    pictures: uint8 (N, S, S, 3) by what they are, in the order of the cases.
  """

  figures: list[Figure]
  pictures: dict[str, np.ndarray]


class Cases:
  """Held-out images with a caption, what they are, and another image for each.

  Args:
    composer: the model; it has a dual encoder.
    held_out: the images; at least `CANDIDATES` of them have a caption.
    sampling: as `Composer.compose` takes it.
  """

  def __init__(
    self, composer: Composer, held_out: HeldOut, sampling: Mapping[str, Any]
  ):
    if composer.encoder is None:
      raise ValueError('Tasks are measured on a model with an encoder/; it has none.')
    said = captioned(held_out)
    if len(said) < CANDIDATES:
      raise ValueError(
        f'{len(said)} of {len(held_out)} held-out images have a caption; expected at'
        f' least {CANDIDATES} to measure tasks.'
      )
    self.composer, self.encoder = composer, composer.encoder
    self.sampling = dict(sampling)
    self.images = held_out.images[said]
    self.texts = [held_out.captions[i] for i in said]
    self.other = derangement(len(said), held_out.seed)
    self.seeds = held_out.seeds[said]
    self.own = take_apart(composer, self.images, captions=self.texts)

  def found(self, made: np.ndarray, name: str) -> np.ndarray:
    """A condition measured in images that were made."""
    (condition,) = by_name([name])
    seen = resize_squares(made, self.composer.condition_size)
    if condition.embedded:
      return self.encoder.embed_images(seen)
    return np.stack(
      [condition.extract(Picture(one), generator(0, name)) for one in seen]
    )

  def scores(
    self, made: np.ndarray, name: str, wanted: np.ndarray, metric: str
  ) -> np.ndarray:
    """How well each image keeps what was wanted, by one metric of the condition."""
    (condition,) = by_name([name])
    pairs = zip(wanted, self.found(made, name), strict=True)
    return np.array([condition.fidelity(a, b)[metric] for a, b in pairs])

  def kept(
    self, made: np.ndarray, name: str, wanted: np.ndarray, metric: str
  ) -> Figure:
    """A metric, beside the same against the wishes of other images."""
    (condition,) = by_name([name])
    return of_images(
      f'{name} {metric}',
      self.scores(made, name, wanted, metric),
      higher_is_better=condition.higher_is_better[metric],
      beside=self.scores(made, name, wanted[self.other], metric),
      baseline='the wish of another',
    )


def psnr(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """Of each pair of uint8 images (N, S, S, 3), in dB, at most 108."""
  error = ((a.astype(float) - b.astype(float)) ** 2).mean((1, 2, 3))
  return 10 * np.log10(255**2 / np.maximum(error, 1e-6))


def _middle(count: int, side: int) -> np.ndarray:
  """A square region in the middle, half a side wide: bool (count, side, side)."""
  region = np.zeros((count, side, side), bool)
  region[:, side // 4 : 3 * side // 4, side // 4 : 3 * side // 4] = True
  return region


def _text_to_image(cases: Cases) -> Result:
  _, texts = cases.encoder.embed_captions(cases.texts)
  figures, pictures = [], {}
  ways = (True, False) if cases.composer.prior else (False,)
  for prior in ways:
    made = text_to_image(
      cases.composer,
      cases.texts,
      seeds=cases.seeds,
      prior=prior,
      sampling=cases.sampling,
    )
    seen = cases.found(made, 'semantics')
    hits: list[bool] = []
    for begin in range(0, len(made) - CANDIDATES + 1, CANDIDATES):
      part = slice(begin, begin + CANDIDATES)
      best = (seen[part] @ texts[part].T).argmax(1)
      hits += list(best == np.arange(CANDIDATES))
    name = 'with the prior' if prior else 'without the prior'
    figures.append(
      of_images(
        f'own caption among {CANDIDATES}, {name}',
        np.array(hits),
        beside=np.full(len(hits), 1 / CANDIDATES),
        baseline='chance',
      )
    )
    pictures[name] = made
  return Result(figures, pictures)


def _variation(cases: Cases) -> Result:
  count = len(cases.seeds)
  made, again = (
    variation(
      cases.composer,
      cases.images,
      seeds=cases.seeds + shift,
      sampling=cases.sampling,
    )
    for shift in (0, count)
  )
  figures = [
    cases.kept(made, name, cases.own[name], 'cosine')
    for name in ('semantics', 'palette')
  ]
  between = of_images(
    'PSNR between two seeds, dB', psnr(made, again), higher_is_better=False
  )
  return Result([*figures, between], {'one seed': made, 'another': again})


def _way(cases: Cases, made: list[np.ndarray]) -> list[Figure]:
  """Whether the colours leave those of one image for those of another, step by step."""
  ends = {
    'its own': (cases.own['palette'], True),
    'the other': (cases.own['palette'][cases.other], False),
  }
  figures = []
  for what, (wanted, rising) in ends.items():
    distances = np.array(
      [cases.scores(images, 'palette', wanted, 'earth_movers_lab') for images in made]
    )
    ranks = [scipy.stats.spearmanr(SHARES, row).statistic for row in distances.T]
    # Colours that never change have no rank.
    figures.append(
      of_images(
        f'rank correlation of strength and palette distance to {what}',
        np.nan_to_num(ranks),
        higher_is_better=rising,
      )
    )
  return figures


def _shown(made: list[np.ndarray]) -> dict[str, np.ndarray]:
  return {f'{share:.0%}': images for share, images in zip(SHARES, made, strict=True)}


def _interpolation(cases: Cases) -> Result:
  count, others = len(cases.images), cases.images[cases.other]
  made = [
    interpolation(
      cases.composer,
      cases.images,
      others,
      np.full(count, share),
      sampling=cases.sampling,
    )
    for share in SHARES
  ]
  side = cases.composer.sizes[0]
  ends = of_images(
    f'PSNR of the first image at {side} pixels, dB',
    psnr(resize_squares(made[0], side), resize_squares(cases.images, side)),
    beside=psnr(resize_squares(made[0], side), resize_squares(others, side)),
    baseline='of the other',
  )
  return Result([*_way(cases, made), ends], _shown(made))


def _style_transfer(cases: Cases) -> Result:
  count, others = len(cases.images), cases.images[cases.other]
  made = [
    style_transfer(
      cases.composer,
      cases.images,
      others,
      np.full(count, share),
      seeds=cases.seeds,
      sampling=cases.sampling,
    )
    for share in SHARES
  ]
  sketch = cases.kept(made[-1], 'sketch', cases.own['sketch'], 'f1')
  return Result([*_way(cases, made), sketch], _shown(made))


def _reconfiguration(cases: Cases) -> Result:
  composer = cases.composer
  side, full = composer.sizes[0], composer.image_size
  same = reconfiguration(
    composer,
    cases.images,
    {},
    captions=cases.texts,
    sampling={'steps': INVERSION_STEPS} | cases.sampling,
  )
  originals = resize_squares(cases.images, side)
  small = of_images(
    f'unedited, PSNR at {side} pixels, dB',
    psnr(resize_squares(same, side), originals),
    beside=psnr(resize_squares(same, side), originals[cases.other]),
    baseline='of another',
  )
  large = of_images(
    f'unedited, PSNR at {full} pixels, dB',
    psnr(same, resize_squares(cases.images, full)),
  )
  wanted = cases.own['palette'][cases.other]
  made = reconfiguration(
    composer, cases.images, {'palette': wanted}, sampling=cases.sampling
  )
  moved = of_images(
    'palette cosine to the edited one',
    cases.scores(made, 'palette', wanted, 'cosine'),
    beside=cases.scores(cases.images, 'palette', wanted, 'cosine'),
    baseline='before',
  )
  sketch = cases.kept(made, 'sketch', cases.own['sketch'], 'f1')
  return Result([small, large, moved, sketch], {'unedited': same, 'recoloured': made})


def _steps(images: np.ndarray, columns: tuple[int, ...], rows: slice) -> np.ndarray:
  """Mean step over vertical lines, in gray levels: (N,)."""
  jumps = [
    np.abs(images[:, rows, column] - images[:, rows, column - 1]).mean((1, 2))
    for column in columns
  ]
  return np.mean(jumps, axis=0)


def _region_editing(cases: Cases) -> Result:
  full = cases.composer.image_size
  region = _middle(len(cases.images), full)
  images = resize_squares(cases.images, full)
  wishes = {'palette': cases.own['palette'][cases.other]}
  made, free = (
    region_editing(
      cases.composer,
      images,
      region,
      asked,
      seeds=cases.seeds,
      sampling=cases.sampling,
    )
    for asked in (wishes, {})
  )
  inside = region[0]
  change = np.abs(made.astype(int) - images.astype(int))
  border, rows = (full // 4, 3 * full // 4), slice(full // 4, 3 * full // 4)
  return Result(
    [
      of_images(
        'largest change outside, gray levels',
        change[:, ~inside].max((1, 2)),
        higher_is_better=False,
      ),
      of_images('mean change inside, gray levels', change[:, inside].mean((1, 2))),
      of_images(
        'step over the border where nothing is asked, gray levels',
        _steps(free.astype(int), border, rows),
        higher_is_better=False,
        beside=_steps(images.astype(int), border, rows),
        baseline='in the original',
      ),
    ],
    {'in other colours': made, 'nothing asked': free},
  )


def _colorization(cases: Cases) -> Result:
  wanted = cases.own['palette'][cases.other]
  made = colorization(
    cases.composer, cases.images, wanted, seeds=cases.seeds, sampling=cases.sampling
  )
  return Result(
    [
      cases.kept(made, 'intensity', cases.own['intensity'], 'correlation'),
      cases.kept(made, 'palette', wanted, 'earth_movers_lab'),
    ],
    {'in the colours of another': made},
  )


def _translation(cases: Cases) -> Result:
  texts = [cases.texts[i] for i in cases.other]
  made = translation(
    cases.composer, cases.images, texts, seeds=cases.seeds, sampling=cases.sampling
  )
  wanted = take_apart(cases.composer, cases.images, ['caption'], texts)['caption']
  return Result(
    [
      cases.kept(made, 'sketch', cases.own['sketch'], 'f1'),
      cases.kept(made, 'caption', wanted, 'clip_score'),
    ],
    {'as what another is called': made},
  )


def _pose_transfer(cases: Cases) -> Result:
  poses = cases.images[cases.other]
  made = pose_transfer(
    cases.composer, cases.images, poses, seeds=cases.seeds, sampling=cases.sampling
  )
  wanted = cases.own['instances'][cases.other]
  return Result(
    [
      cases.kept(made, 'instances', wanted, 'mean_iou'),
      cases.kept(made, 'palette', cases.own['palette'], 'cosine'),
    ],
    {'pose': poses, 'in that pose': made},
  )


def _try_on(cases: Cases) -> Result:
  full = cases.composer.image_size
  region = _middle(len(cases.images), full)
  people, garments = resize_squares(cases.images, full), cases.images[cases.other]
  made = try_on(
    cases.composer,
    people,
    garments,
    region,
    seeds=cases.seeds,
    sampling=cases.sampling,
  )
  middle = slice(full // 4, 3 * full // 4)
  change = np.abs(made.astype(int) - people.astype(int))
  wanted = cases.own['palette'][cases.other]
  return Result(
    [
      of_images(
        'largest change outside, gray levels',
        change[:, ~region[0]].max((1, 2)),
        higher_is_better=False,
      ),
      of_images(
        'palette cosine inside to the garment',
        cases.scores(made[:, middle, middle], 'palette', wanted, 'cosine'),
        beside=cases.scores(people[:, middle, middle], 'palette', wanted, 'cosine'),
        baseline='before',
      ),
    ],
    {'garment': garments, 'worn in the middle': made},
  )


def _composition(cases: Cases) -> Result:
  others = cases.images[cases.other]
  made = composition(
    cases.composer,
    {'sketch': cases.images, 'palette': others},
    seeds=cases.seeds,
    sampling=cases.sampling,
  )
  wanted = cases.own['palette'][cases.other]
  return Result(
    [
      cases.kept(made, 'sketch', cases.own['sketch'], 'f1'),
      cases.kept(made, 'palette', wanted, 'cosine'),
    ],
    {'palette from': others, 'composed': made},
  )


def _boolean(cases: Cases) -> Result:
  """Not: along the sketch of each image, away from its palette."""
  scores, pictures = {}, {}
  for weight in (0.0, 1.0):
    wishes = []
    for sketch, palette in zip(cases.own['sketch'], cases.own['palette'], strict=True):
      away = expression.Not(expression.Is('palette', palette))
      parts = (expression.Is('sketch', sketch), expression.Weighted(weight, away))
      wishes.append(expression.terms(expression.And(parts), np.random.default_rng(0)))
    made = cases.composer.compose_terms(
      wishes, seeds=cases.seeds, sampling=cases.sampling
    )
    scores[weight] = cases.scores(made, 'palette', cases.own['palette'], 'cosine')
    pictures['sketch & !palette' if weight else 'sketch'] = made
  figure = of_images(
    'palette cosine under sketch & !palette',
    scores[1.0],
    higher_is_better=False,
    beside=scores[0.0],
    baseline='under sketch alone',
  )
  return Result([figure], pictures)


TASKS: dict[str, Callable[[Cases], Result]] = {
  'text-to-image': _text_to_image,
  'variation': _variation,
  'interpolation': _interpolation,
  'reconfiguration': _reconfiguration,
  'region-editing': _region_editing,
  'colorization': _colorization,
  'style-transfer': _style_transfer,
  'translation': _translation,
  'pose-transfer': _pose_transfer,
  'try-on': _try_on,
  'composition': _composition,
  'boolean': _boolean,
}
