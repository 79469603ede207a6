from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from importlib import metadata

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from composer_jax import conditions
from data_pipelines.engines import local
from data_pipelines.prepare import differences, prepare, split_keys
from data_pipelines.shard import source_key

# As the session's `prepared` folder was made.
ARGUMENTS = {'size': 32, 'shards': 5, 'progress': False, 'test_fraction': 0.2}


def test_everything_is_counted(prepared):
  info = json.loads((prepared / 'dataset.json').read_text())
  assert (info['kept'], info['rejected']) == (36, 4)
  assert info['counts']['kept'] == 36
  assert info['counts']['rejected'] == 4
  assert sum(info['counts']['by_reason'].values()) == 4
  assert info['texts'] == 18
  assert sum(split['kept'] for split in info['splits'].values()) == 36
  for split in info['splits'].values():
    assert sum(split['shard_lengths']) == split['kept']
  assert info['licence'] and info['credit'] and info['versions']
  for condition in conditions.by_name(info['conditions']):
    spec = condition.spec(32)
    assert info['conditions'][condition.name]['dtype'] == spec.dtype
    assert tuple(info['conditions'][condition.name]['shape']) == spec.shape


def test_what_was_rejected_is_listed_with_reasons(prepared):
  lines = (prepared / 'rejected.jsonl').read_text().splitlines()
  items = [json.loads(line) for line in lines]
  assert [item['key'] for item in items] == [
      'bad_cut.png', 'bad_empty.png', 'bad_text.png', 'bad_tiny.png',
  ]  # fmt: skip
  assert all(item['reason'] and item['message'] for item in items)


def test_tfds_opens_the_folder_without_tensorflow(prepared):
  builder = tfds.builder_from_directory(prepared)
  keys = []
  for split, about in builder.info.splits.items():
    source = builder.as_data_source(split)
    assert len(source) == about.num_examples
    for record in source:
      keys.append(record['key'].decode())
      assert record['image'].shape == (32, 32, 3)
      assert record['image'].dtype == np.uint8
  assert sorted(keys) == [f'{i:02d}.png' for i in range(36)]
  assert 'tensorflow' not in sys.modules


def test_files_do_not_depend_on_the_workers(folder, prepared, tmp_path, files_of):
  prepare(f'folder:{folder}', tmp_path / 'data', workers=2, **ARGUMENTS)
  assert files_of(tmp_path / 'data') == files_of(prepared)


def test_files_do_not_depend_on_when_they_were_made(prepared):
  now = time.strftime('%Y-%m')
  assert now not in (prepared / 'dataset.json').read_text()
  assert str(prepared) not in (prepared / 'dataset_info.json').read_text()


# The real thing, slowed down so that it can be killed part-way.
SLOW = """
import sys, time
from data_pipelines import prepare as prepare_lib, shard

genuine = shard.prepare_one

def slowly(*arguments):
  time.sleep(0.06)
  return genuine(*arguments)

shard.prepare_one = slowly

if __name__ == '__main__':
  prepare_lib.prepare(
      sys.argv[1], sys.argv[2], workers=int(sys.argv[3]), size=32, shards=5,
      test_fraction=0.2, progress=False)
"""


@pytest.mark.parametrize('workers', [0, 2])
def test_a_killed_run_is_resumed_to_the_same_bytes(
  workers, folder, prepared, tmp_path, files_of
):
  script, out = tmp_path / 'slow.py', tmp_path / 'data'
  script.write_text(SLOW)
  run = subprocess.Popen(
    [sys.executable, str(script), f'folder:{folder}', str(out), str(workers)],
    env=os.environ | {'PYTHONPATH': os.pathsep.join(sys.path)},
  )
  deadline = time.monotonic() + 60
  while not list(out.glob('composer-*')):  # Until the first shard is complete.
    assert run.poll() is None and time.monotonic() < deadline
    time.sleep(0.01)
  time.sleep(0.1)  # Into the middle of the next.
  run.send_signal(signal.SIGKILL)
  assert run.wait() == -signal.SIGKILL
  finished = {path: path.stat().st_mtime_ns for path in out.glob('composer-*')}
  assert 1 <= len(finished) < 5
  assert not (out / 'dataset.json').exists()

  prepare(f'folder:{folder}', out, **ARGUMENTS)
  assert files_of(out) == files_of(prepared)
  for path, written in finished.items():
    assert path.stat().st_mtime_ns == written, 'A finished shard was made again.'


def test_an_interrupted_run_keeps_its_shards(folder, prepared, tmp_path, files_of):
  def interrupted(work, tasks, *, workers):
    for task in tasks[:2]:
      yield task, work(task)
    raise KeyboardInterrupt

  out = tmp_path / 'data'
  with pytest.raises(KeyboardInterrupt):
    prepare(f'folder:{folder}', out, engine=interrupted, **ARGUMENTS)
  assert len(list(out.glob('composer-*'))) == 2
  prepare(f'folder:{folder}', out, **ARGUMENTS)
  assert files_of(out) == files_of(prepared)


def test_workers_that_do_not_see_the_folder_say_so(folder, tmp_path):
  def elsewhere(work, tasks, *, workers):
    (tmp_path / 'data').rename(tmp_path / 'moved')  # As on another machine's disk.
    yield from local.run(work, tasks, workers=workers)

  with pytest.raises(FileNotFoundError, match='does not see .*/data, where this run'):
    prepare(f'folder:{folder}', tmp_path / 'data', engine=elsewhere, **ARGUMENTS)


def test_workers_with_other_packages_refuse(folder, tmp_path, monkeypatch):
  def upgraded(work, tasks, *, workers):
    monkeypatch.setattr(metadata, 'version', lambda name: '99')
    yield from local.run(work, tasks, workers=workers)

  with pytest.raises(RuntimeError, match='numpy 99 instead of .*install the same'):
    prepare(f'folder:{folder}', tmp_path / 'data', engine=upgraded, **ARGUMENTS)
  assert not list((tmp_path / 'data').glob('composer-*'))


def test_a_complete_folder_is_left_alone(folder, prepared):
  def stamps():
    return {path: path.stat().st_mtime_ns for path in prepared.rglob('*')}

  before = stamps()
  info = prepare(f'folder:{folder}', prepared, **ARGUMENTS)
  assert info == json.loads((prepared / 'dataset.json').read_text())
  assert stamps() == before


def test_a_lost_or_cut_shard_is_made_again(folder, prepared, tmp_path, files_of):
  out = tmp_path / 'data'
  prepare(f'folder:{folder}', out, **ARGUMENTS)
  first, second, *_ = sorted(out.glob('composer-*'))
  first.unlink()
  second.write_bytes(second.read_bytes()[:1000])
  prepare(f'folder:{folder}', out, **ARGUMENTS)
  assert files_of(out) == files_of(prepared)


@pytest.mark.parametrize(
  ('changes', 'said'),
  [
    ({'size': 16}, 'size: 32 there, 16 asked for'),
    ({'seed': 1}, 'seed: 0 there, 1 asked for'),
    ({'crop': 'random'}, "crop: 'centre' there, 'random' asked for"),
    ({'conditions': ()}, r'conditions\.\w+: .* there, None asked for'),
  ],
)
def test_other_arguments_are_refused_with_the_difference(
  changes, said, folder, prepared, files_of
):
  before = files_of(prepared)
  with pytest.raises(ValueError, match=said):
    prepare(f'folder:{folder}', prepared, **(ARGUMENTS | changes))
  assert files_of(prepared) == before


def test_another_seed_gives_other_data(folder, prepared, tmp_path):
  info = prepare(f'folder:{folder}', tmp_path / 'data', seed=1, **ARGUMENTS)
  there = json.loads((prepared / 'dataset.json').read_text())
  assert info['digest'] != there['digest']


def test_copies_differ_in_their_background_alone(tmp_path):
  disc = np.zeros((40, 40, 4), np.uint8)
  disc[10:30, 10:30] = 200, 30, 30, 255
  for name in 'abcd':
    Image.fromarray(disc).save(tmp_path / f'{name}.png')
  info = prepare(
    f'folder:{tmp_path}', out := tmp_path.parent / 'copies', size=32, copies=3,
    test_fraction=0.5, progress=False,
  )  # fmt: skip
  assert info['kept'] == 2 * 3 + 2  # What is held out is there once.
  builder = tfds.builder_from_directory(out)
  images = {r['key'].decode(): r['image'] for r in builder.as_data_source('train')}
  first, *others = sorted(key for key in images if key[0] == min(images)[0])
  assert others == [f'{first} (copy 2)', f'{first} (copy 3)']
  assert {source_key(key) for key in [first, *others]} == {first}
  for other in others:
    np.testing.assert_array_equal(
      images[other][10:22, 10:22], images[first][10:22, 10:22]
    )
    assert (images[other][0, 0] != images[first][0, 0]).any()


def test_no_usable_image_is_an_error_that_says_why(tmp_path):
  (tmp_path / 'in').mkdir()
  for name in ('one.png', 'two.png'):
    (tmp_path / 'in' / name).write_text('words')
  with pytest.raises(ValueError, match=r'None of the 2 images.*2 x not_an_image'):
    prepare(f'folder:{tmp_path / "in"}', tmp_path / 'out', progress=False)
  assert (tmp_path / 'out' / 'rejected.jsonl').read_text().count('\n') == 2
  assert not (tmp_path / 'out' / 'dataset.json').exists()


def test_a_split_of_rejected_images_does_not_hide_the_other(tmp_path):
  pixels = tmp_path / 'in'
  pixels.mkdir()
  Image.new('RGB', (8, 8), 'red').save(pixels / 'good.png')
  (pixels / 'bad.png').write_text('words')
  for seed in range(20):  # Until the good one is held out, and until it is not.
    prepare(
        f'folder:{pixels}', tmp_path / str(seed), size=8, seed=seed, progress=False,
        test_fraction=0.5,
    )  # fmt: skip
    builder = tfds.builder_from_directory(tmp_path / str(seed))
    (split,) = builder.info.splits
    assert builder.as_data_source(split)[0]['key'] == b'good.png'


@pytest.mark.parametrize(
  'arguments', [{'size': 1}, {'test_fraction': 1}, {'crop': 'left'}, {'shards': 0}]
)
def test_arguments_out_of_range_are_refused_before_any_work(
  arguments, folder, tmp_path
):
  with pytest.raises(ValueError, match=str(next(iter(arguments)))):
    prepare(f'folder:{folder}', tmp_path / 'out', progress=False, **arguments)
  assert not (tmp_path / 'out').exists()


def test_only_conditions_of_the_image_itself_can_be_stored(folder, tmp_path):
  for condition in conditions.ALL:
    if condition.embedded or not condition.stored:
      with pytest.raises(ValueError, match=f'{condition.name} is (made|drawn)'):
        prepare(f'folder:{folder}', tmp_path, conditions=[condition.name])


def test_an_image_stays_in_its_split_when_others_come():
  keys = [f'image {i}' for i in range(2000)]
  few, many = split_keys(keys[::2], 0, 1 / 16), split_keys(keys, 0, 1 / 16)
  held_out = {keys[i] for i in many['test']}
  assert {keys[2 * i] for i in few['test']} == held_out & set(keys[::2])
  assert 90 < len(held_out) < 165  # 125 expected.
  assert sorted(many['train'] + many['test']) == list(range(2000))


@pytest.mark.parametrize(
  ('count', 'fraction', 'sizes'),
  [(1, 0.5, [1]), (2, 0.001, [1, 1]), (2, 0.999, [1, 1]), (5, 0, [5])],
)
def test_small_sources_are_split_sensibly(count, fraction, sizes):
  for seed in range(5):
    splits = split_keys([str(i) for i in range(count)], seed, fraction)
    assert [len(indices) for indices in splits.values()] == sizes


def test_differences_name_the_path():
  there, asked = {'a': {'b': 1, 'c': 2}, 'd': 3}, {'a': {'b': 1, 'c': 4}, 'e': 5}
  assert differences(there, asked) == [
    'a.c: 2 there, 4 asked for',
    'd: 3 there, None asked for',
    'e: None there, 5 asked for',
  ]


def test_the_number_of_files_is_the_one_asked_for(prepared):
  info = json.loads((prepared / 'dataset.json').read_text())
  assert sum(info['shards'].values()) == 5
  assert len(list(prepared.glob('composer-*.array_record-*'))) == 5


def test_a_folder_inside_its_own_source_is_refused(folder):
  with pytest.raises(ValueError, match='is inside .* use a folder outside it'):
    prepare(f'folder:{folder}', folder / 'prepared', size=16, progress=False)
  assert not (folder / 'prepared').exists()
