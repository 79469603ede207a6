"""The same for programs: named endpoints for REST and the Gradio client."""

from __future__ import annotations

import collections
import contextlib
import functools
import pathlib
import shutil
import tempfile
import threading
from collections.abc import Iterator
from typing import Any

import gradio as gr

from composer_jax.conditions import by_name
from composer_jax.images import encode_png
from composer_jax.studio import panel as panels
from composer_jax.studio import pictures
from composer_jax.studio.engine import Cancelled, Engine, Look
from composer_jax.studio.limits import plain_name
from composer_jax.studio.panel import Panel

SETTINGS = ('steps', 'guidance', 'sampler', 'spacing', 'eta', 'rescale', 'percentile')
ANSWERS = 32
"""Of so many the files are kept; Gradio copies them when it answers."""
OPTIONS = (*SETTINGS, 'seed', 'count', 'prior', 'strengths', 'windows')


class Api:
  """What the endpoints do: from plain values to files."""

  def __init__(self, engine: Engine):
    self.engine = engine
    self._folders: collections.deque[pathlib.Path] = collections.deque()

  def compose(
    self,
    images: list[str] | None,
    use: Any,
    caption: str | None,
    negative: str | None,
    options: Any,
    progress: Any = gr.Progress(),  # noqa: B008 - Gradio's way to ask for one.
  ) -> Iterator[list[str]]:
    """Makes images from conditions of images, colours and captions.

    Args:
      images: files; `use` counts them from 1.
      use: by condition, the number of an image, or for the palette a list of colours
        (`#rrggbb`, or objects with `colour` and `weight`).
      caption: what is to be seen; '' for none.
      negative: what is not; '' for none.
      options: any of `OPTIONS`; strengths and windows are by condition.
      progress: what Gradio gives, to be told.

    Yields:
      PNG files, with their recipes inside: those that are finished.
    """
    panel = self.panel(images or [], use or {}, caption, negative, options or {})
    yield from self._make(panel, progress)

  def panel(
    self, images: list[str], use: Any, caption: Any, negative: Any, options: Any
  ) -> Panel:
    engine, limits = self.engine, self.engine.limits
    if not isinstance(use, dict) or not isinstance(options, dict):
      raise ValueError('`use` and `options` are JSON objects, as {"sketch": 1}.')
    if unknown := [name for name in options if name not in OPTIONS]:
      raise ValueError(
        f'{unknown[0]!r:.40} is no option; expected any of {", ".join(OPTIONS)}.'
      )
    if len(images) > limits.images:
      raise ValueError(f'{len(images)} images; expected at most {limits.images}.')
    found: list[dict[str, Any]] = []
    for path in images:
      picture = limits.picture(path, plain_name(path))
      found.append(engine.decompose(picture))
    values = {}
    for condition in by_name(use):
      name, wanted = condition.name, use[condition.name]
      if name == 'palette' and isinstance(wanted, list):
        values[name] = pictures.palette_of(wanted)
        continue
      number = limits.whole(wanted, f'The image for {name}', 1, max(len(found), 1))
      if number > len(found) or name not in found[number - 1]:
        raise ValueError(f'{name} cannot be taken from image {number}.')
      values[name] = found[number - 1][name]
    strengths, windows = options.get('strengths', {}), options.get('windows', {})
    if not isinstance(strengths, dict) or not isinstance(windows, dict):
      raise ValueError('Strengths and windows are JSON objects, as {"sketch": 0.5}.')
    for name, window in windows.items():
      if not isinstance(window, list | tuple) or len(window) != 2:
        raise ValueError(f'The window of {name:.40} is no pair as [0, 0.6].')
    return Panel(
      values,
      strengths,
      {name: (window[0], window[1]) for name, window in windows.items()},
      caption=limits.words(caption, 'The caption'),
      negative=limits.words(negative, 'The negative caption'),
      prior=bool(options.get('prior', True)),
      seed=options.get('seed', 0),
      count=options.get('count', 1),
      sampling={name: options[name] for name in SETTINGS if name in options},
    )

  def remake(
    self,
    recipe: str | None,
    progress: Any = gr.Progress(),  # noqa: B008 - Gradio's way to ask for one.
  ) -> Iterator[list[str]]:
    """Makes the image of a recipe (JSON) again: a PNG."""
    text = recipe or ''
    self.engine.limits.size(text.encode(), 'The recipe')
    yield from self._make(panels.restore(text, 'The recipe'), progress)

  def decompose(self, image: str | None) -> Iterator[list[str]]:
    """A picture of each condition of an image: PNG files by its name."""
    if not image:
      raise ValueError('There is no image; give one.')
    picture = self.engine.limits.picture(image, plain_name(image))
    found, folder = self.engine.decompose(picture), self._folder()
    yield [
      _write(folder, condition.name, encode_png(condition.draw(found[condition.name])))
      for condition in by_name(found)
    ]

  def _make(self, panel: Panel, progress: Any) -> Iterator[list[str]]:
    paths, folder = [], self._folder()
    # Closed when the one who asked goes away, it stops.
    with contextlib.closing(self.engine.make(panel, threading.Event())) as making:
      for news in making:
        if isinstance(news, Look):
          progress((news.number + news.done) / panel.count)
          continue
        png = panels.to_png(news.image, news.recipe, panel)
        paths.append(_write(folder, str(news.recipe.seed), png))
        yield list(paths)

  def _folder(self) -> pathlib.Path:
    """A new folder for the files of an answer; those of old answers go."""
    self._folders.append(pathlib.Path(tempfile.mkdtemp()))
    while len(self._folders) > ANSWERS:
      shutil.rmtree(self._folders.popleft(), ignore_errors=True)
    return self._folders[-1]


def _write(folder: pathlib.Path, name: str, data: bytes) -> str:
  path = folder / f'{name}.png'
  path.write_bytes(data)
  return str(path)


def add_api(engine: Engine, line: dict[str, Any]) -> None:
  """Adds the endpoints to the page that is being built; nothing of it is seen."""
  api = Api(engine)

  def said(method: Any) -> Any:
    """What is wrong comes to the program as Gradio's error."""

    @functools.wraps(method)  # Names of parameters are those of the endpoint.
    def call(*arguments: Any) -> Any:
      try:
        yield from method(*arguments)
      except (ValueError, OSError, RuntimeError, Cancelled) as error:
        raise gr.Error(str(error), print_exception=False) from error

    return call

  with gr.Column(visible=False):
    images = gr.File(label='images', file_count='multiple')
    image = gr.File(label='image')
    use = gr.JSON(label='use')
    caption = gr.Textbox(label='caption')
    negative = gr.Textbox(label='negative')
    options = gr.JSON(label='options')
    recipe = gr.Textbox(label='recipe')
    made = gr.File(label='made', file_count='multiple')
    button = gr.Button()
  for method, inputs in (
    (api.compose, [images, use, caption, negative, options]),
    (api.remake, [recipe]),
    (api.decompose, [image]),
  ):
    button.click(said(method), inputs, [made], api_name=method.__name__, **line)
