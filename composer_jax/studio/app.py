"""The page of the studio, and its API: Gradio around `session` and `engine`."""

from __future__ import annotations

import dataclasses
import functools
import html
import pathlib
import re
import secrets
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, get_args, get_type_hints

import gradio as gr
import numpy as np

from composer_jax.conditions import by_name
from composer_jax.config import SampleConfig
from composer_jax.images import Picture, encode_png
from composer_jax.recipe import Recipe
from composer_jax.studio import panel as panels
from composer_jax.studio import pictures
from composer_jax.studio.api import add_api
from composer_jax.studio.engine import Cancelled, Engine, Look
from composer_jax.studio.limits import plain_name
from composer_jax.studio.panel import MAX_SEED, Panel
from composer_jax.studio.presets import PRESETS
from composer_jax.studio.session import FIRST, OWN, RECIPE, SEED, STARTS, WAY, Session

WEB = pathlib.Path(__file__).parent / 'web'
KEPT = 24
"""Images of one visitor that are remembered."""
SAMPLERS = get_args(get_type_hints(SampleConfig)['sampler'])
MODEL = {'concurrency_id': 'model', 'concurrency_limit': 1}
"""What uses the model waits in one line."""


def web(*names: str) -> str:
  """Files of the page, one after another."""
  return '\n'.join((WEB / name).read_text(encoding='utf-8') for name in names)


def part(inside: str, script: str, **more: Any) -> gr.HTML:
  """A part of the page that is drawn by a script of its own."""
  return gr.HTML(
    html_template=f'<div class="studio">{inside}</div>',
    js_on_load=web('dom.js', script),
    apply_default_css=False,
    **more,
  )


class Kept(NamedTuple):
  """An image that was made, and what it was made from."""

  panel: Panel
  recipe: Recipe
  image: np.ndarray
  seconds: float


class Visit:
  """What a visitor has open, and has made.

  No dataclass: Gradio would send one to the page.

  Attributes:
    session: images and choices.
    made: images by number.
    count: of images so far.
  """

  def __init__(self):
    self.session = Session()
    self.made: dict[int, Kept] = {}
    self.count = 0

  def keep(self, made: Kept) -> None:
    self.count += 1
    self.made[self.count] = made
    for old in [*self.made][:-KEPT]:
      del self.made[old]


def say(text: str, kind: str = '') -> str:
  """A message of the page."""
  return f'<p class="{kind}" role="status">{html.escape(text)}</p>'


def told(method: Callable) -> Callable:
  """What is wrong with a request becomes the message on the page.

  The wrapped method returns one value for each output, the message first.
  """

  @functools.wraps(method)
  def tell(self: Studio, *arguments: Any) -> Any:
    try:
      return method(self, *arguments)
    except (ValueError, OSError) as error:
      return say(str(error), 'bad'), *[gr.skip()] * (self.outputs[method.__name__] - 1)

  return tell


class Studio:
  """The handlers of a page: from what it sends to what it shows."""

  def __init__(self, engine: Engine):
    self.engine = engine
    self.running: dict[str, threading.Event] = {}
    self.outputs: dict[str, int] = {}

  # ---- What the page shows -----------------------------------------------------

  def shown(self, session: Session) -> dict[str, Any]:
    """Images and conditions, as the board draws them."""
    composer, rows = self.engine.composer, []
    for condition in by_name(composer.names):
      if condition.from_text and not self.engine.speaks:
        continue
      name, options = condition.name, []
      for number, (key, source) in enumerate(session.sources.items(), 1):
        if name in source.found:
          image = pictures.picture_of(condition, source.found[name])
          label = f'image {number}'
          options.append(
            {'key': key, 'label': label, 'image': image, 'mark': str(number)}
          )
      if name in session.own:
        image = pictures.picture_of(condition, session.own[name])
        options.append({'key': OWN, 'label': 'own', 'image': image, 'mark': 'own'})
      rows.append(
        {
          'name': name,
          'what': re.split('[:.]', type(condition).__doc__ or '')[0] + '.',
          'said': condition.from_text,
          'edit': name == 'palette' or name in pictures.CANVASES,
          'strongest': self.engine.limits.strength,
          'options': options,
        }
      )
    return {'sources': self.sources(session), 'rows': rows}

  @staticmethod
  def sources(session: Session) -> list[dict[str, str]]:
    return [
      {
        'key': key,
        'name': source.name,
        'image': pictures.data_uri(encode_png(source.pixels)),
      }
      for key, source in session.sources.items()
    ]

  def board(self, session: Session) -> gr.HTML:
    choices = {n: dataclasses.asdict(c) for n, c in session.choices.items()}
    return gr.HTML(value=choices, shown=self.shown(session))

  def result(self, visit: Visit) -> gr.HTML:
    """Everything that was made."""
    images = [
      {
        'id': number,
        'png': pictures.data_uri(panels.to_png(kept.image, kept.recipe, kept.panel)),
        'recipe': panels.share(kept.recipe, kept.panel),
        'seed': kept.recipe.seed,
        'seconds': kept.seconds,
      }
      for number, kept in visit.made.items()
    ]
    value: Any = {'images': images, 'sources': self.sources(visit.session)}
    return gr.HTML(value=value, look={})

  # ---- What the visitor does ---------------------------------------------------

  @told
  def open_files(self, visit: Visit, choices: Any, paths: list[str] | None) -> Any:
    """Takes images apart, and restores recipes."""
    session, messages, bad = visit.session, [], []
    session.choose(choices or {}, self.engine)
    restored: Panel | None = None
    for path in paths or []:
      name = plain_name(path)
      try:
        panel = self._restored(path, name)
        if panel is not None:
          panel.check(self.engine.composer, self.engine.limits)
          session.restore(panel)
          restored = panel
          messages.append(f'{name} was made here: its panel is restored.')
        else:
          session.add(self.engine, self.engine.limits.picture(path, name), name)
          messages.append(f'{name} is taken apart; choose what to keep of it.')
      except (ValueError, OSError) as error:
        bad.append(str(error))
      finally:
        pathlib.Path(path).unlink(missing_ok=True)
    status = say(' '.join(bad or messages), 'bad' if bad else 'good')
    fields = self._fields(restored)
    return status, self.board(session), None, *fields

  def _restored(self, path: str, name: str) -> Panel | None:
    """The panel of a recipe, or of a PNG that holds one; None for other images."""
    self.engine.limits.size(path, name)
    data = pathlib.Path(path).read_bytes()
    if name.lower().endswith('.json'):
      try:
        return panels.restore(data.decode(), name)
      except UnicodeDecodeError as error:
        raise ValueError(f'{name} is no text; expected a recipe.') from error
    if not data.startswith(b'\x89PNG\r\n\x1a\n'):
      return None
    self.engine.limits.picture(data, name)
    return panels.from_png(data, name)

  def _fields(self, panel: Panel | None) -> list[Any]:
    """What is on the page outside of the board."""
    if panel is None:
      return [gr.skip()] * 11
    sample = self.engine.composer.stages[0].config.sample
    settings = dataclasses.asdict(sample) | dict(panel.sampling)
    names = ('steps', 'guidance', 'sampler', 'eta', 'rescale')
    return [
      panel.caption,
      panel.negative,
      panel.prior,
      panel.seed,
      *(settings[name] for name in names),
      SEED if panel.start is None else RECIPE,
      '',
    ]

  @told
  def remove(self, visit: Visit, choices: Any, event: gr.EventData) -> Any:
    visit.session.choose(choices or {}, self.engine)
    visit.session.remove(str(event._data.get('key')))
    return say('The image is gone.'), self.board(visit.session)

  @told
  def preset(self, visit: Visit, name: str | None) -> Any:
    """Chooses what a task takes."""
    if name not in PRESETS:
      return say(''), self.board(visit.session), *[gr.skip()] * 3
    preset, session = PRESETS[name], visit.session
    side = self.engine.composer.condition_size
    session.preset(preset, side)
    text = preset.what
    if preset.caption:
      text += ' Write a caption.'
    editor: Any = gr.skip()
    if preset.edit:
      editor = self.canvas(session, preset.edit)
    start, count = SEED, gr.skip()
    if preset.start:
      start = WAY if preset.images == 2 else FIRST
      count = min(4, self.engine.limits.count) if preset.images == 2 else 1
    return say(text), self.board(session), editor, start, count

  @told
  def edit(self, visit: Visit, choices: Any, event: gr.EventData) -> Any:
    """Opens the dialog."""
    visit.session.choose(choices or {}, self.engine)
    return say(''), self.canvas(visit.session, str(event._data.get('name')))

  def canvas(self, session: Session, name: str) -> dict[str, Any]:
    """What the dialog opens with; each time another value, or it would not open."""
    canvas = session.canvas(name, self.engine.composer.condition_size)
    return canvas | {'opened': secrets.token_hex(4)}

  @told
  def drawn(self, visit: Visit, choices: Any, edited: Any) -> Any:
    visit.session.choose(choices or {}, self.engine)
    name = visit.session.edit(self.engine, edited)
    return say(f'Your {name} is used.', 'good'), self.board(visit.session)

  def panel(self, visit: Visit, choices: Any, fields: tuple[Any, ...]) -> Panel:
    """Everything on the page as a panel."""
    caption, negative, prior, seed, steps, guidance, sampler, eta, rescale = fields[:9]
    start, expression, count = fields[9:]
    limits = self.engine.limits
    visit.session.choose(choices or {}, self.engine)
    sampling = {
      'steps': limits.whole(steps, 'Steps', 1, limits.steps),
      'guidance': limits.number(
        guidance, 'Guidance', -limits.guidance, limits.guidance
      ),
      'sampler': sampler,
      'eta': limits.number(eta, 'Eta', 0, 1),
      'rescale': limits.number(rescale, 'Rescale', 0, 1),
    }
    settings = {'caption': caption, 'negative': negative}
    if not self.engine.speaks:
      settings = {'caption': '', 'negative': ''}
    texts = {name: limits.words(text, f'The {name}') for name, text in settings.items()}
    words = limits.words(expression, 'The expression')
    return visit.session.panel(
      str(start),
      **texts,
      expression=visit.session.expression(self.engine, words),
      prior=bool(prior),
      seed=limits.whole(seed, 'The seed', 0, MAX_SEED),
      count=limits.whole(count, 'The number of images', 1, limits.count),
      sampling=sampling,
    )

  def generate(
    self, visit: Visit, request: gr.Request, choices: Any, *fields: Any
  ) -> Iterator[tuple[Any, Any]]:
    """Makes images, and shows how far they are."""
    visitor = str(request.session_hash)
    cancelled = threading.Event()
    try:
      panel = self.panel(visit, choices, fields)
      self.running[visitor] = cancelled
      waiting = 'Starting' if self.engine.ready.is_set() else 'The model is warming up'
      yield say(''), gr.HTML(look={'text': f'{waiting} ...', 'done': 0})
      for news in self.engine.make(panel, cancelled):
        if isinstance(news, Look):
          of = f'Image {news.number + 1} of {panel.count}, ' if panel.count > 1 else ''
          look = {
            'image': pictures.data_uri(encode_png(news.image)),
            'done': (news.number + news.done) / panel.count,
            'text': f'{of}{news.done:.0%}',
          }
          yield gr.skip(), gr.HTML(look=look)
          continue
        visit.keep(Kept(panel, news.recipe, news.image, news.seconds))
      made = 'The image is' if panel.count == 1 else f'{panel.count} images are'
      yield say(f'{made} made.', 'good'), self.result(visit)
    except Cancelled:
      yield say('Cancelled.'), self.result(visit)
    except (ValueError, OSError, RuntimeError) as error:
      yield say(str(error), 'bad'), self.result(visit)
    finally:
      cancelled.set()
      if self.running.get(visitor) is cancelled:
        del self.running[visitor]

  def cancel(self, request: gr.Request) -> Any:
    cancelled = self.running.get(str(request.session_hash))
    if cancelled is None:
      return say('Nothing is being made.')
    cancelled.set()  # What is being made says so when it has ended.
    return gr.skip()

  @staticmethod
  def _made(visit: Visit, event: gr.EventData) -> Kept:
    made = visit.made.get(int(event._data.get('id', 0)))
    if made is None:
      raise ValueError('That image is not kept any more; download what you need.')
    return made

  @told
  def reuse_seed(self, visit: Visit, event: gr.EventData) -> Any:
    seed = self._made(visit, event).recipe.seed
    return say(f'The seed is {seed} again.'), seed

  @told
  def reuse_image(self, visit: Visit, choices: Any, event: gr.EventData) -> Any:
    """Takes a made image apart, as one that was uploaded."""
    made = self._made(visit, event)
    visit.session.choose(choices or {}, self.engine)
    visit.session.add(self.engine, Picture(made.image), f'seed {made.recipe.seed}')
    message = say('It is taken apart; choose what to keep of it.', 'good')
    return message, self.board(visit.session)

  @told
  def restore(self, visit: Visit, event: gr.EventData) -> Any:
    made = self._made(visit, event)
    # What an expression or a way has become is in the recipe.
    restored = Panel.from_recipe(made.recipe, made.panel.notes())
    visit.session.restore(restored)
    return (
      say('The panel is as it was for this image.', 'good'),
      self.board(visit.session),
      *self._fields(restored),
    )

  def state(self) -> tuple[str, Any]:
    """Whether the model is ready; then nobody needs to ask again."""
    if not self.engine.ready.is_set():
      return say('The model warms up; what you ask for waits for it.'), gr.skip()
    done = gr.Timer(active=False)
    if self.engine.failure is not None:
      return say(f'The model does not run: {self.engine.failure}', 'bad'), done
    return say('The model is ready.', 'good'), done


def build(engine: Engine) -> gr.Blocks:
  """The page."""
  studio, limits = Studio(engine), engine.limits
  sample = engine.composer.stages[0].config.sample
  with gr.Blocks(
    title='Composer studio',
    analytics_enabled=False,
    delete_cache=(600, 3600),
    fill_width=True,
  ) as page:
    visit = gr.State(Visit(), time_to_live=6 * 3600)
    with gr.Row(elem_id='head'):
      gr.HTML(
        '<h1>Composer studio</h1><p>Take images apart into conditions, and compose a'
        ' new one.</p>',
        elem_id='title',
      )
      state = gr.HTML(studio.state()[0], elem_id='state')
    status = gr.HTML(say(''), elem_id='status')
    timer = gr.Timer(1.0)
    with gr.Row(equal_height=False):
      with gr.Column(scale=6, min_width=330):
        files = gr.File(
          label='Images, or a recipe (PNG or JSON)',
          file_count='multiple',
          file_types=['image', '.json'],
          height=130,
          elem_id='drop',
        )
        preset = gr.Dropdown(
          [*PRESETS], value=None, label='Task', info='Chooses the conditions it takes.'
        )
        caption = gr.Textbox(
          label='Caption',
          placeholder='a red apple',
          max_length=limits.text,
          visible=engine.speaks,
        )
        negative = gr.Textbox(
          label='Negative caption',
          placeholder='what it should not be',
          max_length=limits.text,
          visible=engine.speaks,
        )
        board = part('<div class="board"></div>', 'board.js', elem_id='board')
        editor = part('<dialog></dialog>', 'editor.js', elem_id='editor')
      with gr.Column(scale=5, min_width=330, elem_id='right'):
        result = part('<div class="result"></div>', 'result.js', elem_id='result')
        with gr.Row(elem_id='go', equal_height=True):
          go = gr.Button('Generate', variant='primary', scale=3)
          stop = gr.Button('Cancel', scale=1)
        with gr.Row():
          seed = gr.Number(0, label='Seed', precision=0, minimum=0, maximum=MAX_SEED)
          count = gr.Slider(1, limits.count, 1, step=1, label='Images')
        with gr.Row():
          guidance = gr.Slider(
            0, limits.guidance, sample.guidance, step=0.1, label='Guidance'
          )
          steps = gr.Slider(1, limits.steps, engine.steps, step=1, label='Steps')
        with gr.Accordion('More settings', open=False):
          sampler = gr.Dropdown([*SAMPLERS], value=sample.sampler, label='Sampler')
          eta = gr.Slider(0, 1, sample.eta, step=0.05, label='Eta (of DDIM)')
          rescale = gr.Slider(0, 1, sample.rescale, step=0.05, label='Rescale')
          start = gr.Dropdown(
            [*STARTS], value=SEED, label='Start', info='Two are for DDIM inversion.'
          )
          expression = gr.Textbox(
            label='Expression',
            info='Image numbers, colours, and captions in quotes.',
            placeholder="sketch:1 & (palette:2 | palette:#aa3322) & !caption:'snow'",
            max_length=limits.text,
          )
          prior = gr.Checkbox(
            True,
            label='A caption gets an embedding by the prior',
            visible=engine.composer.prior is not None,
          )

    fields = [caption, negative, prior, seed, steps, guidance, sampler, eta, rescale]
    fields += [start, expression]
    quiet: dict[str, Any] = {'show_progress': 'hidden', 'api_visibility': 'private'}

    def on(event: Any, method: Any, inputs: list[Any], outputs: list[Any]) -> Any:
      studio.outputs[method.__name__] = len(outputs) + 1
      return event(
        method, [visit, *inputs], [status, *outputs], concurrency_limit=8, **quiet
      )

    page.load(lambda v: studio.board(v.session), [visit], [board], **quiet)
    timer.tick(studio.state, None, [state, timer], queue=False, **quiet)
    on(files.upload, studio.open_files, [board, files], [board, files, *fields])
    on(board.remove, studio.remove, [board], [board])
    on(board.edit, studio.edit, [board], [editor])
    on(editor.submit, studio.drawn, [board, editor], [board])
    on(preset.input, studio.preset, [preset], [board, editor, start, count])
    on(result.seed, studio.reuse_seed, [], [seed])
    on(result.reuse, studio.reuse_image, [board], [board])
    on(result.restore, studio.restore, [], [board, *fields])

    asked = [visit, board, *fields, count]
    gr.on(
      [go.click, caption.submit, negative.submit],
      studio.generate,
      asked,
      [status, result],
      **MODEL,
      **quiet,
    )
    stop.click(studio.cancel, None, [status], queue=False, **quiet)
    add_api(engine, MODEL)
  return page


def theme() -> gr.themes.Base:
  """Calm, and with the fonts of the system: nothing is fetched from elsewhere."""
  base = gr.themes.Base(
    primary_hue='indigo',
    neutral_hue='slate',
    font=['system-ui', 'sans-serif'],
    font_mono=['ui-monospace', 'monospace'],
    radius_size='md',
  )
  # The default is too pale to read.
  return base.set(body_text_color_subdued='*neutral_500')


def head() -> str:
  """What goes into the head of the page; Gradio's `css` would rewrite the style."""
  return f'<style>{web("studio.css")}</style>'


__all__ = ['Studio', 'build', 'head', 'theme']
