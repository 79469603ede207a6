from __future__ import annotations

import csv
import json
import os
import pickle
import sys

import numpy as np
import pytest
from PIL import Image

from composer_jax.images import BadImage
from data_pipelines.sources import BadRecord, open_source
from data_pipelines.sources.folder import FolderSource

COLOURS = {'red': (255, 0, 0), 'green': (0, 255, 0), 'blue': (0, 0, 255)}


def write_png(path, colour='red', side=8):
  os.makedirs(os.path.dirname(path), exist_ok=True)
  with open(path, 'wb') as file:
    Image.new('RGB', (side, side), colour).save(file, 'PNG')


def outcomes(source):
  """For each key the caption of the image, or the reason why it is refused."""
  result, unnamed = {}, []
  for index, key in enumerate(source.keys()):
    try:
      result[key] = source.load(index, 8).caption
    except (BadImage, BadRecord) as error:
      result[key] = error.reason
      unnamed += [key] * (key not in str(error))
  assert not unnamed  # Every refusal says of which file.
  return result


def write_table(path, rows):
  """Writes rows as .jsonl or .csv, whichever the path ends in."""
  with open(path, 'w', encoding='utf-8', newline='') as file:
    if path.suffix == '.jsonl':
      file.writelines(json.dumps(row) + '\n' for row in rows)
    else:
      table = csv.DictWriter(file, list(rows[0]))
      table.writeheader()
      table.writerows(rows)


def test_a_tree_is_listed_by_sorted_relative_paths(tmp_path):
  for name in ('b.png', 'a/z.png', 'a/b/c.PNG', 'B.png', 'a.png'):
    write_png(tmp_path / name)
  source = open_source(f'folder:{tmp_path}')
  assert list(source.keys()) == ['B.png', 'a.png', 'a/b/c.PNG', 'a/z.png', 'b.png']
  assert list(open_source(f'folder:{tmp_path}').keys()) == list(source.keys())


def test_each_key_loads_its_own_image(tmp_path):
  for name, colour in COLOURS.items():
    write_png(tmp_path / f'{name}.png', colour)
  source = FolderSource(str(tmp_path))
  for index, key in enumerate(source.keys()):
    example = source.load(index, 8)
    assert example.key == key
    assert tuple(example.picture.pixels[3, 3]) == COLOURS[key.removesuffix('.png')]
    assert example.caption == ''


def test_listing_opens_no_image(tmp_path, monkeypatch):
  write_png(tmp_path / 'a.png')
  monkeypatch.setattr(Image, 'open', None)
  assert list(FolderSource(str(tmp_path)).keys()) == ['a.png']


def test_companions_are_passed_over_and_other_files_are_counted(tmp_path):
  write_png(tmp_path / 'a.png')
  for name in ('a.txt', '.DS_Store', 'Thumbs.db', 'desktop.ini', '.git/b.png'):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b'whatever')
  for name in ('notes.pdf', 'letter.png', 'model.safetensors'):
    (tmp_path / name).write_text('these are not pixels')
  (tmp_path / 'empty.png').touch()
  source = FolderSource(str(tmp_path))
  assert outcomes(source) == {
    'a.png': 'whatever',
    'empty.png': 'not_an_image',
    'letter.png': 'not_an_image',
    'model.safetensors': 'not_an_image',
    'notes.pdf': 'not_an_image',
  }


def test_a_stamp_collection_of_odd_images(tmp_path):
  """The kind of tree that a drawing program for children leaves behind."""
  rng = np.random.default_rng(0)
  rgba = rng.integers(0, 256, (9, 7, 4), dtype=np.uint8)
  folder = tmp_path / 'stamps' / 'animals'
  folder.mkdir(parents=True)
  Image.fromarray(rgba).save(folder / 'cat.png')
  Image.fromarray(rgba).quantize(5).save(folder / 'cat palette.png')
  Image.fromarray(rgba[..., :2], 'LA').save(folder / 'cat gray.png')
  Image.fromarray(rgba[..., 0].astype(np.uint16) * 257).save(folder / 'cat deep.png')
  Image.fromarray(rgba[..., 0] > 99).save(folder / 'cat bits.png')
  Image.new('CMYK', (9, 7), (0, 255, 255, 0)).save(folder / 'cat ink.jpg')
  Image.new('RGB', (1, 1)).save(folder / 'dot.png')
  whole = (folder / 'cat.png').read_bytes()
  (folder / 'cat half.png').write_bytes(whole[: len(whole) // 2])
  source = FolderSource(str(tmp_path))
  reasons = {os.path.basename(key): what for key, what in outcomes(source).items()}
  assert reasons == {
    'cat bits.png': '',
    'cat deep.png': '',
    'cat gray.png': '',
    'cat half.png': 'truncated',
    'cat ink.jpg': '',
    'cat palette.png': '',
    'cat.png': '',
    'dot.png': 'too_small',
  }


def test_unusual_names_have_printable_unique_keys_and_load(tmp_path):
  names = [
    'a b.png',
    'caf\xe9.png',
    'cafe\u0301.png',
    '\u732b.png',
    '\U0001f431.png',
    'quote\'".png',
    '100%.png',
    'line\nbreak.png',
    'line\\nbreak.png',
    '-rf.png',
    'no extension',
  ]
  for name in names:
    write_png(tmp_path / name)
  source = FolderSource(str(tmp_path))
  keys = list(source.keys())
  assert len(set(keys)) == len(names)
  assert keys == sorted(keys)
  for index, key in enumerate(keys):
    key.encode('utf-8')
    assert key.isprintable() or '\u0301' in key
    assert source.load(index, 8).key == key
  assert {'a b.png', 'caf\xe9.png', '\u732b.png', '100%.png'} <= set(keys)


@pytest.mark.skipif(sys.platform != 'linux', reason='other systems refuse such names')
def test_names_that_are_not_utf8_load(tmp_path):
  root = os.fsencode(tmp_path)
  for name in (b'\xff.png', b'\xfe.png', b'\\udcff.png'):
    write_png(os.path.join(root, name))
  source = FolderSource(str(tmp_path))
  assert list(source.keys()) == ['\\\\udcff.png', '\\udcfe.png', '\\udcff.png']
  for index, key in enumerate(source.keys()):
    key.encode('utf-8')
    source.load(index, 8)


def test_a_text_beside_the_image_is_its_caption(tmp_path):
  write_png(tmp_path / 'a' / 'x.y.png')
  (tmp_path / 'a' / 'x.y.txt').write_bytes('\ufeff ein Ätz-Bild\n'.encode())
  source = FolderSource(str(tmp_path))
  assert outcomes(source) == {'a/x.y.png': 'ein Ätz-Bild'}


@pytest.mark.parametrize('table', ['captions', 'metadata'])
@pytest.mark.parametrize('suffix', ['.jsonl', '.csv'])
@pytest.mark.parametrize('file_field', ['file_name', 'file', 'image'])
@pytest.mark.parametrize('caption_field', ['caption', 'text'])
def test_captions_come_from_tables(tmp_path, table, suffix, file_field, caption_field):
  for name in ('a.png', 'deep/b.png', 'c.png', 'd.png'):
    write_png(tmp_path / name)
  texts = {'a.png': 'one, "two"', './deep/b.png': 'zwei\nZeilen 猫', 'd.png': 'table'}
  rows = [{file_field: file, caption_field: text} for file, text in texts.items()]
  write_table(tmp_path / (table + suffix), rows)
  (tmp_path / 'd.txt').write_text('beside')
  source = FolderSource(str(tmp_path))
  assert outcomes(source) == {
    'a.png': 'one, "two"',
    'c.png': '',
    'd.png': 'beside',
    'deep/b.png': 'zwei\nZeilen 猫',
  }


def test_captions_that_cannot_be_used_cost_one_image_each(tmp_path):
  for name in 'abcdef':
    write_png(tmp_path / f'{name}.png')
  (tmp_path / 'a.txt').write_text('x' * 10_000)
  (tmp_path / 'b.txt').write_text('x' * 10_001)
  (tmp_path / 'c.txt').write_bytes(b'x' * 10_000_000)
  (tmp_path / 'd.txt').write_bytes('Käse'.encode('latin-1'))
  rows = [{'file': 'e.png', 'text': 'x' * 20_000}, {'file': 'f.png', 'text': 'fine'}]
  write_table(tmp_path / 'captions.jsonl', rows)
  with open(tmp_path / 'captions.jsonl', 'ab') as file:
    file.write('{"file": "g.png", "text": "Käse"}\n'.encode('latin-1'))
  write_png(tmp_path / 'g.png')
  source = FolderSource(str(tmp_path))
  assert {key[0]: what for key, what in outcomes(source).items()} == {
    'a': 'x' * 10_000,
    'b': 'caption_too_long',
    'c': 'caption_too_long',
    'd': 'caption_not_utf8',
    'e': 'caption_too_long',
    'f': 'fine',
    'g': 'caption_not_utf8',
  }


@pytest.mark.parametrize(
  ('name', 'content', 'message'),
  [
    ('captions.jsonl', '{"file": "a.png", "text": ""}\n{"file', 'line 2: not JSON'),
    ('captions.jsonl', '["a.png", "x"]\n', 'line 1: not a JSON object'),
    ('captions.jsonl', '{"file": "a.png", "title": "x"}\n', 'caption or text'),
    ('captions.jsonl', '{"file": "a.png", "text": 7}\n', 'caption or text'),
    ('captions.csv', 'path,caption\na.png,x\n', 'file_name or file or image'),
    ('captions.csv', 'file,caption\na.png,"x" y\n', 'line 2: not CSV'),
    ('metadata.csv', 'file,caption\nother.png,x\n', "'other.png'"),
  ],
)
def test_a_malformed_table_is_refused_and_named(tmp_path, name, content, message):
  write_png(tmp_path / 'a.png')
  (tmp_path / name).write_text(content)
  with pytest.raises(ValueError, match=message):
    FolderSource(str(tmp_path))


def test_two_tables_are_refused(tmp_path):
  write_png(tmp_path / 'a.png')
  for name in ('captions.csv', 'metadata.csv'):
    (tmp_path / name).write_text('file,caption\na.png,x\n')
  with pytest.raises(ValueError, match='Keep one'):
    FolderSource(str(tmp_path))


def test_links_are_followed_once(tmp_path):
  write_png(tmp_path / 'far' / 'away' / 'a.png')
  root = tmp_path / 'root'
  write_png(root / 'b.png')
  (root / 'one').symlink_to(tmp_path / 'far')
  (root / 'two').symlink_to(tmp_path / 'far')
  (root / 'self').symlink_to(root)
  source = FolderSource(str(root))
  assert list(source.keys()) == ['b.png', 'one/away/a.png']


def test_files_that_cannot_be_opened_are_counted(tmp_path):
  write_png(tmp_path / 'a.png')
  write_png(tmp_path / 'gone.png')
  (tmp_path / 'dangling.png').symlink_to(tmp_path / 'none.png')
  (tmp_path / 'loop.png').symlink_to(tmp_path / 'loop.png')
  os.mkfifo(tmp_path / 'pipe.png')
  source = FolderSource(str(tmp_path))
  (tmp_path / 'gone.png').unlink()
  assert outcomes(source) == {
    'a.png': '',
    'dangling.png': 'inaccessible',
    'gone.png': 'inaccessible',
    'loop.png': 'inaccessible',
    'pipe.png': 'not_an_image',
  }


def test_a_folder_without_images_is_one_clear_error(tmp_path):
  (tmp_path / 'only.txt').write_text('a caption')
  with pytest.raises(ValueError, match='no images'):
    open_source(f'folder:{tmp_path}')
  with pytest.raises(FileNotFoundError, match='not a folder'):
    open_source(f'folder:{tmp_path}/none')


def test_a_source_works_the_same_in_another_process(tmp_path):
  write_png(tmp_path / 'a.png', 'blue')
  (tmp_path / 'captions.csv').write_text('file,caption\na.png,a blue one\n')
  source = pickle.loads(pickle.dumps(FolderSource(str(tmp_path))))
  example = source.load(0, 8)
  assert (example.key, example.caption) == ('a.png', 'a blue one')
  assert tuple(example.picture.pixels[0, 0]) == COLOURS['blue']
  assert source.licence.startswith('unknown')


@pytest.mark.parametrize('spec', ['', 'folder', 'folder:', 'twemoji:x', 'http://a/b'])
def test_an_unknown_source_is_refused_with_what_is_known(spec):
  with pytest.raises(ValueError, match='not one of the known kinds') as caught:
    open_source(spec)
  for known in ('twemoji', 'folder:PATH', 'tfds:NAME', 'webdataset:GLOB'):
    assert known in str(caught.value)
