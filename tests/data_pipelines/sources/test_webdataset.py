from __future__ import annotations

import io
import json
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image

from composer_jax.images import BadImage
from data_pipelines.sources import BadRecord, open_source
from data_pipelines.sources.webdataset import WebDatasetSource


def image(colour, form='PNG', side=8):
  file = io.BytesIO()
  options = {'lossless': True} if form == 'WEBP' else {}
  Image.new('RGB', (side, side), colour).save(file, form, **options)
  return file.getvalue()


def write_tar(path, members, mode='w'):
  path.parent.mkdir(parents=True, exist_ok=True)
  with tarfile.open(path, mode) as shard:
    for name, data in members:
      entry = tarfile.TarInfo(name)
      entry.size = len(data)
      shard.addfile(entry, io.BytesIO(data))


def outcomes(source):
  """For each key its caption and colour, or the reason why it is refused."""
  result, unnamed = {}, []
  for index, key in enumerate(source.keys()):
    try:
      example = source.load(index, 8)
      assert example.key == key
      result[key] = example.caption, tuple(example.picture.pixels[4, 4].tolist())
    except (BadImage, BadRecord) as error:
      result[key] = error.reason
      unnamed += [key] * (key not in str(error))
  assert not unnamed  # Every refusal says of which sample.
  return result


def test_samples_are_the_members_of_one_name(tmp_path):
  write_tar(
    tmp_path / 'b.tar',
    [
      ('000.txt', b' a red one\n'),
      ('000.png', image('red')),
      ('000.cls', b'3'),
      ('deep/001.seg.png', image('blue')),
      ('deep/001.webp', image('lime', 'WEBP')),
      ('deep/001.json', json.dumps({'caption': 'gr\xfcn', 'w': 8}).encode()),
    ],
  )
  write_tar(tmp_path / 'a.tar', [('000.PNG', image('blue')), ('000.json', b'{"w": 8}')])
  source = open_source(f'webdataset:{tmp_path}/*.tar')
  assert outcomes(source) == {
    'a.tar/000': ('', (0, 0, 255)),
    'b.tar/000': ('a red one', (255, 0, 0)),
    'b.tar/deep/001': ('gr\xfcn', (0, 255, 0)),
  }
  assert list(source.keys()) == sorted(source.keys())


def test_of_several_images_or_captions_the_order_in_the_shard_decides_nothing(tmp_path):
  members = [
    ('0.txt', b'the text'),
    ('0.json', b'{"caption": "the json"}'),
    ('0.jpg', image('red', 'JPEG', side=16)),
    ('0.png', image('blue')),
  ]
  for order in (members, members[::-1]):
    write_tar(tmp_path / 's.tar', order)
    example = WebDatasetSource(f'{tmp_path}/s.tar').load(0, 8)
    assert example.caption == 'the text'
    assert example.picture.pixels.shape == (16, 16, 3)


def test_shards_in_several_folders_have_different_keys(tmp_path):
  for folder, colour in (('x', 'red'), ('y', 'blue')):
    write_tar(tmp_path / folder / '0.tar', [('000.png', image(colour))])
  assert outcomes(WebDatasetSource(f'{tmp_path}/**/*.tar')) == {
    'x/0.tar/000': ('', (255, 0, 0)),
    'y/0.tar/000': ('', (0, 0, 255)),
  }
  assert list(WebDatasetSource(f'{tmp_path}/x/0.tar').keys()) == ['0.tar/000']


def test_samples_that_cannot_be_used_are_counted(tmp_path):
  members = [
    ('fine.jpg', image('red', 'JPEG')),
    ('no_image.txt', b'only words'),
    ('text.png', b'not pixels'),
    ('zero.png', b''),
    ('half.png', image('red', side=90)[:60]),
    ('long.png', image('red')),
    ('long.txt', b'x' * 10_001),
    ('huge.png', image('red')),
    ('huge.txt', b'x' * 1_000_000),
    ('latin.png', image('red')),
    ('latin.txt', 'Käse'.encode('latin-1')),
    ('broken.png', image('red')),
    ('broken.json', b'{"caption": '),
    ('number.png', image('red')),
    ('number.json', b'{"caption": 7}'),
    ('list.png', image('red')),
    ('list.json', b'["caption"]'),
  ]
  write_tar(tmp_path / 's.tar', members)
  result = outcomes(WebDatasetSource(f'{tmp_path}/s.tar'))
  assert result.pop('s.tar/fine')[0] == ''
  assert result == {
    's.tar/broken': 'caption_not_json',
    's.tar/half': 'truncated',
    's.tar/huge': 'caption_too_long',
    's.tar/latin': 'caption_not_utf8',
    's.tar/list': 'caption_not_json',
    's.tar/long': 'caption_too_long',
    's.tar/no_image': 'no_image',
    's.tar/number': 'caption_not_json',
    's.tar/text': 'not_an_image',
    's.tar/zero': 'not_an_image',
  }


def test_unusual_names_have_unique_keys_that_are_text(tmp_path):
  names = ['a b', '\u732b', 'line\nbreak', 'line\\nbreak', 'bytes\udcff']
  write_tar(tmp_path / 's.tar', [(f'{name}.png', image('red')) for name in names])
  source = WebDatasetSource(f'{tmp_path}/s.tar')
  assert len(set(source.keys())) == len(names)
  for index, key in enumerate(source.keys()):
    key.encode('utf-8')
    assert source.load(index, 8).picture.pixels.shape == (8, 8, 3)


def test_folders_links_and_hidden_files_are_no_samples(tmp_path):
  write_tar(tmp_path / 's.tar', [('a.png', image('red')), ('._a.png', b'Finder')])
  with tarfile.open(tmp_path / 's.tar', 'a') as shard:
    for name, kind in (('b.png', tarfile.SYMTYPE), ('c.png', tarfile.DIRTYPE)):
      entry = tarfile.TarInfo(name)
      entry.type, entry.linkname = kind, 'a.png'
      shard.addfile(entry)
  assert list(WebDatasetSource(f'{tmp_path}/s.tar').keys()) == ['s.tar/a']


def test_shards_that_cannot_be_indexed_are_refused(tmp_path):
  big = np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8)
  file = io.BytesIO()
  Image.fromarray(big).save(file, 'PNG')
  members = [('a.png', file.getvalue()), ('b.png', file.getvalue())]
  write_tar(tmp_path / 'packed.tar.gz', members, mode='w:gz')
  with pytest.raises(ValueError, match=r'packed.*uncompressed'):
    WebDatasetSource(f'{tmp_path}/*.gz')
  write_tar(tmp_path / 'whole.tar', members)
  (tmp_path / 'cut.tar').write_bytes((tmp_path / 'whole.tar').read_bytes()[:30_000])
  with pytest.raises(ValueError, match=r'cut.*complete'):
    WebDatasetSource(f'{tmp_path}/cut.tar')
  write_tar(tmp_path / 'twice.tar', [members[0], members[0]])
  with pytest.raises(ValueError, match=r"twice.*'a.png'"):
    WebDatasetSource(f'{tmp_path}/twice.tar')


def test_shards_without_images_are_one_clear_error(tmp_path):
  with pytest.raises(FileNotFoundError, match=r'no file matches'):
    open_source(f'webdataset:{tmp_path}/*.tar')
  write_tar(tmp_path / 's.tar', [('a.txt', b'words')])
  with pytest.raises(ValueError, match='no images'):
    open_source(f'webdataset:{tmp_path}/*.tar')


def test_a_source_works_the_same_in_another_process(tmp_path):
  write_tar(tmp_path / 's.tar', [('a.png', image('blue')), ('a.txt', b'a blue one')])
  source = pickle.loads(pickle.dumps(WebDatasetSource(f'{tmp_path}/s.tar')))
  assert outcomes(source) == {'s.tar/a': ('a blue one', (0, 0, 255))}
