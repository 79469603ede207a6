"""Makes the screenshots of docs/studio.md in a Chromium.

Run:  composer-jax studio --port 7860
      python docs/make_studio_pictures.py --address http://127.0.0.1:7860
"""

from __future__ import annotations

import argparse
import pathlib
import shutil
import tempfile

import numpy as np
from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

from composer_jax.images import encode_png
from data_pipelines.sources.twemoji import TwemojiSource

FOLDER = pathlib.Path(__file__).parent / 'images'
SIZES = {'1280': (1280, 900), '390': (390, 844)}
EMOJI = {'parrot': '1f99c', 'sunflower': '1f33b'}


def drawings(folder: pathlib.Path) -> list[pathlib.Path]:
  """Two emoji as files."""
  source, paths = TwemojiSource(), []
  for name, key in EMOJI.items():
    picture = source.load(source.keys().index(key), 512).picture
    assert picture.alpha is not None  # Emoji are cut out.
    path = folder / f'{name}.png'
    path.write_bytes(encode_png(np.dstack([picture.pixels, picture.alpha])))
    paths.append(path)
  return paths


def ready(page: Page, address: str) -> None:
  """Opens the page, and waits until the model is ready."""
  page.goto(address)
  expect(page.locator('#state')).to_contain_text('is ready', timeout=120_000)


def compose(page: Page, files: list[pathlib.Path]) -> None:
  """Shape and shade of the first image in the colours of the second."""
  page.locator('#drop input[type=file]').set_input_files([*files])
  expect(page.locator('#status')).to_contain_text('sunflower.png is taken apart')
  for name, number in {'sketch': 1, 'intensity': 1, 'palette': 2}.items():
    page.get_by_role('radio', name=f'{name}: image {number}').check(force=True)
  page.get_by_label('number input for Images').fill('4')
  page.get_by_role('button', name='Generate').click()
  expect(page.locator('#status')).to_contain_text('made.', timeout=120_000)


def paint(page: Page) -> None:
  """Paints over the head of the first image."""
  page.locator('dialog[data-ready]').wait_for()
  page.get_by_label('Size of the brush').fill('10')
  box = page.locator('dialog canvas').bounding_box()
  assert box is not None
  for y in (0.08, 0.16, 0.24, 0.32):
    for move, x in ((page.mouse.move, 0.1), (page.mouse.move, 0.42)):
      move(box['x'] + x * box['width'], box['y'] + y * box['height'])
      page.mouse.down()
    page.mouse.up()


def keep(page: Page, name: str, *, whole: bool = False) -> None:
  """A screenshot in few colours, which keeps it small."""
  path = FOLDER / f'studio_{name}.png'
  page.wait_for_timeout(600)
  page.screenshot(path=path, full_page=whole)
  image = Image.open(path).convert('RGB').quantize(256, dither=Image.Dither.NONE)
  image.save(path, optimize=True)
  print(path, path.stat().st_size)


def main() -> None:
  """Visits the studio at both sizes."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--address', default='http://127.0.0.1:7860')
  flags = parser.parse_args()
  with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
    files = drawings(pathlib.Path(folder))
    browser = playwright.chromium.launch(
      executable_path=shutil.which('chromium'), args=['--headless', '--no-sandbox']
    )
    for name, (width, height) in SIZES.items():
      page = browser.new_page(viewport={'width': width, 'height': height})
      ready(page, flags.address)
      compose(page, files)
      page.evaluate('window.scrollTo(0, 0)')
      keep(page, name, whole=name == '1280')
      if name == '390':
        page.locator('#result').scroll_into_view_if_needed()
        page.evaluate("document.querySelector('#result').scrollIntoView()")
        keep(page, f'{name}_result')
      for condition in ('mask', 'palette'):
        page.get_by_role('button', name=f'Edit {condition}').click()
        page.locator('dialog[open]').wait_for()
        if condition == 'mask':
          paint(page)
        keep(page, f'{name}_{condition}')
        page.get_by_role('button', name='Discard').click()
    browser.close()


if __name__ == '__main__':
  main()
