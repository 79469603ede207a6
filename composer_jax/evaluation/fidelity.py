"""Does a composed image keep the conditions that it was composed from?

Each condition is asked for, an image is generated, and the condition is measured
again in the pixels of that image. Two figures stand beside the result: the same
metric when every image is held against the wish of another one, which is what a model
reaches that ignores the condition, and the metric of the original image itself,
measured again from its pixels alone, which is what a perfect model reaches.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from composer_jax import conditions as conditions_lib
from composer_jax.conditions import Condition, Encoder
from composer_jax.evaluation.bootstrap import Estimate, estimate, paired
from composer_jax.images import Picture, resize_squares
from composer_jax.seeds import generator


class Compose(Protocol):
  """What generates images: the method of a composer, or any such function."""

  def __call__(
    self,
    stored: Mapping[str, np.ndarray],
    kept: Mapping[str, np.ndarray] | None = None,
    *,
    seeds: np.ndarray,
  ) -> np.ndarray:
    """Stored conditions (B, *shape) and bool (B,) by name to uint8 (B, S, S, 3)."""


@dataclasses.dataclass(frozen=True)
class Metric:
  """One metric of one condition.

  Attributes:
    name: as `Condition.fidelity` calls it.
    higher_is_better: whether larger values mean more agreement.
    asked: of each generated image and what was asked of it.
    shuffled: of each generated image and what was asked of another one.
    ceiling: of each original image and its own stored condition.
    gain: asked - shuffled, image by image; below zero where lower is better.
  """

  name: str
  higher_is_better: bool
  asked: Estimate
  shuffled: Estimate
  ceiling: Estimate
  gain: Estimate

  @property
  def apart(self) -> bool:
    """Whether asked is better than shuffled and their intervals do not overlap."""
    if self.higher_is_better:
      return self.asked.low > self.shuffled.high
    return self.asked.high < self.shuffled.low


@dataclasses.dataclass(frozen=True)
class Fidelity:
  """How well one condition is kept.

  Attributes:
    condition: its name.
    metrics: the first is the one to headline.
    indices: int (N,) of the held-out images that were measured, in order; the
      values of each metric belong to these.
    left_out: number of images that lack the condition.
  """

  condition: str
  metrics: tuple[Metric, ...]
  indices: np.ndarray
  left_out: int

  @property
  def headline(self) -> Metric:
    return self.metrics[0]


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What came of asking for some conditions together.

  Attributes:
    given: names of the conditions that were asked for.
    images: uint8 (N, S, S, 3), one for each held-out image.
    fidelities: by name, of those of `given` that at least two images have.
  """

  given: tuple[str, ...]
  images: np.ndarray
  fidelities: dict[str, Fidelity]


@dataclasses.dataclass(frozen=True)
class HeldOut:
  """Images that the model has not seen, and what can be asked for from them.

  Attributes:
    images: uint8 (N, S, S, 3).
    captions: N texts, '' where there is none.
    asked: stored conditions (N, *shape) by name.
    present: bool (N,) by name, False where an image lacks the condition.
    encoder: for embedded conditions; may be None if there are none of those.
    seed: of whatever extraction draws at random, and of the generated images.
  """

  images: np.ndarray
  captions: tuple[str, ...]
  asked: dict[str, np.ndarray]
  present: dict[str, np.ndarray]
  encoder: Encoder | None
  seed: int

  def __len__(self) -> int:
    return len(self.images)

  @property
  def conditions(self) -> tuple[Condition, ...]:
    return conditions_lib.by_name(self.asked)

  @property
  def seeds(self) -> np.ndarray:
    """A seed for each generated image, int64 (N,)."""
    return self.seed + np.arange(len(self))


def captioned(held_out: HeldOut) -> np.ndarray:
  """The images that have a caption: int (M,)."""
  return np.flatnonzero([bool(text) for text in held_out.captions])


def draw_records(
  composer: Any, dataset: Any, count: int, seed: int
) -> tuple[list[int], list[Mapping[str, Any]]]:
  """Draws images to judge a model by, without returning any.

  Drawn, not chosen: whoever picks what to show picks what looks good.

  Args:
    composer: the model, of which the size of the maps counts.
    dataset: images it was not trained on.
    count: how many; all if there are fewer.
    seed: of the drawing.

  Returns:
    Their places in the data set, and their records.

  Raises:
    ValueError: there are too few images, or they have another size than the maps of
      the model.
  """
  if count < 2 or len(dataset) < 2:
    raise ValueError(
      f'{count} images to measure of {len(dataset)} held out; expected at least 2.'
    )
  if dataset.info['size'] != composer.condition_size:
    raise ValueError(
      f'The images have {dataset.info["size"]} pixels a side, the model expects'
      f' {composer.condition_size}. Prepare the data with that size.'
    )
  order = np.random.default_rng(seed).permutation(len(dataset))
  chosen = [int(index) for index in order[:count]]
  return chosen, [dataset[index] for index in chosen]


def hold_out(
  records: Sequence[Mapping[str, Any]],
  names: Iterable[str],
  *,
  encoder: Encoder | None = None,
  seed: int = 0,
) -> HeldOut:
  """Takes from records what is stored, and makes or draws the other conditions.

  Args:
    records: each with `image` as uint8 (S, S, 3), `text` if there is a caption,
      and the stored conditions; at least two.
    names: of the conditions that the model knows.
    encoder: the model's dual encoder. Embedded conditions are made by it, even
      if records hold some, as those could come from another one.
    seed: of everything drawn at random.

  Raises:
    ValueError: there are too few records, or a condition is neither stored nor
      can be made.
  """
  if len(records) < 2:
    raise ValueError(
      f'{len(records)} held-out images, expected at least 2: shuffling needs another'
      ' one for each.'
    )
  images = np.stack([record['image'] for record in records])
  captions = tuple(record.get('text') or '' for record in records)
  asked, present = {}, {}
  for condition in conditions_lib.by_name(names):
    values = _ask(condition, records, images, captions, encoder, seed)
    asked[condition.name] = values
    present[condition.name] = np.asarray(condition.present(values))
  return HeldOut(images, captions, asked, present, encoder, seed)


def _ask(
  condition: Condition,
  records: Sequence[Mapping[str, Any]],
  images: np.ndarray,
  captions: Sequence[str],
  encoder: Encoder | None,
  seed: int,
) -> np.ndarray:
  name = condition.name
  if condition.embedded:
    if encoder is None:
      raise ValueError(
        f'{name} is embedded, so it cannot be judged without an encoder.'
      )
    return condition.embed(encoder, images, list(captions))
  if not condition.stored:
    return _extract(condition, images, range(len(images)), seed)
  if missing := [i for i, record in enumerate(records) if name not in record]:
    raise ValueError(
      f'Record {missing[0]} has no {name!r}; prepare the data with it, or leave it out.'
    )
  return np.stack([record[name] for record in records])


def _extract(
  condition: Condition, images: np.ndarray, states: Iterable[int], seed: int
) -> np.ndarray:
  """Measures a condition in pixels alone, without any transparency.

  Args:
    condition: which.
    images: uint8 (N, S, S, 3).
    states: N held-out images whose random state to measure with; so the mask that
      image 7 was asked to fill is the mask through which the result is seen.
    seed: of those states.
  """
  return np.stack(
    [
      condition.extract(Picture(image), generator(seed, int(state), condition.name))
      for image, state in zip(images, states, strict=True)
    ]
  )


def derangement(size: int, seed: int) -> np.ndarray:
  """A random permutation, int (size,), that leaves nothing in its place.

  It is one cycle through all (Sattolo 1986).
  """
  order = np.arange(size)
  rng = np.random.default_rng(seed)
  for i in range(size - 1, 0, -1):
    j = rng.integers(i)
    order[i], order[j] = order[j], order[i]
  return order


def measure(held_out: HeldOut, compose: Compose, given: Iterable[str]) -> Outcome:
  """Generates one image for each held-out one, and judges what was asked for.

  Args:
    held_out: where the conditions come from.
    compose: generates images. An image that lacks a condition is composed
      without it, and not counted.
    given: names of the conditions to ask for, together.

  Returns:
    The images, and the fidelity of each condition of `given`.
  """
  chosen = conditions_lib.by_name(given)
  names = tuple(condition.name for condition in chosen)
  generated = compose(
    {name: held_out.asked[name] for name in names},
    {name: held_out.present[name] for name in names},
    seeds=held_out.seeds,
  )
  if generated.dtype != np.uint8 or len(generated) != len(held_out):
    raise ValueError(
      f'compose gave {generated.dtype} {generated.shape}, expected {len(held_out)}'
      ' uint8 images.'
    )
  side = held_out.images.shape[1]
  # Conditions have units of pixels, so they are compared at the size of the maps.
  seen = resize_squares(generated, side)
  judged = (judge(held_out, condition, seen) for condition in chosen)
  fidelities = {fidelity.condition: fidelity for fidelity in judged if fidelity}
  return Outcome(names, generated, fidelities)


def judge(
  held_out: HeldOut, condition: Condition, generated: np.ndarray
) -> Fidelity | None:
  """How well images keep one condition of the held-out ones.

  Args:
    held_out: what was asked for.
    condition: which to look at.
    generated: uint8 (N, S, S, 3), as large as the held-out images.

  Returns:
    The figures, or None if fewer than two images have the condition.
  """
  here = np.flatnonzero(held_out.present[condition.name])
  if len(here) < 2:
    return None
  # Image here[i] is held against the wish of others[i] instead of its own.
  others = here[derangement(len(here), held_out.seed)]
  asked = held_out.asked[condition.name]
  originals = held_out.images
  if condition.embedded:
    assert held_out.encoder is not None  # `hold_out` has made sure.
    again = through_other = held_out.encoder.embed_images(generated[here])
    same = held_out.encoder.embed_images(originals[here])
  else:
    again = _extract(condition, generated[here], here, held_out.seed)
    through_other = _extract(condition, generated[here], others, held_out.seed)
    same = _extract(condition, originals[here], here, held_out.seed)
  scores = {
    'asked': _scores(condition, asked[here], again),
    'shuffled': _scores(condition, asked[others], through_other),
    'ceiling': _scores(condition, asked[here], same),
  }
  metrics = tuple(
    Metric(
      name,
      higher,
      **{kind: estimate(values[name]) for kind, values in scores.items()},
      gain=paired(scores['asked'][name], scores['shuffled'][name]),
    )
    for name, higher in condition.higher_is_better.items()
  )
  return Fidelity(condition.name, metrics, here, len(held_out) - len(here))


def _scores(
  condition: Condition, asked: np.ndarray, again: np.ndarray
) -> dict[str, np.ndarray]:
  """Each metric, float64 (N,), of N wishes and what was found."""
  pairs = zip(asked, again, strict=True)
  each = [condition.fidelity(wish, found) for wish, found in pairs]
  return {name: np.array([one[name] for one in each]) for name in each[0]}
