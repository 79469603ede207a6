"""What one visitor has open: images taken apart, and what was chosen of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from composer_jax.composer import square_of
from composer_jax.conditions import ALL, by_name
from composer_jax.images import Picture, encode_png
from composer_jax.regions import cover
from composer_jax.sampling.expression import Expression, Term, parse, resolve
from composer_jax.studio import pictures
from composer_jax.studio.engine import Engine
from composer_jax.studio.panel import Origin, Panel
from composer_jax.studio.presets import Preset

SEED, FIRST, WAY, RECIPE = (
  'noise from the seed',
  'noise behind the first image',
  'the way from the first image to the second',
  'noise of the recipe',
)
"""What images start from."""
STARTS = (SEED, FIRST, WAY, RECIPE)
OWN = 'own'
"""Instead of the key of an image: the value that was drawn, or restored."""


@dataclasses.dataclass(frozen=True)
class Source:
  """An image that conditions are taken from.

  Attributes:
    name: of its file.
    pixels: its middle square, uint8 (S, S, 3), S the model's side.
    found: its conditions by name.
  """

  name: str
  pixels: np.ndarray
  found: Mapping[str, np.ndarray]

  def at(self, side: int) -> np.ndarray:
    """Its pixels at another side: uint8 (side, side, 3)."""
    return square_of(Picture(self.pixels), side).pixels


@dataclasses.dataclass
class Choice:
  """Of one condition.

  Attributes:
    source: key of an image, `OWN`, or '' for none.
    strength: how much it counts; 1 is as trained.
    start: share of the sampling from which on it counts.
    end: and until when.
  """

  source: str = ''
  strength: float = 1.0
  start: float = 0.0
  end: float = 1.0


@dataclasses.dataclass
class Session:
  """The state behind one page.

  Attributes:
    sources: open images by key.
    own: values that were drawn or restored, by name.
    choices: by name of the condition.
    more: terms of a restored recipe that the panel cannot show.
    away: conditions that a restored recipe leads away from.
    start: noise of a restored recipe.
    original: the image of the own mask, uint8 (S, S, 3).
    sampling: settings of a restored recipe.
    opened: number of images that were opened.
  """

  sources: dict[str, Source] = dataclasses.field(default_factory=dict)
  own: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
  choices: dict[str, Choice] = dataclasses.field(default_factory=dict)
  more: tuple[Term, ...] = ()
  away: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
  start: np.ndarray | None = None
  original: np.ndarray | None = None
  sampling: dict[str, Any] = dataclasses.field(default_factory=dict)
  opened: int = 0

  def add(self, engine: Engine, picture: Picture, name: str) -> str:
    """Takes an image apart; gives its key.

    Raises:
      ValueError: there are as many open as there may be.
    """
    most = engine.limits.images
    if len(self.sources) >= most:
      raise ValueError(f'{most} images are open, as many as may be; remove one first.')
    found = engine.decompose(picture)
    square = square_of(picture, engine.composer.image_size)
    self.opened += 1
    key = str(self.opened)
    self.sources[key] = Source(name, square.pixels, found)
    return key

  def remove(self, key: str) -> None:
    """Closes an image; what was taken from it is not used any more."""
    self.sources.pop(key, None)
    for choice in self.choices.values():
      if choice.source == key:
        choice.source = ''

  def value(self, name: str, key: str) -> np.ndarray | None:
    """A condition of an image, or the own one."""
    if key == OWN:
      return self.own.get(name)
    source = self.sources.get(key)
    return None if source is None else source.found.get(name)

  def choose(self, asked: Any, engine: Engine) -> None:
    """Takes over what the page says: by name, fields of `Choice`.

    Raises:
      ValueError: it says nonsense.
    """
    if not isinstance(asked, dict):
      raise ValueError('The choice of conditions is damaged; load the page again.')
    limits, chosen = engine.limits, {}
    for condition in by_name(asked):
      name, given = condition.name, asked[condition.name]
      if not isinstance(given, dict):
        raise ValueError(f'The choice of {name} is damaged; load the page again.')
      source = given.get('source', '')
      if not isinstance(source, str):
        raise ValueError(f'{name} comes from {source!r:.40}; expected an image.')
      if self._ended(name, source):
        raise ValueError(
          'The images of this page are gone, as its session has ended: load the page'
          ' again, and add them.'
        )
      chosen[name] = Choice(
        source if self.value(name, source) is not None else '',
        limits.number(
          given.get('strength', 1), f'The strength of {name}', 0, limits.strength
        ),
        limits.number(given.get('start', 0), f'The start of {name}', 0, 1),
        limits.number(given.get('end', 1), f'The end of {name}', 0, 1),
      )
    self.choices = chosen

  def _ended(self, name: str, source: str) -> bool:
    """Whether the page speaks of what only a session before this one had."""
    if source == OWN:
      return name not in self.own
    return source.isdecimal() and len(source) < 9 and int(source) > self.opened

  def origins(self, start: str) -> tuple[Origin, ...]:
    """The images whose noise others start from.

    Raises:
      ValueError: they are not there.
    """
    count = {FIRST: 1, WAY: 2}.get(start, 0)
    if start not in STARTS or (start == RECIPE and self.start is None):
      raise ValueError(f'There is no {start!r:.60} to start from.')
    if len(self.sources) < count:
      raise ValueError(f'To start from {start} takes {count} images; add them first.')
    first = [*self.sources.values()][:count]
    return tuple(Origin(source.pixels, source.found) for source in first)

  def expression(self, engine: Engine, text: str) -> Expression | None:
    """An expression whose images are numbers: `sketch:1 & !palette:2`.

    Raises:
      ValueError: it is none.
    """
    if not text:
      return None

    def value_of(name: str, text: str) -> dict[str, np.ndarray]:
      (condition,) = by_name([name])
      if condition.from_text:
        return engine.composer.embed_caption(text)
      if name == 'palette' and text.startswith('#'):
        return {name: pictures.palette_of(text.split(','))}
      keys = [*self.sources]
      index = int(text) - 1 if text.isdecimal() and len(text) < 4 else -1
      found = self.value(name, keys[index]) if 0 <= index < len(keys) else None
      if found is None:
        raise ValueError(
          f'{name}:{text!r:.40} in the expression is no image; expected 1 to'
          f' {max(len(keys), 1)}.'
        )
      return {name: found}

    return resolve(parse(text), value_of)

  def panel(
    self,
    start: str = SEED,
    sampling: Mapping[str, Any] | None = None,
    **more: Any,
  ) -> Panel:
    """What is chosen.

    Args:
      start: one of `STARTS`.
      sampling: settings; others are those of a restored recipe.
      more: fields of a panel that the page has outside of the board.
    """
    values, strengths, windows = {}, {}, {}
    for name, choice in self.choices.items():
      value = self.value(name, choice.source)
      if value is not None:
        values[name] = value
      if choice.strength != 1:
        strengths[name] = choice.strength
      if (choice.start, choice.end) != (0, 1):
        windows[name] = (choice.start, choice.end)
    return Panel(
      values,
      strengths,
      windows,
      more=self.more,
      away=dict(self.away),
      origins=self.origins(start),
      start=self.start if start == RECIPE else None,
      kept=self._kept(),
      sampling=self.sampling | dict(sampling or {}),
      **more,
    )

  def _kept(self) -> np.ndarray | None:
    """The pixels that a mask leaves, where nothing weakens it: (S, S, 4), or None."""
    choice = self.choices.get('mask', Choice())
    mask = self.value('mask', choice.source)
    source = self.sources.get(choice.source)
    original = self.original if source is None else source.pixels
    if mask is None or original is None or choice != Choice(choice.source):
      return None
    stays = ~cover(mask[None, ..., 3] == 0, len(original))[0]
    shown = np.where(stays[..., None], original, 0)
    return np.concatenate([shown, np.uint8(255) * stays[..., None]], -1)

  def restore(self, panel: Panel) -> None:
    """Puts the conditions of a panel in the place of what was chosen."""
    self.own = dict(panel.values)
    self.more, self.away, self.start = panel.more, dict(panel.away), panel.start
    self.original = None if panel.kept is None else panel.kept[..., :3]
    self.sampling = dict(panel.sampling)
    self.choices = {
      condition.name: Choice(
        OWN if condition.name in panel.values else '',
        panel.strengths.get(condition.name, 1.0),
        *panel.windows.get(condition.name, (0.0, 1.0)),
      )
      for condition in ALL
    }

  def preset(self, preset: Preset, side: int) -> None:
    """Chooses what a task takes; what is to be drawn begins empty.

    Raises:
      ValueError: there are too few images.
    """
    if len(self.sources) < preset.images:
      count = 'one image' if preset.images == 1 else f'{preset.images} images'
      raise ValueError(f'{preset.what} It needs {count}; add them first.')
    keys = [*self.sources]
    self.more, self.away, self.sampling = (), {}, {}
    self.choices = {
      name: Choice(keys[number])
      for name, number in preset.take.items()
      if name in self.sources[keys[number]].found
    }
    if preset.edit in pictures.CANVASES and preset.edit in self.choices:
      canvas, choice = pictures.CANVASES[preset.edit], self.choices[preset.edit]
      source = self._source(choice.source)
      if source is not None:
        image = source.at(side)
        empty = canvas.layer(canvas.empty(side))
        layer = Picture(empty[..., :3], empty[..., 3] if empty.shape[-1] == 4 else None)
        self._own(preset.edit, canvas.value(layer, image), source)

  def canvas(self, name: str, side: int) -> dict[str, Any]:
    """What the page needs to edit a condition.

    Raises:
      ValueError: it cannot be edited.
    """
    source = self.choices.get(name, Choice()).source
    value = self.value(name, source)
    if name == 'palette':
      colours = [] if value is None else pictures.colours_of(value)
      return {
        'name': name,
        'colours': colours or [{'colour': '#888888', 'weight': 100}],
      }
    if name not in pictures.CANVASES:
      raise ValueError(f'{name} cannot be drawn; choose an image to take it from.')
    canvas = pictures.CANVASES[name]
    image = self._source(source) if canvas.behind else None
    layer = canvas.layer(canvas.empty(side) if value is None else value)
    return {
      'name': name,
      'hint': canvas.hint,
      'paints': [list(paint) for paint in canvas.paints],
      'side': side,
      'layer': pictures.data_uri(encode_png(layer)),
      'behind': '' if image is None else pictures.data_uri(encode_png(image.at(side))),
      'source': source,
    }

  def edit(self, engine: Engine, edited: Any) -> str:
    """Takes over what was drawn, and chooses it; gives the name of the condition.

    Raises:
      ValueError: it is no drawing.
    """
    if not isinstance(edited, dict) or not isinstance(edited.get('name'), str):
      raise ValueError('The drawing is damaged; draw it again.')
    name, side = edited['name'], engine.composer.condition_size
    source = None
    if name == 'palette':
      value = pictures.palette_of(edited.get('colours'))
    elif name in pictures.CANVASES:
      layer = pictures.from_data_uri(edited.get('layer'), side)
      source = self._source(str(edited.get('source', '')))
      white = np.full((side, side, 3), 255, np.uint8)
      value = pictures.CANVASES[name].value(layer, source.at(side) if source else white)
    else:
      raise ValueError(f'{name!r:.40} cannot be drawn.')
    self._own(name, value, source)
    return name

  def _own(self, name: str, value: np.ndarray, source: Source | None) -> None:
    """Chooses what was drawn over an image."""
    self.own[name] = value
    self.choices.setdefault(name, Choice()).source = OWN
    if name == 'mask':
      self.original = source.pixels if source else None

  def _source(self, key: str) -> Source | None:
    """The image that a condition is drawn over: its own, or else the first."""
    return self.sources.get(key) or next(iter(self.sources.values()), None)
