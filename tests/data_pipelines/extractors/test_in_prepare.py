"""Learned extractors where they are used: in prepared data sets."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from composer_jax import conditions
from data_pipelines import shard as shard_lib
from data_pipelines.dataset import load_dataset
from data_pipelines.extractors import open_extractor
from data_pipelines.prepare import prepare
from data_pipelines.sources import open_source

RED = np.array([1.0, 0, 0]).reshape(1, 3, 1, 1)
"""A net whose lines are the red of the picture."""
ARGUMENTS = {'size': 16, 'shards': 5, 'progress': False, 'test_fraction': 0.2}


@pytest.fixture(scope='module')
def net(write_net, tmp_path_factory):
  path = tmp_path_factory.mktemp('nets') / 'red.onnx'
  return write_net(path, RED, shape=('b', 3, 64, 64))


@pytest.fixture(scope='module')
def drawn(folder, net, tmp_path_factory):
  """The session's folder, prepared with that net. Not to be changed."""
  out = tmp_path_factory.mktemp('drawn') / 'data'
  prepare(f'folder:{folder}', out, extractors={'sketch': f'onnx:{net}'}, **ARGUMENTS)
  return out


def records(directory, names=None):
  splits = json.loads((directory / 'dataset.json').read_text())['splits']
  return {
    record['key']: record
    for split in splits
    for record in load_dataset(directory, split, names)
  }


def test_files_do_not_depend_on_the_workers(folder, net, drawn, tmp_path, files_of):
  out = tmp_path / 'data'
  spec = {'sketch': f'onnx:{net}'}
  prepare(f'folder:{folder}', out, extractors=spec, workers=2, **ARGUMENTS)
  assert files_of(out) == files_of(drawn)


def test_an_interrupted_run_is_resumed_to_the_same_bytes(
  folder, net, drawn, tmp_path, files_of
):
  def interrupted(work, tasks, *, workers):
    for task in tasks[:2]:
      yield task, work(task)
    raise KeyboardInterrupt

  out, spec = tmp_path / 'data', {'sketch': f'onnx:{net}'}
  with pytest.raises(KeyboardInterrupt):
    prepare(f'folder:{folder}', out, extractors=spec, engine=interrupted, **ARGUMENTS)
  assert len(list(out.glob('composer-*'))) == 2
  prepare(f'folder:{folder}', out, extractors=spec, **ARGUMENTS)
  assert files_of(out) == files_of(drawn)


@pytest.mark.parametrize('crop', ['centre', 'random'])
def test_the_square_that_is_seen_is_the_one_that_is_stored(net, tmp_path, crop):
  photos = tmp_path / 'photos'
  photos.mkdir()
  ramp = np.zeros((100, 300, 4), np.uint8)
  ramp[..., 0] = np.linspace(0, 255, 300)
  ramp[..., 3] = 255
  ramp[:50, ..., 3] = 0  # What lies behind shows a drawn colour.
  for i in range(6):
    Image.fromarray(ramp).save(photos / f'{i}.png')
  out, spec = tmp_path / 'data', {'sketch': f'onnx:{net}'}
  prepare(f'folder:{photos}', out, extractors=spec, crop=crop, **ARGUMENTS)
  lefts = set()
  for record in records(out).values():
    red = record['image'][..., 0].astype(int)
    # The sketch has the largest red in a pixel, the image its mean.
    between = record['sketch'][..., 0] - red
    assert between[:6].min() >= -1 and between[:6].max() <= 6
    assert between[10:].min() >= -1 and between[10:].max() <= 6
    lefts.add(red[12, 0])
  assert len(lefts) == (1 if crop == 'centre' else 6)


def test_what_has_measured_a_condition_is_written_down(net, drawn, prepared):
  info = json.loads((drawn / 'dataset.json').read_text())
  about = open_extractor('sketch', f'onnx:{net}').about
  assert info['extractors'] == {'sketch': about}
  assert info['versions']['onnxruntime']
  assert info['conditions']['sketch']['source'] == 'learned: onnx model red.onnx'
  (depth,) = conditions.by_name(['depth'])
  assert info['conditions']['depth']['source'] == depth.spec(16).source
  assert str(net.parent) not in (drawn / 'dataset.json').read_text()
  assert 'extractors' not in json.loads((prepared / 'dataset.json').read_text())


def test_another_extractor_is_refused_with_the_difference(
  folder, net, write_net, drawn, tmp_path, files_of
):
  before = files_of(drawn)
  other = write_net(tmp_path / 'red.onnx', 0.5 * RED, shape=('b', 3, 64, 64))
  for spec in ({'sketch': f'onnx:{other}'}, {}):
    with pytest.raises(ValueError, match=r'other arguments:(.|\n)*extractors'):
      prepare(f'folder:{folder}', drawn, extractors=spec, **ARGUMENTS)
  assert files_of(drawn) == before
  # The same files elsewhere are the same extractor.
  moved = shutil.copy(net, tmp_path / 'red.onnx')
  prepare(
    f'folder:{folder}', drawn, extractors={'sketch': f'onnx:{moved}'}, **ARGUMENTS
  )
  assert files_of(drawn) == before


def test_files_that_change_during_a_run_end_it(folder, write_net, tmp_path):
  own = write_net(tmp_path / 'own.onnx', RED, shape=('b', 3, 64, 64))

  def meddling(work, tasks, *, workers):
    write_net(own, 0.5 * RED, shape=('b', 3, 64, 64))
    yield tasks[0], work(tasks[0])

  with pytest.raises(RuntimeError, match='own.onnx has changed since this run began'):
    prepare(
      f'folder:{folder}', tmp_path / 'data', extractors={'sketch': f'onnx:{own}'},
      engine=meddling, **ARGUMENTS,
    )  # fmt: skip


def test_a_model_that_cannot_be_run_leaves_nothing_in_the_way(folder, net, tmp_path):
  out, bad = tmp_path / 'data', tmp_path / 'bad.onnx'
  bad.write_text('no net')
  with pytest.raises(ValueError, match='no ONNX file'):
    prepare(f'folder:{folder}', out, extractors={'sketch': f'onnx:{bad}'}, **ARGUMENTS)
  assert not out.exists()


def test_an_image_that_a_model_fails_on_is_rejected_and_counted(
  folder, write_net, tmp_path
):
  # Infinity times zero is no number: where there is no red at all.
  kernel = np.where(RED, np.inf, 0)
  net = write_net(tmp_path / 'a.onnx', kernel, shape=('b', 3, 64, 64))
  photos = tmp_path / 'photos'
  photos.mkdir()
  for i in range(11):
    colour = (0 if i in (3, 7) else 90, 80, 70)
    Image.new('RGB', (64, 64), colour).save(photos / f'{i:02d}.png')
  spec = {'sketch': f'onnx:{net}'}
  out = tmp_path / 'data'
  info = prepare(f'folder:{photos}', out, extractors=spec, **ARGUMENTS)
  assert info['counts']['by_reason'] == {'not_finite': 2}
  lines = map(json.loads, (out / 'rejected.jsonl').read_text().splitlines())
  assert [line['key'] for line in lines] == ['03.png', '07.png']
  assert len(records(out)) == 9


def test_an_extractor_of_what_is_not_stored_is_refused(folder, net, tmp_path):
  with pytest.raises(ValueError, match='given for sketch, which is not stored'):
    prepare(
      f'folder:{folder}', tmp_path / 'data', conditions=['palette'],
      extractors={'sketch': f'onnx:{net}'}, **ARGUMENTS,
    )  # fmt: skip


def test_records_hold_what_models_find_and_captions_only_where_there_was_none(
  folder, dpt, mask2former, blip, tmp_path
):
  specs = {
    'depth': f'dpt:{dpt}',
    'instances': f'mask2former:{mask2former}',
    'text': f'blip:{blip}',
  }
  out = tmp_path / 'data'
  info = prepare(f'folder:{folder}', out, extractors=specs, **ARGUMENTS)
  assert info['kept'] == 36
  assert set(info['extractors']) == set(specs)
  assert info['versions'].keys() >= {'torch', 'transformers', 'numpy'}
  made = records(out)
  settings = shard_lib.Settings('', '', '', 16, 'centre', 0, ())
  opened = {field: open_extractor(field, spec) for field, spec in specs.items()}
  found = {field: [] for field in specs}
  source = open_source(f'folder:{folder}')
  for key, record in list(made.items())[:9]:
    picture = source.load(source.keys().index(key), 64).picture
    for field, extractor in opened.items():
      pixels = shard_lib.square(settings, key, picture, extractor.side).pixels
      alone = extractor.store(extractor.extract(pixels[None])[0], 16)
      if field == 'text':
        given = f'café number {int(key[:2])}' if int(key[:2]) % 2 else alone
        assert record['text'] == given
      elif field == 'depth':
        np.testing.assert_allclose(record['depth'], alone, atol=0.05)
      else:
        assert (record['instances'] == alone).mean() > 0.99
      found[field].append(record[field])
  assert all(len({str(v) for v in values}) > 3 for values in found.values())
  texts = [r['text'] for k, r in made.items() if int(k[:2]) % 2 == 0]
  assert info['captioned'] == sum(map(bool, texts)) > 10
  assert info['texts'] == 18 + info['captioned']
