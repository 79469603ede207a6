"""What a visitor has chosen, as plain values: from it come recipes, and back."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from composer_jax.composer import Composer
from composer_jax.conditions import by_name
from composer_jax.images import encode_png, png_text
from composer_jax.recipe import FIELD, Recipe, check_kept
from composer_jax.sampling.expression import And, Expression, Is, Term, terms
from composer_jax.seeds import generator
from composer_jax.studio.limits import Limits
from composer_jax.tasks.parts import LOOKS, between, reversible, slerp

NOTES = 'studio'
"""Field of a shared recipe, and of a PNG behind the recipe's, that holds texts."""
MAX_SEED = 2**32 - 1
MAX_TERMS = 6
"""Terms of an expression besides the first; each is as much work as an image."""


class Origin(NamedTuple):
  """An image whose noise others start from.

  Attributes:
    pixels: uint8 (S, S, 3).
    found: its conditions by name.
  """

  pixels: np.ndarray
  found: Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Panel:
  """Everything that was chosen.

  Attributes:
    values: stored conditions by name, without a batch axis, that images follow.
    strengths: of conditions by name; 1 if missing.
    windows: of conditions by name, start and end from 0 to 1; (0, 1) if missing.
    caption: a text to follow; '' for none.
    negative: a text that guidance leads away from; '' for none.
    prior: whether a caption without semantics gets some by the prior.
    away: stored conditions that guidance leads away from, where no text says them.
    more: further terms of an expression, as a restored recipe may have them.
    expression: further conditions, resolved; see `sampling.expression`.
    origins: images to start from, by DDIM inversion: of one, its noise, as in
      `tasks.reconfiguration`; of two, what lies on the way between, as in
      `tasks.interpolation`; of none, noise from the seed.
    start: x_T of the base model (s, s, 3), as a restored recipe may have it.
    kept: pixels that stay, as a recipe has them.
    seed: of the first image; the others have the next ones.
    count: of images.
    sampling: settings, as `Composer.compose` takes them.
  """

  values: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
  strengths: Mapping[str, float] = dataclasses.field(default_factory=dict)
  windows: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
  caption: str = ''
  negative: str = ''
  prior: bool = True
  away: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
  more: tuple[Term, ...] = ()
  expression: Expression | None = None
  origins: tuple[Origin, ...] = ()
  start: np.ndarray | None = None
  kept: np.ndarray | None = None
  seed: int = 0
  count: int = 1
  sampling: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def check(self, composer: Composer, limits: Limits) -> None:
    """Refuses what the model cannot take, or what is too much.

    Raises:
      ValueError: says what is wrong, and what was expected.
    """
    limits.words(self.caption, 'The caption')
    limits.words(self.negative, 'The negative caption')
    limits.whole(self.seed, 'The seed', 0, MAX_SEED)
    limits.whole(self.count, 'The number of images', 1, limits.count)
    by_name([*self.strengths, *self.windows])
    for name, strength in self.strengths.items():
      limits.number(strength, f'The strength of {name}', 0, limits.strength)
    for name, window in self.windows.items():
      start, end = (limits.number(x, f'The time of {name}', 0, 1) for x in window)
      if start > end:
        raise ValueError(f'The time of {name} ends at {end:g}, before {start:g}.')
    if len(self.more) > MAX_TERMS:
      raise ValueError(f'{len(self.more)} more terms; expected at most {MAX_TERMS}.')
    for values in (self.values, self.away, *(term.values for term in self.more)):
      for name, value in values.items():
        check_value(composer, name, value)
    size = composer.sizes[0]
    if self.start is not None and self.start.shape != (size, size, 3):
      raise ValueError(
        f'The noise to start from is {self.start.shape}; expected {(size, size, 3)}.'
      )
    check_kept(composer, self.kept)
    asked = self.sampling
    if 'steps' in asked:
      limits.whole(asked['steps'], 'Steps', 1, limits.steps)
    if 'guidance' in asked:
      limits.number(asked['guidance'], 'Guidance', -limits.guidance, limits.guidance)

  def recipes(self, composer: Composer) -> list[Recipe]:
    """A recipe for each image.

    Raises:
      ValueError: a text was given to a model that knows none.
    """
    values, away = dict(self.values), dict(self.away)
    if self.caption:
      # What was chosen from an image counts more than what the text says of it.
      values = composer.embed_caption(self.caption) | values
    if self.negative:
      away |= composer.embed_caption(self.negative)
    starts = self._starts(composer)
    made = []
    for number in range(self.count):
      seed = self.seed if len(self.origins) == 2 else self.seed + number
      seed %= MAX_SEED + 1
      parts = [Is(n, v) for n, v in (values | self._between(number)).items()]
      joined = And((*parts, *([self.expression] if self.expression else ())))
      first, *rest = terms(joined, generator(seed, 'expression'))
      if len(rest) + len(self.more) > MAX_TERMS:
        raise ValueError(f'The expression has more than {MAX_TERMS} terms.')
      if self.prior:
        first = first._replace(values=composer.imagine(first.values, seed))
      all_terms = (first, *rest, *self.more)
      used = {name for term in all_terms for name in term.values}
      made.append(
        Recipe(
          model=composer.fingerprint,
          seed=seed,
          terms=all_terms,
          strengths={n: float(s) for n, s in self.strengths.items() if n in used},
          windows={n: w for n, w in self.windows.items() if n in used},
          base=away,
          sampling=reversible(self.sampling) if self.origins else self.sampling,
          start=starts[number] if self.origins else self.start,
          kept=self.kept,
        )
      )
    return made

  def _share(self, number: int) -> np.ndarray:
    """How far an image is on the way from the first origin to the second."""
    return np.linspace(0, 1, max(self.count, 2))[[number]]

  def _between(self, number: int) -> dict[str, np.ndarray]:
    """What says how an image looks, on the way between two."""
    if len(self.origins) < 2:
      return {}
    a, b = (origin.found for origin in self.origins)
    return {
      name: between(name, a[name][None], b[name][None], self._share(number))[0]
      for name in LOOKS
      if name in self.values and name in a and name in b
    }

  def _starts(self, composer: Composer) -> Sequence[np.ndarray]:
    """The noise that each image starts from, where there are origins."""
    noises = []
    for pixels, found in self.origins:
      # The mask would hold the pixels themselves.
      own = {n: found[n][None] for n in self.values if n in found and n != 'mask'}
      settings = reversible(self.sampling)
      noises.append(composer.invert(pixels[None], own, sampling=settings))
    if len(noises) < 2:
      return [noise[0] for noise in noises] * self.count
    first, second = noises
    return [slerp(first, second, self._share(i))[0] for i in range(self.count)]

  def notes(self) -> dict[str, Any]:
    """What a recipe does not say: the words, and what came from them."""
    if self.expression is not None:  # Its conditions and those of words are joined.
      return {}
    return {
      'caption': self.caption,
      'negative': self.negative,
      'prior': self.prior,
      'chosen': sorted(self.values),
    }

  @classmethod
  def from_recipe(cls, recipe: Recipe, notes: Mapping[str, Any] | None = None) -> Panel:
    """The panel that a recipe came from; without notes, texts stay embeddings.

    Raises:
      ValueError: the notes are none.
    """
    first, *more = recipe.terms
    if first.weight != 1:
      first, more = Term(1.0, {}), [*recipe.terms]
    values, away = dict(first.values), dict(recipe.base)
    known = cls(
      values,
      recipe.strengths,
      {name: (start, end) for name, (start, end) in recipe.windows.items()},
      away=away,
      more=tuple(more),
      seed=recipe.seed,
      sampling=recipe.sampling,
      start=recipe.start,
      kept=recipe.kept,
      prior=False,
    )
    if not notes:
      return known
    texts = [notes.get('caption', ''), notes.get('negative', '')]
    prior, chosen = notes.get('prior', False), notes.get('chosen', [*values])
    if not all(isinstance(text, str) for text in texts) or type(prior) is not bool:
      raise ValueError('The notes of the studio in the recipe are damaged.')
    caption, negative = texts
    # Made from the texts, they are made again.
    values = {n: v for n, v in values.items() if not caption or n in chosen}
    away = {} if negative else away
    return dataclasses.replace(
      known, values=values, away=away, caption=caption, negative=negative, prior=prior
    )


def check_value(composer: Composer, name: str, value: np.ndarray) -> None:
  """Refuses a stored condition that the model cannot take, NaN included."""
  (condition,) = by_name([name])
  if name not in composer.condition_shapes:
    raise ValueError(
      f'This model has no {name}; it knows {", ".join(composer.condition_shapes)}.'
    )
  spec, shape = condition.spec(composer.condition_size), composer.condition_shapes[name]
  if value.shape != tuple(shape):
    raise ValueError(f'{name} has shape {value.shape}; expected {tuple(shape)}.')
  if value.dtype.kind not in 'uif' or not np.isfinite(value).all():
    raise ValueError(f'{name} holds values that are no numbers.')
  if value.size and (value.min() < spec.low or value.max() > spec.high):
    raise ValueError(
      f'{name} holds {value.min():g} to {value.max():g}; expected {spec.low:g} to'
      f' {spec.high:g}.'
    )


def share(recipe: Recipe, panel: Panel) -> str:
  """A recipe as JSON, with the words that it came from."""
  return json.dumps({**json.loads(recipe.to_json()), NOTES: panel.notes()})


def restore(text: str, name: str) -> Panel:
  """The panel of a shared recipe, or of one that `composer-jax compose` wrote.

  Raises:
    ValueError: it is none.
  """
  try:
    plain = json.loads(text)
  except (ValueError, RecursionError) as error:
    raise ValueError(f'{name} is no JSON ({error}); expected a recipe.') from error
  if not isinstance(plain, dict):
    raise ValueError(f'{name} holds no recipe.')
  notes = plain.pop(NOTES, None)
  if notes is not None and not isinstance(notes, dict):
    raise ValueError(f'{name}: the notes of the studio in the recipe are damaged.')
  return Panel.from_recipe(Recipe.from_json(json.dumps(plain), name), notes)


def to_png(image: np.ndarray, recipe: Recipe, panel: Panel) -> bytes:
  """Encodes an image with its recipe, as `recipe.to_png`, and the words."""
  notes = {f'{FIELD}_{NOTES}': json.dumps(panel.notes())}
  return encode_png(image, text={FIELD: recipe.to_json(), **notes})


def from_png(data: bytes, name: str) -> Panel | None:
  """The panel that a PNG came from; None if it has no recipe.

  Raises:
    ValueError: it is no PNG, or its recipe is damaged.
  """
  texts = png_text(data)
  if FIELD not in texts:
    return None
  plain = json.loads(texts.get(f'{FIELD}_{NOTES}', 'null'))
  if not isinstance(plain, dict | None):
    raise ValueError(f'{name}: the notes of the studio in the recipe are damaged.')
  return Panel.from_recipe(Recipe.from_json(texts[FIELD], name), plain)
