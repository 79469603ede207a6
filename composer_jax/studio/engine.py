"""One model that makes one image at a time, shows how far it is, and can be stopped."""

from __future__ import annotations

import dataclasses
import queue
import threading
import time
from collections.abc import Generator, Sequence
from typing import NamedTuple

import numpy as np

from composer_jax.composer import Composer
from composer_jax.conditions import by_name
from composer_jax.images import Picture
from composer_jax.recipe import Recipe, make
from composer_jax.sampling.watching import Cancelled
from composer_jax.studio.limits import Limits
from composer_jax.studio.panel import Panel

__all__ = ['Cancelled', 'Engine', 'Look', 'Made']


class Look(NamedTuple):
  """An image on its way.

  Attributes:
    number: of the image, from 0.
    done: share of the steps of all its stages, from 0 to 1.
    image: as it is predicted now, uint8 (s, s, 3).
  """

  number: int
  done: float
  image: np.ndarray


class Made(NamedTuple):
  """A finished image.

  Attributes:
    number: from 0.
    image: uint8 (S, S, 3).
    recipe: that makes it again, bit for bit.
    seconds: that it took.
  """

  number: int
  image: np.ndarray
  recipe: Recipe
  seconds: float


class Engine:
  """A model that several visitors take turns with.

  Images are made one by one, so that each is what its recipe makes, and one program
  serves any number of them.

  Attributes:
    composer: the model.
    limits: of what is asked.
    ready: is set once the programs of the first request are compiled.
    failure: what went wrong when it warmed up; None if nothing did.
  """

  def __init__(self, composer: Composer, limits: Limits):
    self.composer, self.limits = composer, limits
    self.ready = threading.Event()
    self.failure: Exception | None = None
    self._turn = threading.Lock()

  def warm_up(self) -> None:
    """Compiles what the first request needs; sets `ready`, or `failure`."""
    try:
      size = self.composer.condition_size
      self.decompose(Picture(np.full((size, size, 3), 128, np.uint8)))
      caption = 'warm up' if self.speaks else ''
      panel = Panel(caption=caption, sampling={'steps': self.steps})
      for _ in self.make(panel, threading.Event()):
        pass
    except Exception as error:
      self.failure = error
    self.ready.set()

  @property
  def busy(self) -> bool:
    """Whether something is being made, or compiled for the first time."""
    return self._turn.locked() or not self.ready.is_set()

  @property
  def speaks(self) -> bool:
    """Whether the model understands captions."""
    return self.composer.encoder is not None and 'caption' in self.composer.names

  @property
  def steps(self) -> int:
    """Of the base model's sampler, unless something else is asked for."""
    return min(self.composer.stages[0].config.sample.steps, self.limits.steps)

  def decompose(self, picture: Picture, seed: int = 0) -> dict[str, np.ndarray]:
    """The conditions of a picture that the model knows, but for what needs words."""
    with self._turn:
      found = self.composer.decompose(picture, seed=seed)
    return {
      condition.name: found[condition.name]
      for condition in by_name(self.composer.names)
      if condition.name in found and not condition.from_text
    }

  def make(
    self, panel: Panel, cancelled: threading.Event
  ) -> Generator[Look | Made, None, None]:
    """Makes the images of a panel.

    Args:
      panel: what to make.
      cancelled: set it to stop, as closing the iterator does; one for each call.

    Yields:
      Looks at the image that is being made, as many as are taken, and each image when
      it is finished.

    Raises:
      Cancelled: it was.
      ValueError: the panel cannot be made.
    """
    panel.check(self.composer, self.limits)
    told: queue.Queue[Look | Made | BaseException | None] = queue.Queue()
    worker = threading.Thread(
      target=self._work, args=(panel, cancelled, told), daemon=True
    )
    worker.start()
    try:
      while (news := _latest(told)) is not None:
        if isinstance(news, BaseException):
          raise news
        yield news
    finally:
      cancelled.set()
      worker.join()

  def _work(self, panel: Panel, cancelled: threading.Event, told: queue.Queue) -> None:
    try:
      with self._turn:
        # Each stage has its share of the progress by its steps.
        steps = [stage.config.sample.steps for stage in self.composer.stages]
        steps[0] = panel.sampling.get('steps', steps[0])
        for number, recipe in enumerate(self._recipes(panel, cancelled)):
          begin = time.monotonic()
          watch = _Teller(number, steps, cancelled, told)
          image = make(self.composer, recipe, watch)
          told.put(Made(number, image, recipe, time.monotonic() - begin))
      told.put(None)
    except BaseException as error:
      told.put(error)

  def _recipes(self, panel: Panel, cancelled: threading.Event) -> Sequence[Recipe]:
    if cancelled.is_set():
      raise Cancelled('It was stopped before it began.')
    return panel.recipes(self.composer)


@dataclasses.dataclass(frozen=True)
class _Teller:
  """A watcher that passes on what it sees."""

  number: int
  steps: Sequence[int]
  cancelled: threading.Event
  told: queue.Queue

  def __call__(self, stage: int, step: int, steps: int, images: np.ndarray) -> bool:
    done = (sum(self.steps[:stage]) + step) / sum(self.steps)
    self.told.put(Look(self.number, done, images[0]))
    return not self.cancelled.is_set()


def _latest(told: queue.Queue) -> Look | Made | BaseException | None:
  """The next news; of several looks that wait, the last."""
  news = told.get()
  while isinstance(news, Look):
    try:
      later = told.get_nowait()
    except queue.Empty:
      break
    news = later
  return news
