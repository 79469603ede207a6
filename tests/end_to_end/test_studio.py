"""The studio in a real browser, on the shipped model."""

from __future__ import annotations

import pathlib
import shutil
import signal
import subprocess

import pytest
import resvg_py
from playwright.sync_api import Page, expect, sync_playwright

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
    command('studio', '--port', 0, '--max-steps', 4),
    env=environment() | {'PYTHONUNBUFFERED': '1'},
    stdout=subprocess.PIPE,
    text=True,
  )
  lines = []
  while not any('listens' in line for line in lines):
    line = process.stdout.readline()
    assert line, 'the studio ended'
    lines.append(line)
  yield next(word for word in lines[-1].split() if word.startswith('http'))
  process.send_signal(signal.SIGINT)
  print(process.wait(30))


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
