"""What can be measured of composed images. Each evaluator has a name; others plug in.

An evaluator is a function of `Samples` that gives figures. Those of `EVALUATORS` are
built in; another one is named as `module:function`, where the function takes `Tools`
and gives an evaluator.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping

import jax
import numpy as np
from flax import nnx

from composer_jax import conditions as conditions_lib
from composer_jax.conditions import Encoder
from composer_jax.evaluation import distances
from composer_jax.evaluation.bootstrap import GROUPS
from composer_jax.evaluation.cache import digest_of
from composer_jax.evaluation.fidelity import HeldOut, captioned, judge
from composer_jax.evaluation.figures import Figure, of_images, of_sets
from composer_jax.images import resize_squares
from composer_jax.trained import in_batches, load_encoder

CANDIDATES = 32
"""Captions among which each image has to find its own, at most."""
MODELS = " (model's encoder)"
"""Added to the names of figures that compare within one encoder alone."""
ALL = 'all'
"""Name of the wish that is all conditions together."""
REAL = 'other real images'
"""What distances of composed images are held against."""


@dataclasses.dataclass(frozen=True)
class Samples:
  """What was composed from one kind of wish.

  Attributes:
    wish: its name, such as `palette`, `all` or `text`.
    given: names of the conditions that were asked for.
    held_out: originals, captions and conditions; N of them.
    generated: uint8 (N, S, S, 3), one for each.
    others: other real images, uint8 (M, S', S', 3), whose distance to the originals
      stands beside that of the composed ones; none if None.
  """

  wish: str
  given: tuple[str, ...]
  held_out: HeldOut
  generated: np.ndarray
  others: np.ndarray | None = None


Evaluator = Callable[[Samples], list[Figure]]


@dataclasses.dataclass(frozen=True)
class Tools:
  """What evaluators judge with.

  Attributes:
    encoder: the dual encoder of the model, or None.
    inception: a safetensors file of Inception v3, or None.
    clip: the folder of a CLIP model, as `composer-jax import --kind clip` leaves it;
      or None.
    count: images that there will be of each wish.
  """

  encoder: Encoder | None = None
  inception: str | os.PathLike[str] | None = None
  clip: str | pathlib.Path | None = None
  count: int = 64

  def check_count(self) -> None:
    """Refuses to compare sets that are too small for an interval."""
    if self.count < 2 * GROUPS:
      raise ValueError(
        f'{self.count} images to measure; expected at least {2 * GROUPS} for distances'
        ' between sets. Take more, or evaluators that need fewer, such as fidelity.'
      )


def fidelity(tools: Tools) -> Evaluator:
  """Each condition that was asked for, found again in the image; see `fidelity`."""
  del tools  # The encoder that made the wishes judges them.

  def evaluate(samples: Samples) -> list[Figure]:
    held_out = samples.held_out
    seen = resize_squares(samples.generated, held_out.images.shape[1])
    figures = []
    for condition in conditions_lib.by_name(samples.given):
      found = judge(held_out, condition, seen)
      if found is None:
        continue
      figures += [
        Figure(
          f'{condition.name} {metric.name}',
          metric.higher_is_better,
          metric.asked,
          len(found.indices),
          found.indices,
          metric.shuffled,
          'shuffled',
        )
        for metric in found.metrics
      ]
    return figures

  return evaluate


def set_distances(tools: Tools) -> Evaluator:
  """Distances between the composed and the real images as sets.

  On Inception's features they are FID, KID, precision and recall; without its weights,
  the same on the model's own encoder, which are named for that and compare with nothing
  but figures of the same encoder.
  """
  tools.check_count()
  features, suffix, published = _features(tools)
  of_real = _once(features)

  def evaluate(samples: Samples) -> list[Figure]:
    real, made = of_real(samples.held_out.images), features(samples.generated)
    count = len(real)
    # The jackknife leaves out a part of the samples.
    subset = min(1000, int(0.8 * count))
    subsets = 20 if subset < count // 2 else 1

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
      return distances.kernel(a, b, subset_size=subset, subsets=subsets).mean

    measures: dict[str, tuple[Distance, bool]] = {
      'FID' if published else 'FD': (distances.frechet, False),
      'KID' if published else 'KD': (kernel, False),
      'precision': (lambda a, b: distances.precision_recall(a, b).precision, True),
      'recall': (lambda a, b: distances.precision_recall(a, b).recall, True),
    }
    other = _as_many(samples.others, count)
    floor = None if other is None else of_real(other)
    return [
      of_sets(
        f'{name}{suffix}',
        _of_rows(distance, real, made),
        count,
        higher_is_better=higher,
        beside=None if floor is None else _of_rows(distance, real, floor),
        baseline=REAL,
        share=higher,  # Precision and recall.
      )
      for name, (distance, higher) in measures.items()
    ]

  return evaluate


Distance = Callable[[np.ndarray, np.ndarray], float]


def _of_rows(
  distance: Distance, a: np.ndarray, b: np.ndarray
) -> Callable[[np.ndarray], float]:
  """The distance between some rows of two sets."""
  return lambda rows: distance(a[rows], b[rows])


def _as_many(images: np.ndarray | None, count: int) -> np.ndarray | None:
  """The first images, if there are enough of them."""
  return None if images is None or len(images) < count else images[:count]


Features = Callable[[np.ndarray], np.ndarray]


def _features(tools: Tools) -> tuple[Features, str, bool]:
  """uint8 images to features (N, D); what to add to the names; whether Inception's."""
  if tools.inception is not None:
    return _inception(tools.inception), '', True
  encoder = tools.encoder
  if encoder is None:
    raise ValueError(
      'Distances need features: give --inception FILE, or a model with an encoder/.'
    )
  return encoder.embed_images, MODELS, False


def _once(features: Features) -> Features:
  """The same, computed once of the same images: real ones stand beside every wish."""
  known: dict[str, np.ndarray] = {}

  def of(images: np.ndarray) -> np.ndarray:
    digest = digest_of(images)
    if digest not in known:
      known[digest] = features(images)
    return known[digest]

  return of


def _inception(path: str | os.PathLike[str]) -> Features:
  from composer_jax.models.inception import resize
  from composer_jax.weights.inception_weights import read_inception

  graph, weights = nnx.split(read_inception(path))

  @jax.jit
  def features(weights: nnx.State, images: jax.Array) -> jax.Array:
    return nnx.merge(graph, weights)(resize(images))

  compiled = functools.partial(features, weights)
  return lambda images: in_batches(compiled, images, size=32)


def clip(tools: Tools) -> Evaluator:
  """CMMD and CLIP score, by a CLIP model that has no part in what is judged."""
  if tools.clip is None:
    raise ValueError('CMMD and CLIP score need --clip DIR, the folder of a CLIP model.')
  tools.check_count()
  encoder = load_encoder(tools.clip)
  of_real = _once(encoder.embed_images)

  def evaluate(samples: Samples) -> list[Figure]:
    real = of_real(samples.held_out.images)
    made = encoder.embed_images(samples.generated)
    other = _as_many(samples.others, len(real))
    floor = None if other is None else of_real(other)
    figures = [
      of_sets(
        'CMMD',
        _of_rows(distances.cmmd, real, made),
        len(real),
        beside=None if floor is None else _of_rows(distances.cmmd, real, floor),
        baseline=REAL,
      )
    ]
    said = captioned(samples.held_out)
    if len(said) >= 2:
      captions = [samples.held_out.captions[i] for i in said]
      _, texts = encoder.embed_captions(captions)
      figures.append(
        of_images(
          'CLIP score',
          distances.cosines(made[said], texts),
          beside=distances.cosines(real[said], texts),
          baseline='originals',
          real=True,
          indices=said,
        )
      )
    return figures

  return evaluate


def retrieval(tools: Tools) -> Evaluator:
  """Whether an image is nearest to its own caption among some random ones."""
  encoder = tools.encoder
  if encoder is None:
    raise ValueError('Retrieval needs a model with an encoder/.')

  def evaluate(samples: Samples) -> list[Figure]:
    held_out = samples.held_out
    said = captioned(held_out)
    among = min(CANDIDATES, len(said))
    if among < 2:
      return []
    _, texts = encoder.embed_captions([held_out.captions[i] for i in said])
    rng = np.random.default_rng(held_out.seed)
    rivals = np.stack(
      [
        rng.permutation(np.delete(np.arange(len(said)), row))[: among - 1]
        for row in range(len(said))
      ]
    )

    seen = encoder.embed_images(samples.generated[said])
    nearest_rival = np.einsum('nd,nkd->nk', seen, texts[rivals]).max(1)
    return [
      of_images(
        f'caption among {among}{MODELS}',
        (seen * texts).sum(1) > nearest_rival,
        beside=np.full(len(said), 1 / among),
        baseline='chance',
        indices=said,
      )
    ]

  return evaluate


EVALUATORS: dict[str, Callable[[Tools], Evaluator]] = {
  'fidelity': fidelity,
  'distances': set_distances,
  'clip': clip,
  'retrieval': retrieval,
}


def build(names: Iterable[str], tools: Tools) -> dict[str, Evaluator]:
  """Evaluators by name.

  Raises:
    ValueError: one is neither built in nor to be imported, or lacks what it needs.
  """
  found = {}
  for name in names:
    if name in EVALUATORS:
      found[name] = EVALUATORS[name](tools)
      continue
    module, colon, function = name.partition(':')
    if not colon:
      raise ValueError(
        f'Unknown evaluator {name!r}; expected {", ".join(EVALUATORS)}, or your own as'
        ' module:function.'
      )
    try:
      found[name] = getattr(importlib.import_module(module), function)(tools)
    except (ImportError, AttributeError) as error:
      raise ValueError(f'Evaluator {name!r} cannot be imported: {error}.') from error
  return found


def judged(judges: Mapping[str, Evaluator], samples: Samples) -> list[Figure]:
  """The figures of all evaluators."""
  return [figure for judge in judges.values() for figure in judge(samples)]
