"""Preparing to, and reading from, an S3 server of another project's making."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tarfile
import time

import numpy as np
import pytest
import upath

from data_pipelines.dataset import load_dataset
from data_pipelines.loader import batches
from data_pipelines.prepare import prepare
from data_pipelines.sources import open_source
from tests.data_pipelines.test_embed import add
from tests.data_pipelines.test_prepare import ARGUMENTS, SLOW

pytestmark = pytest.mark.usefixtures('store')


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv('COMPOSER_JAX_CACHE', str(tmp_path / 'cache'))
  return tmp_path / 'cache'


@pytest.fixture(scope='module')
def photos(store, folder):
  """The session's folder of images, in the bucket."""
  root = upath.UPath('s3://bucket/photos')
  root.fs.put(str(folder), root.path, recursive=True)
  return str(root)


@pytest.fixture(scope='module')
def data(store, folder):
  """That folder, prepared to the bucket from the disk. Not to be changed."""
  prepare(f'folder:{folder}', 's3://bucket/data', **ARGUMENTS)
  return 's3://bucket/data'


def test_a_bucket_gets_the_files_that_a_disk_gets(data, prepared, files_of, objects_of):
  assert objects_of(data) == files_of(prepared)


def test_a_complete_data_set_is_left_alone(data, folder, objects_of):
  before = written(data)
  prepare(f'folder:{folder}', data, **ARGUMENTS)
  assert written(data) == before


def written(url):
  path = upath.UPath(url, use_listings_cache=False)
  found = path.fs.find(path.path, detail=True)
  # A folder that comes into being between two of its requests is found as one.
  files = {name: about for name, about in found.items() if about['type'] == 'file'}
  return {name: about['LastModified'] for name, about in files.items()}


def test_other_arguments_are_refused(data, folder):
  with pytest.raises(
    ValueError, match='s3://bucket/data was prepared with other arguments'
  ):
    prepare(f'folder:{folder}', data, **(ARGUMENTS | {'size': 16}))


def shards(url):
  return {name: at for name, at in written(url).items() if '/.shards/' not in name}


def test_a_killed_run_is_resumed_to_the_same_bytes(
  folder, prepared, tmp_path, files_of, objects_of
):
  script, out = tmp_path / 'slow.py', 's3://bucket/killed'
  script.write_text(SLOW)
  run = subprocess.Popen(
    [sys.executable, str(script), f'folder:{folder}', out, '0'],
    env=os.environ | {'PYTHONPATH': os.pathsep.join(sys.path)},
  )
  deadline = time.monotonic() + 60
  while not shards(out):
    assert run.poll() is None and time.monotonic() < deadline
    time.sleep(0.05)
  run.send_signal(signal.SIGKILL)
  assert run.wait() == -signal.SIGKILL
  finished = shards(out)
  assert 1 <= len(finished) < 5
  prepare(f'folder:{folder}', out, **ARGUMENTS)
  assert objects_of(out) == files_of(prepared)
  assert finished.items() <= shards(out).items(), 'A finished shard was made again.'


def test_images_are_read_from_a_bucket_as_from_a_disk(
  photos, folder, prepared, tmp_path
):
  here, there = open_source(f'folder:{folder}'), open_source(f'folder:{photos}')
  assert there.keys() == here.keys()
  info = prepare(f'folder:{photos}', tmp_path / 'data', workers=1, **ARGUMENTS)
  assert info['digest'] == load_dataset(prepared).info['digest']
  reasons = {'not_an_image': 2, 'too_small': 1, 'truncated': 1}
  assert info['counts']['by_reason'] == reasons


def test_a_caption_table_is_read_from_a_bucket():
  root = upath.UPath('s3://bucket/table')
  (root / 'captions.csv').write_text('file,caption\nsub/a.png,said\n')
  (root / 'sub' / 'a.png').write_bytes(b'')
  (root / '.hidden' / 'b.png').write_bytes(b'')
  source = open_source('folder:s3://bucket/table')
  assert source.keys() == ['sub/a.png']
  assert source._captions == {'sub/a.png': 'said'}


def test_tar_shards_are_read_from_a_bucket_as_from_a_disk(folder, tmp_path):
  for part in range(2):
    with tarfile.open(tmp_path / f'{part}.tar', 'w') as shard:
      for path in sorted(folder.glob(f'{part}*')):
        shard.add(path, path.name)
    upath.UPath('s3://bucket/tars').fs.put(
      str(tmp_path / f'{part}.tar'), 'bucket/tars/'
    )
  here = open_source(f'webdataset:{tmp_path}/*.tar')
  there = open_source('webdataset:s3://bucket/tars/*.tar')
  assert there.keys() == here.keys()
  for index in range(len(here.keys())):
    one, other = here.load(index, 32), there.load(index, 32)
    assert one.caption == other.caption
    np.testing.assert_array_equal(one.picture.pixels, other.picture.pixels)


def test_a_prepared_bucket_is_read_like_a_folder(data, prepared, cache):
  here, there = load_dataset(prepared), load_dataset(data)
  assert len(here) == len(there)
  for one, other in zip(here, there, strict=True):
    assert one.keys() == other.keys()
    for name, value in one.items():
      np.testing.assert_array_equal(value, other[name])
  mine = next(batches(here, batch_size=8, seed=1))
  theirs = next(batches(there, batch_size=8, seed=1, workers=1))
  np.testing.assert_array_equal(mine['image'], theirs['image'])


def test_shards_are_copied_once_and_only_those_of_the_split(prepared, cache):
  path = upath.UPath('s3://bucket/copied')
  path.fs.put(str(prepared), path.path, recursive=True)
  load_dataset('s3://bucket/copied', 'test')
  copied = [file.name for file in cache.rglob('composer-*')]
  assert copied and all('-test.' in name for name in copied)
  for name in path.fs.glob('bucket/copied/composer-test*'):
    path.fs.rm(name)
  assert len(load_dataset('s3://bucket/copied', 'test'))
  path.fs.rm(path.fs.glob('bucket/copied/composer-train*')[0])
  with pytest.raises(
    FileNotFoundError, match='s3://bucket/copied/composer-train.* missing'
  ):
    load_dataset('s3://bucket/copied', 'train')


def test_embeddings_are_added_to_a_bucket(prepared, tmp_path, files_of, objects_of):
  path = upath.UPath('s3://bucket/onto')
  path.fs.put(str(prepared), path.path, recursive=True)
  own = tmp_path / 'own'
  path.fs.get(path.path, str(own), recursive=True)
  add(own)
  add('s3://bucket/onto')
  assert objects_of('s3://bucket/onto') == files_of(own)
  one, other = load_dataset(own)[0], load_dataset('s3://bucket/onto')[0]
  assert one.keys() == other.keys() and 'semantics' in one


def test_a_bucket_that_is_not_there_is_named(folder):
  with pytest.raises(FileNotFoundError, match=r"no such bucket: 's3://nowhere/data/"):
    prepare(f'folder:{folder}', 's3://nowhere/data', **ARGUMENTS)
  with pytest.raises(FileNotFoundError, match='s3://nowhere/data/dataset.json is miss'):
    load_dataset('s3://nowhere/data')


@pytest.mark.parametrize(
  ('environment', 'said'),
  [
    ({'AWS_ENDPOINT_URL': 'http://127.0.0.1:1'}, 'Could not connect'),
    ({'AWS_ACCESS_KEY_ID': None, 'AWS_SECRET_ACCESS_KEY': None}, 'credentials'),
  ],
)
def test_a_store_that_cannot_be_used_is_one_line(environment, said, tmp_path):
  there = os.environ | {
    'AWS_EC2_METADATA_DISABLED': 'true',
    'AWS_MAX_ATTEMPTS': '1',
    'HOME': str(tmp_path),
    'PYTHONPATH': os.pathsep.join(sys.path),
  }
  there = {k: v for k, v in (there | environment).items() if v is not None}
  command = [sys.executable, '-m', 'composer_jax', 'prepare', '--source', 'twemoji']
  run = subprocess.run(
    [*command, '--out', 's3://bucket/refused'],
    env=there,
    capture_output=True,
    text=True,
  )
  assert run.returncode == 1
  (line,) = run.stderr.splitlines()
  assert line.startswith('composer-jax prepare: ') and said in line
  assert 's3://bucket/refused' in line


WITHOUT = """
import sys
sys.modules['s3fs'] = sys.modules['gcsfs'] = None
from composer_jax.buckets import open_path
from composer_jax.extras import MissingExtra
for url in ('s3://c/d', 'gs://c/d'):
  try:
    open_path(url)
  except MissingExtra as error:
    print(error)
"""


def test_without_the_package_it_says_what_to_install():
  printed = subprocess.run(
    [sys.executable, '-c', WITHOUT], capture_output=True, text=True, check=True
  ).stdout.splitlines()
  for line, url, extra in zip(printed, ('s3', 'gs'), ('s3', 'gcs'), strict=True):
    assert line.startswith(f'{url}://c/d needs')
    assert f"pip install 'composer_jax[{extra}]'" in line


def test_an_unknown_scheme_is_refused():
  with pytest.raises(ValueError, match='nowhere://x.*expected s3:// or gs://'):
    load_dataset('nowhere://x')
