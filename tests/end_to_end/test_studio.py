"""The studio in a real browser, on the shipped model."""

from __future__ import annotations

import base64
import concurrent.futures
import io
import json
import pathlib
import re
import shutil
import struct
import subprocess
import time
import zlib

import httpx
import numpy as np
import pytest
import resvg_py
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

from tests.compiling import SHIPPED
from tests.end_to_end.conftest import command, environment

BROWSERS = ('chromium', 'chromium-browser', 'google-chrome')
FLAGS = (
  '--headless',
  '--no-sandbox',
  '--disable-gpu',
  '--disable-quic',
  '--no-first-run',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
)
DRAWING = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 64 64">
<rect width="64" height="64" fill="{}"/><circle cx="32" cy="32" r="20" fill="{}"/>
</svg>"""
WIDE, NARROW = {'width': 1280, 'height': 900}, {'width': 390, 'height': 844}
SECONDS = 1000
"""Playwright counts in milliseconds."""


@pytest.fixture(scope='module')
def server():
  """The address of a studio that is ready."""
  process = subprocess.Popen(
    command('studio', '--port', 0, '--max-steps', 4, '--max-queue', 5),
    env=environment(SHIPPED) | {'PYTHONUNBUFFERED': '1'},
    stdout=subprocess.PIPE,
    text=True,
  )
  lines = []
  while not any('listens' in line for line in lines):
    line = process.stdout.readline()
    assert line, 'the studio ended'
    lines.append(line)
  yield next(word for word in lines[-1].split() if word.startswith('http'))
  process.terminate()  # Not SIGINT, which jobs in the background of a shell ignore.
  try:
    assert process.wait(30) == 0
  finally:
    process.kill()


@pytest.fixture(scope='module')
def browser():
  path = next(filter(None, map(shutil.which, BROWSERS)), None)
  assert path, 'No Chromium is installed; launch/setup.sh --test says how.'
  with sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
    yield browser
    browser.close()


@pytest.fixture
def files(tmp_path):
  for name, colours in {'a': ('#88aacc', '#dd3333'), 'b': ('#228844', 'gold')}.items():
    png = resvg_py.svg_to_bytes(svg_string=DRAWING.format(*colours), width=128)
    (tmp_path / f'{name}.png').write_bytes(png)
  return tmp_path


class Visitor:
  """Who uses the page, and notes what goes wrong in it."""

  def __init__(self, page: Page, address: str):
    self.page, self.wrong = page, []
    page.set_default_timeout(30 * SECONDS)
    page.on('console', lambda m: m.type == 'error' and self.wrong.append(m.text))
    page.on('pageerror', lambda error: self.wrong.append(str(error)))
    page.on('request', self._request)
    # Else a file chooser may open before the browser knows that it is waited for.
    page.on('filechooser', lambda _: None)
    page.goto(address)
    self.status = page.locator('#status p')
    self.generate = page.get_by_role('button', name='Generate')
    self.image = page.locator('.result .big img')
    page.get_by_role('button', name='Edit sketch').wait_for()
    expect(page.locator('#state')).to_contain_text('is ready', timeout=120 * SECONDS)

  def _request(self, request):
    if not request.url.startswith(('http://127.0.0.1:', 'data:', 'blob:')):
      self.wrong.append(f'asked for {request.url}')

  def give(self, *paths: pathlib.Path | str | dict):
    self.page.locator('#drop input[type=file]').set_input_files([*paths])

  def take(self, condition: str, source: str):
    self.page.get_by_role('radio', name=f'{condition}: {source}').check(force=True)

  def wait_for(self, message: str):
    expect(self.status).to_contain_text(message, timeout=60 * SECONDS)

  def make(self) -> str:
    """Generates; gives the address of the image."""
    self.generate.click()
    self.page.locator('.result .busy').wait_for()
    self.wait_for('made.')
    return self.page.get_by_role('link', name='Download PNG').get_attribute('href')


@pytest.fixture
def visit(server, browser):
  """Opens a page at a size; in the end nothing must have gone wrong in it."""
  visitors, contexts = [], []

  def begin(size=WIDE):
    context = browser.new_context(viewport=size, has_touch=size is NARROW)
    contexts.append(context)
    visitors.append(Visitor(context.new_page(), server))
    return visitors[-1]

  yield begin
  wrong = [each for visitor in visitors for each in visitor.wrong]
  for context in contexts:
    context.close()
  assert not wrong


@pytest.mark.parametrize('size', [WIDE, NARROW], ids=['wide', 'narrow'])
def test_images_are_taken_apart_and_composed(visit, files, size):
  visitor = visit(size)
  visitor.give(files / 'a.png', files / 'b.png')
  visitor.wait_for('b.png is taken apart')
  visitor.take('sketch', 'image 1')
  visitor.take('palette', 'image 2')
  made = visitor.make()
  assert made.startswith('data:image/png;base64,')
  width = visitor.page.evaluate('document.documentElement.scrollWidth')
  assert width <= size['width']


def pixels_of(address: str) -> np.ndarray:
  """What an image in the page shows."""
  png = base64.b64decode(address.partition(',')[2])
  return np.asarray(Image.open(io.BytesIO(png)).convert('RGB')).astype(int)


def drag(page: Page, *points: tuple[float, float]):
  """Draws a line over the canvas; points are shares of its sides."""
  box = page.locator('dialog canvas').bounding_box()
  places = [
    (box['x'] + x * box['width'], box['y'] + y * box['height']) for x, y in points
  ]
  page.mouse.move(*places[0])
  page.mouse.down()
  for place in places[1:]:
    page.mouse.move(*place, steps=8)
  page.mouse.up()


def own(page: Page, condition: str) -> np.ndarray:
  """The picture of a condition that was drawn."""
  radio = page.get_by_role('radio', name=f'{condition}: own')
  expect(radio).to_be_checked()
  return pixels_of(radio.locator('xpath=..').locator('img').get_attribute('src'))


def edit(visitor: Visitor, condition: str):
  visitor.page.get_by_role('button', name=f'Edit {condition}').click()
  visitor.page.locator(f'dialog[data-ready="{condition}"]').wait_for()


def use(visitor: Visitor, condition: str):
  visitor.page.get_by_role('button', name='Use it').click()
  visitor.wait_for(f'Your {condition} is used.')


def test_a_sketch_is_drawn_and_undone_and_followed(visit):
  visitor = visit()
  page = visitor.page
  edit(visitor, 'sketch')
  drag(page, (0.1, 0.5), (0.9, 0.5))
  drag(page, (0.5, 0.1), (0.5, 0.9))
  page.get_by_role('button', name='Undo').click()
  use(visitor, 'sketch')
  shown = own(page, 'sketch')[..., 0]
  assert shown.shape == (64, 64)
  assert shown[32, 10:54].max() == 0 and shown[10:28].min() == 255
  visitor.make()


def test_a_mask_is_painted_and_what_it_leaves_stays(visit, files):
  visitor = visit()
  page = visitor.page
  visitor.give(files / 'a.png')
  visitor.wait_for('a.png is taken apart')
  page.get_by_label('Task').click()
  page.get_by_role('option', name='region editing').click()
  page.locator('dialog[data-ready="mask"]').wait_for()
  page.get_by_label('Size of the brush').fill('16')
  drag(page, (0.5, 0.2), (0.5, 0.8))
  use(visitor, 'mask')
  shown = own(page, 'mask')
  image = Image.open(files / 'a.png').convert('RGB')
  before = np.asarray(image.resize((64, 64), Image.Resampling.BOX)).astype(int)
  outside = np.ones((64, 64), bool)
  outside[:, 20:44] = False
  assert np.abs(shown[outside] - before[outside]).max() <= 3
  assert np.isin(shown[32, 30:34], [200, 235]).all()  # The board of what is hidden.
  page.get_by_label('Caption', exact=True).fill('green frog')
  made = pixels_of(visitor.make())
  assert (made == np.asarray(image))[:, :32].all()
  assert (made != np.asarray(image))[32:96, 56:72].any()


def test_depth_and_instances_are_painted(visit):
  visitor = visit()
  page = visitor.page
  edit(visitor, 'depth')
  page.get_by_role('slider', name='Gray').fill('128')
  page.get_by_role('button', name='Fill all').click()
  use(visitor, 'depth')
  assert np.ptp(own(page, 'depth'), axis=(0, 1)).max() == 0
  edit(visitor, 'instances')
  page.get_by_role('radio', name='thing 3').check(force=True)
  drag(page, (0.2, 0.2), (0.8, 0.8))
  use(visitor, 'instances')
  assert len(np.unique(own(page, 'instances').reshape(-1, 3), axis=0)) == 2


def test_colours_of_a_palette_are_chosen(visit, files):
  visitor = visit()
  page = visitor.page
  visitor.give(files / 'a.png')
  visitor.wait_for('a.png is taken apart')
  visitor.take('palette', 'image 1')
  page.get_by_role('button', name='Edit palette').click()
  page.get_by_role('button', name='Discard').click()
  # The task opens the same dialog again.
  page.get_by_label('Task').click()
  page.get_by_role('option', name='colours by hand').click()
  page.locator('dialog[open]').wait_for()
  while page.get_by_role('button', name='Remove colour 2').count():
    page.get_by_role('button', name='Remove colour 2').click()
  page.get_by_label('Colour 1', exact=True).fill('#2030c0')
  page.get_by_role('button', name='Add a colour').click()
  page.get_by_label('Colour 2', exact=True).fill('#8090f0')
  page.get_by_label('Weight of colour 2').fill('60')
  use(visitor, 'palette')
  assert own(page, 'palette').mean((0, 1))[2] > own(page, 'palette').mean((0, 1))[0]
  made = pixels_of(visitor.make())
  assert made[..., 2].mean() > made[..., 0].mean() + 20


def test_strengths_and_times_are_followed_and_come_back(visit, files, tmp_path):
  visitor = visit()
  page = visitor.page
  visitor.give(files / 'a.png')
  visitor.wait_for('a.png is taken apart')
  visitor.take('sketch', 'image 1')
  page.get_by_label('Caption', exact=True).fill('a red apple')
  page.get_by_label('Negative caption').fill('a blue car')
  card = page.get_by_role('region', name='sketch')
  card.locator('summary').click()
  page.get_by_label('Strength of sketch').fill('0.5')
  page.get_by_label('Until of sketch').fill('0.6')
  expect(card.locator('summary')).to_have_text('Strength 0.5, 0 % to 60 %')
  page.get_by_label('number input for Guidance').fill('4')
  page.get_by_role('spinbutton', name='Seed').fill('1234')
  made = visitor.make()
  with page.expect_download() as download:
    page.get_by_role('link', name='Download PNG').click()
  assert download.value.suggested_filename == 'composer-1234.png'
  download.value.save_as(tmp_path / 'made.png')
  with page.expect_download() as download:
    page.get_by_role('link', name='Share recipe').click()
  download.value.save_as(tmp_path / 'made.json')

  # A visitor who has nothing but the file sees the same panel, and makes the same.
  visitor = visit()
  page = visitor.page
  for name in ('made.json', 'made.png'):
    visitor.give(tmp_path / name)
    visitor.wait_for(f'{name} was made here: its panel is restored.')
    expect(page.get_by_label('Caption', exact=True)).to_have_value('a red apple')
    expect(page.get_by_label('Negative caption')).to_have_value('a blue car')
    expect(page.get_by_role('spinbutton', name='Seed')).to_have_value('1234')
    expect(page.get_by_label('number input for Guidance')).to_have_value('4')
    expect(page.get_by_label('number input for Steps')).to_have_value('4')
    own(page, 'sketch')
    card = page.get_by_role('region', name='sketch')
    expect(card.locator('summary')).to_have_text('Strength 0.5, 0 % to 60 %')
  np.testing.assert_array_equal(pixels_of(visitor.make()), pixels_of(made))


def test_many_images_are_cancelled_and_the_next_is_made(visit):
  visitor = visit()
  page = visitor.page
  page.get_by_label('number input for Images').fill('8')
  visitor.generate.click()
  page.get_by_role('progressbar', name='Progress').wait_for()
  page.get_by_role('button', name='Cancel').click()
  visitor.wait_for('Cancelled.')
  page.get_by_label('number input for Images').fill('2')
  visitor.make()
  assert page.get_by_role('button', name='Show the image from seed').count() >= 2


def test_what_was_made_is_compared_and_used_again(visit, files):
  visitor = visit()
  page = visitor.page
  visitor.give(files / 'a.png')
  visitor.wait_for('a.png is taken apart')
  visitor.take('sketch', 'image 1')
  page.get_by_role('spinbutton', name='Seed').fill('7')
  first = visitor.make()
  page.get_by_role('button', name='Compare', exact=True).click()
  page.get_by_label('Share of the source').fill('25')
  over = page.get_by_role('img', name='Source: a.png')
  assert 'inset(0px 75% 0px 0px)' in over.get_attribute('style')
  page.get_by_role('button', name='Compare', exact=True).click()
  page.get_by_role('spinbutton', name='Seed').fill('8')
  visitor.take('sketch', 'off')
  assert visitor.make() != first
  page.get_by_role('button', name='Show the image from seed 7').click()
  page.get_by_role('button', name='Reuse seed').click()
  expect(page.get_by_role('spinbutton', name='Seed')).to_have_value('7')
  page.get_by_role('button', name='Back to its panel').click()
  visitor.wait_for('as it was for this image')
  own(page, 'sketch')
  page.get_by_role('button', name='Use as image').click()
  visitor.wait_for('It is taken apart')
  page.get_by_role('img', name='Image 2: seed 7').wait_for()
  page.get_by_role('button', name='Remove image 1, a.png').click()
  visitor.wait_for('The image is gone.')
  expect(page.get_by_role('img', name='Image 1: seed 7')).to_be_visible()


def test_everything_is_done_with_the_keyboard(visit, files):
  visitor = visit()
  page = visitor.page

  def to(locator):
    """Goes on with Tab until the focus is there."""
    for _ in range(120):
      if locator.evaluate('each => each === document.activeElement'):
        return
      page.keyboard.press('Tab')
    raise AssertionError(f'Tab does not reach {locator}')

  upload = page.locator('#drop button').first
  to(upload)
  with page.expect_file_chooser() as chooser:
    page.keyboard.press('Enter')
  chooser.value.set_files([files / 'a.png'])
  visitor.wait_for('a.png is taken apart')
  # Of a group of radios the chosen one is in the way of Tab, arrows move the choice.
  to(page.get_by_role('radio', name='palette: off'))
  page.keyboard.press('ArrowRight')
  expect(page.get_by_role('radio', name='palette: image 1')).to_be_checked()
  to(page.get_by_role('button', name='Edit sketch'))
  page.keyboard.press('Enter')
  canvas = page.locator('dialog canvas')
  expect(canvas).to_be_focused()
  page.locator('dialog[data-ready="sketch"]').wait_for()
  page.keyboard.press('Space')
  for _ in range(5):
    page.keyboard.press('Control+ArrowRight')
  to(page.get_by_role('button', name='Use it'))
  page.keyboard.press('Enter')
  visitor.wait_for('Your sketch is used.')
  assert own(page, 'sketch')[32, 32:38].max() == 0
  to(visitor.generate)
  page.keyboard.press('Enter')
  visitor.wait_for('made.')
  to(page.get_by_role('button', name='Edit depth'))
  page.keyboard.press('Enter')
  page.locator('dialog[open]').wait_for()
  page.keyboard.press('Escape')
  expect(page.locator('dialog[open]')).to_have_count(0)


NAMELESS = """() => {
  const shown = (each) => each.checkVisibility() && !each.closest('[aria-hidden=true]');
  const name = (each) =>
    each.getAttribute('aria-label') ||
    (each.getAttribute('aria-labelledby') || '').split(' ')
      .map((id) => document.getElementById(id)?.textContent || '').join('') ||
    [...(each.labels || [])].map((label) => label.textContent).join('') ||
    each.textContent || each.getAttribute('alt') || each.title;
  const all = 'button, a, input, select, textarea, summary, canvas, img, [tabindex]';
  return [...document.querySelectorAll(all)]
    .filter((each) => each.type !== 'file' && each.getAttribute('alt') !== '')
    .filter((each) => shown(each) && !name(each).trim())
    .map((each) => each.outerHTML.slice(0, 200));
}"""


@pytest.mark.parametrize('size', [WIDE, NARROW], ids=['wide', 'narrow'])
def test_every_control_has_a_name(visit, files, size):
  visitor = visit(size)
  page = visitor.page
  visitor.give(files / 'a.png')
  visitor.wait_for('a.png is taken apart')
  page.get_by_role('button', name='More settings').click()
  visitor.make()
  for summary in page.locator('#board summary').all():
    summary.click()
  assert page.evaluate(NAMELESS) == []
  for condition in ('palette', 'mask', 'instances'):
    page.get_by_role('button', name=f'Edit {condition}').click()
    page.locator('dialog[open]').wait_for()
    assert page.evaluate(NAMELESS) == []
    page.get_by_role('button', name='Discard').click()


def junk(name: str, data: bytes, kind: str = 'image/png') -> dict:
  return {'name': name, 'mimeType': kind, 'buffer': data}


def bomb(side: int) -> bytes:
  """A PNG of a few bytes that claims to be large."""
  parts = [
    (b'IHDR', struct.pack('>IIBBBBB', side, side, 8, 2, 0, 0, 0)),
    (b'IDAT', zlib.compress(bytes(1000))),
    (b'IEND', b''),
  ]
  chunks = b''.join(
    struct.pack('>I', len(data))
    + kind
    + data
    + struct.pack('>I', zlib.crc32(kind + data))
    for kind, data in parts
  )
  return b'\x89PNG\r\n\x1a\n' + chunks


def test_bad_files_are_refused_with_a_message_and_the_page_goes_on(visit, files):
  visitor = visit()
  for file, message in (
    (junk('notes.png', b'only a text'), 'notes.png: 11 bytes that begin with'),
    (
      junk('large.png', bomb(30_000)),
      'large.png: Image size (900000000 pixels) exceeds',
    ),
    (junk('half.png', (files / 'a.png').read_bytes()[:300]), 'half.png: '),
    (
      junk('recipe.json', b'{"version": 1, "seed": NaN}', 'application/json'),
      'recipe.json holds a damaged recipe',
    ),
    (junk('binary.json', b'\xff\xfe', 'application/json'), 'binary.json is no text'),
  ):
    visitor.give(file)
    visitor.wait_for(message)
  visitor.give(*[junk(f'{i}.png', (files / 'a.png').read_bytes()) for i in range(5)])
  visitor.wait_for('4 images are open, as many as may be')
  visitor.make()


@pytest.fixture(scope='module')
def client(server):
  return Client(server, verbose=False)


def text_of(path: str) -> dict:
  return json.loads(Image.open(path).text['composer_jax'])


def test_programs_take_apart_compose_and_make_again(client, files):
  pictures = client.predict(image=handle_file(files / 'a.png'), api_name='/decompose')
  names = {pathlib.Path(path).stem for path in pictures}
  assert {'semantics', 'palette', 'sketch', 'mask'} <= names
  made = client.predict(
    images=[handle_file(files / 'a.png'), handle_file(files / 'b.png')],
    use={'sketch': 1, 'intensity': 2, 'palette': ['#2030c0', '#8090f0']},
    caption='',
    negative='',
    options={'seed': 5, 'count': 2, 'steps': 4, 'strengths': {'intensity': 0.5}},
    api_name='/compose',
  )
  recipes = [text_of(path) for path in made]
  assert [recipe['seed'] for recipe in recipes] == [5, 6]
  assert recipes[0]['strengths'] == {'intensity': 0.5}
  (again,) = client.predict(recipe=json.dumps(recipes[1]), api_name='/remake')
  assert text_of(again) == recipes[1]
  assert Image.open(again).tobytes() == Image.open(made[1]).tobytes()


def seconds_of(client, seed):
  """How long one image takes, with what it has to wait for."""
  begin = time.monotonic()
  (path,) = compose(client, options={'seed': seed})
  assert text_of(path)['seed'] == seed
  return time.monotonic() - begin


def test_a_program_that_cancels_gets_no_more_and_lets_others_on(client):
  before = seconds_of(client, 97)
  job = client.submit(
    images=[],
    use={},
    caption='',
    negative='',
    options={'count': 8},
    api_name='/compose',
  )
  while not job.outputs():
    assert not job.done()
    time.sleep(0.05)
  assert job.cancel()
  waited = seconds_of(client, 98)
  assert len(job.outputs()) < 8
  assert waited < 4 * before  # The others would take seven.


def test_a_closed_page_makes_no_more_and_lets_others_on(visit, client):
  before = seconds_of(client, 97)
  page = visit().page
  page.get_by_label('number input for Images').fill('8')
  page.get_by_role('button', name='Generate').click()
  page.get_by_role('progressbar', name='Progress').wait_for()
  page.close()
  assert seconds_of(client, 98) < 4 * before


def compose(client, **changes):
  asked = {'images': [], 'use': {}, 'caption': '', 'negative': '', 'options': {}}
  return client.predict(**(asked | changes), api_name='/compose')


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'options': {'steps': 5}}, 'Steps is 5; expected 1 to 4'),
    ({'options': {'count': 1000}}, 'The number of images is 1000; expected 1 to 8'),
    ({'options': {'seed': -1}}, 'The seed is -1'),
    ({'options': {'sampler': '../../etc/passwd'}}, 'sampler'),
    ({'options': {'windows': {'sketch': [0.9, 0.1]}}}, 'The time of sketch ends at'),
    ({'options': {'eta': 'x'}}, 'eta'),
    ({'options': [1]}, 'JSON objects'),
    ({'use': {'sketch': 3}}, 'The image for sketch is 3'),
    ({'use': {'smell': 1}}, "Unknown condition 'smell'"),
    ({'use': {'palette': ['red']}}, "'red' is no colour"),
    ({'caption': 'x' * 501}, '501 characters'),
  ],
)
def test_a_bad_request_is_told_what_was_expected(client, changes, message):
  with pytest.raises(AppError, match=re.escape(message)):
    compose(client, **changes)


@pytest.mark.parametrize('value', ['NaN', 'Infinity', '1e999'])
def test_a_recipe_with_numbers_that_are_none_is_refused(client, value):
  recipe = json.dumps({'version': '0', 'seed': 0, 'weights': [1.0]})
  recipe = recipe.replace('[1.0]', f'[{value}]')
  with pytest.raises(AppError, match='damaged recipe'):
    client.predict(recipe=recipe, api_name='/remake')


def test_files_that_are_no_images_are_refused_by_the_api(client, tmp_path):
  for name, data, message in (
    ('notes.png', b'only a text', 'expected an image'),
    ('large.png', bomb(30_000), 'at most 16,000,000 pixels'),
  ):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(AppError, match=message):
      client.predict(image=handle_file(tmp_path / name), api_name='/decompose')


def call(server: str, name: str, *data) -> str:
  """Calls an endpoint as curl would; gives what its stream says."""
  where = f'{server}gradio_api/call/{name}'
  begun = httpx.post(where, json={'data': [*data]}, timeout=60)
  if begun.status_code != 200:
    return begun.text
  return httpx.get(f'{where}/{begun.json()["event_id"]}', timeout=120).text


@pytest.mark.parametrize('path', ['/etc/passwd', '../../../../etc/passwd', 'setup.py'])
def test_no_file_outside_of_its_folder_can_be_read(server, path):
  given = {'path': path, 'meta': {'_type': 'gradio.FileData'}}
  answer = call(server, 'decompose', given)
  assert 'error' in answer and 'root:' not in answer
  for address in (f'gradio_api/file={path}', f'file={path}', path):
    answer = httpx.get(f'{server}{address}')
    assert answer.status_code in (403, 404), (address, answer.status_code)


def test_an_uploaded_name_leads_nowhere_else(server):
  upload = {'files': ('../../../tmp/composer-jax-escaped.png', b'x', 'image/png')}
  (path,) = httpx.post(f'{server}gradio_api/upload', files=upload).json()
  assert 'composer-jax-studio-' in path and '..' not in path
  assert not pathlib.Path('/tmp/composer-jax-escaped.png').exists()
  assert 'expected an image' in call(
    server, 'decompose', {'path': path, 'meta': {'_type': 'gradio.FileData'}}
  )


def test_an_upload_over_the_limit_is_refused(server):
  upload = {'files': ('large.png', bytes(21_000_000), 'image/png')}
  answer = httpx.post(f'{server}gradio_api/upload', files=upload, timeout=60)
  assert answer.status_code == 413


def test_of_fifty_requests_at_once_those_over_the_queue_are_told(server, client):
  arguments = ([], {}, '', '', {'steps': 4})
  with concurrent.futures.ThreadPoolExecutor(50) as pool:
    waiting = [pool.submit(call, server, 'compose', *arguments) for _ in range(50)]
    answers = [each.result() for each in waiting]
  made = [answer for answer in answers if 'event: complete' in answer]
  full = [answer for answer in answers if 'Queue is full' in answer]
  assert len(made) >= 5
  assert len(made) + len(full) == 50
  assert len(compose(client, options={'steps': 4})) == 1
