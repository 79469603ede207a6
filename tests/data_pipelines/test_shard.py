from __future__ import annotations

import dataclasses
import errno
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from array_record.python import array_record_module

from composer_jax import conditions
from composer_jax.images import Picture, composite
from composer_jax.seeds import generator
from data_pipelines import shard as shard_lib
from data_pipelines import sources
from data_pipelines.shard import (
  RECEIPTS,
  Settings,
  Shard,
  background,
  digest_of,
  number_for,
  prepare_one,
  receipt_of,
  write_file,
  write_shard,
)

ENVIRONMENT = os.environ | {'PYTHONPATH': os.pathsep.join(sys.path)}
STORED = tuple(c.name for c in conditions.ALL if c.stored and not c.embedded)


def images(*indices):
  """The first records of images."""
  return tuple((index, 0) for index in indices)


def settings_for(directory, source='twemoji', **changes):
  arguments = {'size': 24, 'crop': 'centre', 'seed': 3, 'conditions': STORED}
  keys = digest_of(sources.open_source(source).keys())
  return Settings(source, keys, str(directory), **(arguments | changes))


def read(path):
  reader = array_record_module.ArrayRecordReader(str(path))
  return reader.read_all()


class Troubled:
  """A source of three images, one of which raises."""

  name = licence = credit = 'test'

  def __init__(self, error):
    self.error = error

  def keys(self):
    return ['a', 'b', 'c']

  def load(self, index, size):
    if index == 1:
      raise self.error
    pixels = np.full((size, size, 3), 40 * index, np.uint8)
    return sources.Example(self.keys()[index], Picture(pixels), '')


@pytest.fixture
def troubled(monkeypatch):
  def serve(error):
    shard_lib._open_source.cache_clear()
    monkeypatch.setattr(sources, 'open_source', lambda spec: Troubled(error))

  yield serve
  shard_lib._open_source.cache_clear()


def test_numbers_are_the_same_in_every_process():
  code = 'from data_pipelines.shard import number_for; print(number_for(5, "clé", "x"))'
  for hash_seed in '12':
    printed = subprocess.run(
        [sys.executable, '-c', code],
        env=ENVIRONMENT | {'PYTHONHASHSEED': hash_seed},
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert int(printed) == number_for(5, 'clé', 'x')


def test_numbers_tell_words_and_seeds_apart():
  asked = [(0, 'ab', 'c'), (0, 'a', 'bc'), (1, 'ab', 'c'), (0, 'c', 'ab')]
  assert len({number_for(*words) for words in asked}) == 4


def test_backgrounds_vary_and_keep_clear_of_black():
  drawn = np.array([background(generator(0, str(i))) for i in range(500)])
  assert drawn.dtype == np.uint8
  assert drawn.max(axis=1).min() >= 89  # 0.35 of full value.
  gray = (np.ptp(drawn, axis=1) == 0).mean()
  assert 0.08 < gray < 0.26
  assert drawn.std(axis=0).min() > 40


def test_a_shard_is_written_once(tmp_path):
  settings, shard = settings_for(tmp_path), Shard('train', 0, 1, images(0, 10, 20))
  first = write_shard(settings, shard)
  before = (tmp_path / shard.name).stat().st_mtime_ns
  assert write_shard(settings, shard) == first
  assert (tmp_path / shard.name).stat().st_mtime_ns == before
  assert first['kept'] == 3
  assert first['bytes'] == (tmp_path / shard.name).stat().st_size


def test_a_source_that_has_changed_since_the_plan_is_refused(tmp_path):
  settings = dataclasses.replace(settings_for(tmp_path), keys=digest_of(['another']))
  with pytest.raises(RuntimeError, match='twemoji has changed since this run began'):
    write_shard(settings, Shard('train', 0, 1, images(0, 1)))
  assert not list(tmp_path.glob('composer-*'))


def test_records_hold_the_image_and_what_is_measured_in_it(tmp_path):
  settings, shard = settings_for(tmp_path), Shard('train', 0, 1, images(7))
  write_shard(settings, shard)
  (data,) = read(tmp_path / shard.name)
  record = settings.record_type().decode(data)
  source = sources.open_source('twemoji')
  key = source.keys()[7]
  picture = source.load(7, 24).picture
  assert picture.alpha is not None
  picture = composite(picture, background(generator(3, key, 'background')))
  assert record['key'] == key
  np.testing.assert_array_equal(record['image'], picture.pixels)
  for condition in conditions.by_name(STORED):
    value = condition.extract(picture, generator(3, key, condition.name))
    np.testing.assert_array_equal(record[condition.name], value)


def test_opaque_images_keep_their_own_background():
  pixels = np.random.default_rng(0).integers(0, 256, (24, 24, 3)).astype(np.uint8)
  record = prepare_one(settings_for('unused'), 'k', Picture(pixels), 'said')
  np.testing.assert_array_equal(record['image'], pixels)
  assert record['text'] == 'said'


def test_random_crops_depend_on_the_key_alone():
  pixels = np.random.default_rng(0).integers(0, 256, (24, 90, 3)).astype(np.uint8)
  settings = settings_for('unused', crop='random', conditions=())
  images = [prepare_one(settings, k, Picture(pixels), '')['image'] for k in 'aabcd']
  np.testing.assert_array_equal(images[0], images[1])
  assert len({image.tobytes() for image in images}) > 2


def test_bad_images_are_left_out_and_listed(tmp_path, folder):
  settings = settings_for(tmp_path, f'folder:{folder}')
  keys = sources.open_source(settings.source).keys()
  receipt = write_shard(settings, Shard('train', 0, 1, images(*range(len(keys)))))
  reasons = {item['key']: item['reason'] for item in receipt['rejected']}
  assert sorted(reasons) == [key for key in keys if key.startswith('bad')]
  assert reasons['bad_tiny.png'] == 'too_small'
  assert reasons['bad_cut.png'] == 'truncated'
  assert all(item['message'] for item in receipt['rejected'])
  assert receipt['kept'] == 36
  assert receipt['texts'] == 18


@pytest.mark.parametrize(
  ('error', 'reason'),
  [
    (sources.BadRecord('caption_too_long', 'b: long'), 'caption_too_long'),
    (ZeroDivisionError('in a decoder'), 'error:ZeroDivisionError'),
    (OSError('a decoder that gave up'), 'error:OSError'),
    (FileNotFoundError(errno.ENOENT, 'gone'), 'error:FileNotFoundError'),
  ],
)
def test_whatever_one_image_raises_is_listed(tmp_path, troubled, error, reason):
  troubled(error)
  receipt = write_shard(
    settings_for(tmp_path, 'test'), Shard('train', 0, 1, images(0, 1, 2))
  )
  assert receipt['kept'] == 2
  (item,) = receipt['rejected']
  assert (item['key'], item['reason'], item['message']) == ('b', reason, str(error))


def test_a_condition_that_fails_costs_one_image(tmp_path, monkeypatch):
  condition = conditions.by_name(STORED)[0]
  genuine, calls = type(condition).extract, []

  def fails_once(self, picture, rng):
    calls.append(1)
    if len(calls) == 2:
      raise FloatingPointError('odd pixels')
    return genuine(self, picture, rng)

  monkeypatch.setattr(type(condition), 'extract', fails_once)
  receipt = write_shard(settings_for(tmp_path), Shard('train', 0, 1, images(0, 1, 2)))
  assert receipt['kept'] == 2
  assert receipt['rejected'][0]['reason'] == 'error:FloatingPointError'


@pytest.mark.parametrize(
  'error', [KeyboardInterrupt(), OSError(errno.EIO, 'disk'), MemoryError()]
)
def test_what_is_not_the_images_fault_stops_the_run(tmp_path, troubled, error):
  troubled(error)
  shard = Shard('train', 0, 1, images(0, 1, 2))
  with pytest.raises(type(error)):
    write_shard(settings_for(tmp_path, 'test'), shard)
  assert receipt_of(tmp_path, shard.name) is None
  assert [path for path in tmp_path.rglob('*') if path.is_file()] == []


def test_a_shard_is_done_only_with_file_receipt_and_size(tmp_path):
  receipt = write_file(tmp_path, 'f', [b'one', b'two'], {'more': 1})
  assert receipt_of(tmp_path, 'f') == receipt
  assert receipt['more'] == 1
  assert read(tmp_path / 'f') == [b'one', b'two']
  data, note = (tmp_path / 'f'), (tmp_path / RECEIPTS / 'f.json')
  assert json.loads(note.read_text()) == receipt
  whole = data.read_bytes()
  data.write_bytes(whole[:-1])
  assert receipt_of(tmp_path, 'f') is None
  data.unlink()
  assert receipt_of(tmp_path, 'f') is None
  data.write_bytes(whole)
  note.unlink()
  assert receipt_of(tmp_path, 'f') is None


def test_an_empty_shard_is_a_file_too(tmp_path):
  assert write_file(tmp_path, 'f', [], {})['kept'] == 0
  assert receipt_of(tmp_path, 'f')
  assert list(read(tmp_path / 'f')) == []


WORK = """
import pathlib, sys
from data_pipelines import sources
from data_pipelines.shard import Settings, Shard, digest_of, write_shard
from composer_jax import conditions
names = tuple(c.name for c in conditions.ALL if c.stored and not c.embedded)
keys = digest_of(sources.open_source('twemoji').keys())
write_shard(Settings('twemoji', keys, sys.argv[1], 16, 'centre', 0, names),
            Shard('train', 0, 1, ((0, 0), (1, 0))))
from jax._src import xla_bridge
print(xla_bridge.backends_are_initialized())
print([name for name in ('tensorflow', 'torch', 'transformers', 'onnxruntime')
       if name in sys.modules])
"""


def test_preparing_starts_neither_a_device_nor_what_it_does_not_need(tmp_path):
  # Many workers share one host; only the trainer may take its accelerators.
  printed = subprocess.run(
      [sys.executable, '-c', WORK, str(tmp_path)],
      env=ENVIRONMENT, capture_output=True, text=True, check=True,
  ).stdout  # fmt: skip
  assert printed == 'False\n[]\n'


FULL_DISK = """
import os, resource, signal, sys, pathlib
from data_pipelines.shard import write_file
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
try:
  write_file(pathlib.Path(sys.argv[1]), 'f', (os.urandom(9000) for _ in range(90)), {})
except OSError as error:
  print('OSError', error)
"""


def test_a_full_disk_is_an_error_that_leaves_nothing_behind(tmp_path):
  printed = subprocess.run(
      [sys.executable, '-c', FULL_DISK, str(tmp_path)],
      env=ENVIRONMENT,
      capture_output=True, text=True, check=True,
  ).stdout  # fmt: skip
  assert printed.startswith('OSError Cannot write')
  assert [path for path in tmp_path.rglob('*') if path.is_file()] == []
