"""What makes an image again: kept inside the PNG itself."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from composer_jax import __version__
from composer_jax.composer import Composer
from composer_jax.conditions import by_name
from composer_jax.images import encode_png, png_text

FIELD = 'composer_jax'
"""Name of the text field of the PNG."""


@dataclasses.dataclass(frozen=True)
class Recipe:
  """Everything that determines one image.

  Attributes:
    model: fingerprint of the model it is for.
    seed: of the noise.
    steps: DDIM steps of the base model; the model's own if None.
    guidance: classifier-free guidance scale; the model's own if None.
    eta: of DDIM; the model's own if None.
    conditions: stored values by name, without a batch axis.
  """

  model: str
  seed: int
  steps: int | None
  guidance: float | None
  eta: float | None
  conditions: Mapping[str, np.ndarray]

  def to_json(self) -> str:
    """The recipe as text; the conditions are a base64 of NumPy's npz."""
    buffer = io.BytesIO()
    # In one order, so that the same recipe is the same text.
    names = [c.name for c in by_name(self.conditions)]
    arrays: dict[str, Any] = {name: self.conditions[name] for name in names}
    np.savez_compressed(buffer, **arrays)
    plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
    plain['conditions'] = base64.b64encode(buffer.getvalue()).decode()
    return json.dumps({'version': __version__, **plain})

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
      with np.load(archive, allow_pickle=False) as arrays:
        conditions = {c.name: arrays[c.name] for c in by_name(arrays.files)}
      if type(plain['seed']) is not int or not 0 <= plain['seed'] < 2**32:
        raise ValueError(f'seed {plain["seed"]!r}')
      if type(plain['steps']) not in (int, type(None)):
        raise ValueError(f'steps {plain["steps"]!r}')
      for field in ('guidance', 'eta'):
        value = plain[field]
        if type(value) not in (int, float, type(None)) or not np.isfinite(value or 0):
          raise ValueError(f'{field} {value!r}')
      return cls(conditions=conditions, **plain)
    except Exception as error:  # Hostile bytes make zipfile and zlib raise anything.
      raise ValueError(
        f'{name} holds a damaged recipe ({error}); expected a PNG that'
        ' `composer-jax compose` wrote and no program changed.'
      ) from error


def make(composer: Composer, recipe: Recipe) -> np.ndarray:
  """Makes the image of a recipe: uint8 (S, S, 3).

  Raises:
    ValueError: the recipe is for another model.
  """
  here = composer.fingerprint
  if recipe.model != here:
    raise ValueError(
      f'The recipe is for model {recipe.model:.16}, this one is {here:.16}; the image'
      ' would be another. Give the folder of that model.'
    )
  return composer.compose(
    {name: array[None] for name, array in recipe.conditions.items()},
    seeds=np.array([recipe.seed]),
    steps=recipe.steps,
    guidance=recipe.guidance,
    eta=recipe.eta,
  )[0]


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
