"""What makes an image again: kept inside the PNG itself."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import math
import os
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from composer_jax import __version__
from composer_jax.composer import Composer
from composer_jax.conditions import by_name
from composer_jax.config import SampleConfig, settings_from
from composer_jax.images import encode_png, png_text
from composer_jax.regions import FEATHER, lay_over
from composer_jax.sampling.expression import Term
from composer_jax.sampling.watching import Watch

FIELD = 'composer_jax'
"""Name of the text field of the PNG."""
BASE = 'base'
"""In the place of a term's number, for the conditions that guidance leads away from."""
START = 'start'
"""Name of the array of the noise that the image starts from, where it is given."""
KEPT = 'kept'
"""Name of the array of the pixels that stay, where some do."""
MAX_BYTES = 2**28
"""Largest conditions that are unpacked; more is a decompression bomb."""


@dataclasses.dataclass(frozen=True)
class Recipe:
  """Everything that determines one image.

  Attributes:
    model: fingerprint of the model it is for.
    seed: of the noise.
    terms: what the image follows, with stored values without a batch axis.
    strengths: of conditions by name; 1 if missing.
    windows: of conditions by name, as in `Composer.compose`.
    base: conditions that guidance leads away from, by name; none if empty.
    sampling: fields of `config.SampleConfig`; the model's own if missing.
    start: x_T of the base model, (s, s, 3), as `Composer.invert` gives it; drawn from
      the seed if None.
    kept: uint8 (S, S, 4) of the image's side: an original that stays where its last
      channel is 255, and gives way where it is 0; None if nothing stays.
  """

  model: str
  seed: int
  terms: tuple[Term, ...]
  strengths: Mapping[str, float] = dataclasses.field(default_factory=dict)
  windows: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
  base: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
  sampling: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  start: np.ndarray | None = None
  kept: np.ndarray | None = None

  def to_json(self) -> str:
    """The recipe as text; the conditions are a base64 of NumPy's npz.

    Its arrays are named `TERM.CONDITION`, with the number of the term or `base`;
    there may be two more, `start` and `kept`.
    """
    whole = {START: self.start, KEPT: self.kept}
    arrays: dict[str, Any] = {k: v for k, v in whole.items() if v is not None}
    sets = {str(i): term.values for i, term in enumerate(self.terms)}
    for key, values in (sets | {BASE: self.base}).items():
      # In one order, so that the same recipe is the same text.
      arrays |= {f'{key}.{c.name}': values[c.name] for c in by_name(values)}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    plain = {
      'version': __version__,
      'model': self.model,
      'seed': self.seed,
      'weights': [term.weight for term in self.terms],
      'strengths': dict(self.strengths),
      'windows': {name: list(window) for name, window in self.windows.items()},
      'sampling': dict(self.sampling),
      'conditions': base64.b64encode(buffer.getvalue()).decode(),
    }
    return json.dumps(plain)

  @classmethod
  def from_json(cls, text: str, name: str) -> Recipe:
    """Reads what `to_json` wrote.

    Raises:
      ValueError: the text is no recipe; names the file it is from.
    """
    try:
      plain = json.loads(text)
      plain.pop('version')
      archive = io.BytesIO(base64.b64decode(plain.pop('conditions')))
      with zipfile.ZipFile(archive) as parts:
        size = sum(part.file_size for part in parts.infolist())
      if size > MAX_BYTES:
        raise ValueError(f'{size:,} bytes of conditions')
      sets: dict[str, dict[str, np.ndarray]] = {}
      with np.load(archive, allow_pickle=False) as arrays:
        whole = {key: arrays[key] for key in (START, KEPT) if key in arrays.files}
        for key in set(arrays.files) - whole.keys():
          term, condition = key.split('.')
          sets.setdefault(term, {})[condition] = arrays[key]
      weights = plain.pop('weights')
      keys = [str(i) for i in range(len(weights))]
      if unknown := sets.keys() - {*keys, BASE}:
        raise ValueError(f'conditions of term {min(unknown)!r}')
      for values in sets.values():
        by_name(values)
      recipe = cls(
        terms=tuple(
          Term(float(weight), sets.get(key, {}))
          for key, weight in zip(keys, weights, strict=True)
        ),
        base=sets.get(BASE, {}),
        **whole,
        **plain,
      )
      recipe._check()
      return recipe
    except Exception as error:  # Hostile bytes make zipfile and zlib raise anything.
      raise ValueError(
        f'{name} holds a damaged recipe ({error}); expected a PNG that'
        ' `composer-jax compose` wrote and no program changed.'
      ) from error

  def _check(self) -> None:
    """Refuses values that no recipe can have."""
    if type(self.seed) is not int or not 0 <= self.seed < 2**32:
      raise ValueError(f'seed {self.seed!r}')
    if not self.terms:
      raise ValueError('no terms')
    by_name([*self.strengths, *self.windows])
    numbers = [term.weight for term in self.terms]
    numbers += [*self.strengths.values()]
    numbers += [edge for window in self.windows.values() for edge in window]
    if not all(type(x) in (int, float) and math.isfinite(x) for x in numbers):
      raise ValueError(f'one of the numbers {numbers}')
    if any(len(window) != 2 for window in self.windows.values()):
      raise ValueError(f'windows {self.windows!r}')
    start = self.start
    if start is not None and not (start.dtype == 'f4' and np.isfinite(start).all()):
      raise ValueError('a start that is no noise')
    kept = self.kept
    if kept is not None and not (kept.dtype == 'u1' and kept.shape[2:] == (4,)):
      raise ValueError('pixels to keep that are no image')
    settings_from(SampleConfig(), self.sampling)


def make(composer: Composer, recipe: Recipe, watch: Watch | None = None) -> np.ndarray:
  """Makes the image of a recipe: uint8 (S, S, 3).

  Args:
    composer: the model it is for.
    recipe: what to make.
    watch: as in `Composer.compose`.

  Raises:
    Cancelled: `watch` returned False.
    ValueError: the recipe is for another model, or keeps pixels of another size.
  """
  here = composer.fingerprint
  if recipe.model != here:
    raise ValueError(
      f'The recipe is for model {recipe.model:.16}, this one is {here:.16}; the image'
      ' would be another. Give the folder of that model.'
    )
  check_kept(composer, recipe.kept)
  made = composer.compose_terms(
    [recipe.terms],
    seeds=np.array([recipe.seed]),
    strengths=recipe.strengths,
    windows=recipe.windows,
    base=recipe.base or None,
    sampling=recipe.sampling,
    start=None if recipe.start is None else recipe.start[None],
    watch=watch,
  )
  if recipe.kept is not None:
    original, region = recipe.kept[None, ..., :3], recipe.kept[None, ..., 3] == 0
    made = lay_over(made, original, region, FEATHER * composer.image_size)
  return made[0]


def check_kept(composer: Composer, kept: np.ndarray | None) -> None:
  """Refuses pixels that are to stay if they are not of the side of the images."""
  shape = (composer.image_size, composer.image_size, 4)
  if kept is not None and kept.shape != shape:
    raise ValueError(f'The pixels to keep are {kept.shape}; expected {shape}.')


def to_png(image: np.ndarray, recipe: Recipe) -> bytes:
  """Encodes an image with its recipe."""
  return encode_png(image, text={FIELD: recipe.to_json()})


def from_png(path: str | os.PathLike[str]) -> Recipe:
  """Reads the recipe of a PNG.

  Raises:
    ValueError: the file has none.
  """
  text = png_text(path)
  if FIELD not in text:
    raise ValueError(
      f'{path} holds no recipe; expected a PNG that `composer-jax compose` wrote.'
    )
  return Recipe.from_json(text[FIELD], str(path))
