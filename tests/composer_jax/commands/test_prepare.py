from __future__ import annotations

import json

import numpy as np
import pytest
import skimage.data
import transformers
from PIL import Image

from composer_jax import cli, conditions
from data_pipelines.loader import load_dataset
from tests.composer_jax.weights.clip_folder import TINY, write_clip_folder

MEASURED = [c.name for c in conditions.ALL if c.stored and not c.embedded]


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
  """Ten parts of photographs, two of them with a caption, and a text called .png."""
  folder = tmp_path_factory.mktemp('photos')
  for name in ('astronaut', 'coffee'):
    photograph = getattr(skimage.data, name)()
    for i in range(5):
      part = photograph[40 * i : 40 * i + 120, 60 * i : 60 * i + 150]
      Image.fromarray(part).save(folder / f'{name}{i}.png')
    (folder / f'{name}0.txt').write_text(f'a part of {name}')
  (folder / 'letter.png').write_text('Dear reader, this is no image.')
  return folder


def prepare(photos, out, *more):
  source = f'folder:{photos}'
  return cli.main(['prepare', '--source', source, '--out', str(out), *more])


@pytest.fixture(scope='module')
def data(photos, tmp_path_factory):
  """Those images, prepared. Not to be changed."""
  out = tmp_path_factory.mktemp('data') / 'set'
  assert prepare(photos, out, '--size', '24') == 0
  return out


def test_the_images_of_a_folder_become_a_data_set(data):
  splits = [load_dataset(data, split) for split in ('train', 'test')]
  records = {record['key']: record for split in splits for record in split}
  names = [f'{name}{i}.png' for name in ('astronaut', 'coffee') for i in range(5)]
  assert sorted(records) == names
  for record in records.values():
    assert record['image'].shape == (24, 24, 3)
    for condition in conditions.by_name(MEASURED):
      spec = condition.spec(24)
      assert record[condition.name].shape == spec.shape
      assert record[condition.name].dtype == spec.dtype
  texts = {key: record['text'] for key, record in records.items() if record['text']}
  assert texts == {f'{n}0.png': f'a part of {n}' for n in ('astronaut', 'coffee')}


def test_pixels_are_the_middle_square_averaged_over_areas(photos, data):
  splits = [load_dataset(data, split, ()) for split in ('train', 'test')]
  records = {record['key']: record for split in splits for record in split}
  original = np.array(Image.open(photos / 'coffee2.png')).astype(float)
  square = original[:, 15:135]
  expected = square.reshape(24, 5, 24, 5, 3).mean((1, 3))
  # Pillow rounds after each of the two axes.
  np.testing.assert_allclose(records['coffee2.png']['image'], expected, atol=1)


def test_what_was_made_and_what_was_left_out_is_said(photos, tmp_path, capsys):
  out = tmp_path / 'set'
  assert prepare(photos, out, '--size', '8', '--conditions', 'palette') == 0
  said = capsys.readouterr().out.splitlines()
  assert said == [
    f'10 images in {out}',
    f'1 left out (1 not_an_image); see {out / "rejected.jsonl"}',
  ]
  (rejected,) = map(json.loads, (out / 'rejected.jsonl').read_text().splitlines())
  assert (rejected['key'], rejected['reason']) == ('letter.png', 'not_an_image')


def test_flags_reach_the_data_set(photos, tmp_path):
  flags = '--size 16 --shards 6 --crop random --seed 5 --conditions sketch,palette'
  assert prepare(photos, tmp_path, *flags.split()) == 0
  info = json.loads((tmp_path / 'dataset.json').read_text())
  assert (info['size'], info['crop'], info['seed']) == (16, 'random', 5)
  assert list(info['conditions']) == ['palette', 'sketch']
  assert info['shards'] == {'train': 5, 'test': 1}
  assert len(list(tmp_path.glob('composer-*.array_record-*'))) == 6


def test_a_second_run_changes_nothing(photos, data, capsys):
  before = {p: p.read_bytes() for p in data.rglob('*') if p.is_file()}
  assert prepare(photos, data, '--size', '24') == 0
  assert capsys.readouterr().out.startswith(f'10 images in {data}\n')
  assert {p: p.read_bytes() for p in data.rglob('*') if p.is_file()} == before


def test_another_size_in_the_same_folder_is_refused(photos, data, capsys):
  before = {p: p.read_bytes() for p in data.rglob('*') if p.is_file()}
  assert prepare(photos, data, '--size', '25') == 1
  error = capsys.readouterr().err
  assert error.startswith(f'composer-jax prepare: {data} was prepared with other')
  assert 'size: 24 there, 25 asked for' in error
  assert {p: p.read_bytes() for p in data.rglob('*') if p.is_file()} == before


@pytest.mark.parametrize(
  ('flags', 'said'),
  [
    ([], 'one of the arguments --source --onto is required'),
    (['--source', 'twemoji'], '--source needs --out DIR'),
    (['--onto', 'x'], '--onto needs --encoder DIR'),
    (['--onto', 'x', '--source', 'twemoji'], 'not allowed with'),
    (['--source', 'twemoji', '--out', 'x', '--crop', 'left'], "'left'"),
    (['--source', 'twemoji', '--out', 'x', '--size', 'big'], "'big'"),
    (['--source', 'twemoji', '--out', 'x', '--workers', '-1'], '--workers is -1;'),
    (['--source', 'twemoji', '--out', 'x', '--semantics', 'x'], 'expected clip:DIR'),
    (['--source', 'twemoji', '--out', 'x', '--overwrite'], 'go with --onto'),
    (['--source', 'twemoji', '--out', 'x', '--engine', 'spark'], "'spark'"),
    (['--source', 'twemoji', '--out', 'x', '--ray-gpus', '1'], '--ray-gpus goes with'),
    (['--onto', 'x', '--encoder', 'x', '--engine', 'ray'], '--engine goes with'),
    (['--onto', 'x', '--encoder', 'x', '--depth', 'dpt:x'], '--depth goes with'),
    (['--onto', 'x', '--encoder', 'x', '--semantics', 'clip:x'], '--semantics goes'),
  ],
)
def test_flags_that_do_not_go_together_are_refused(
  capsys, tmp_path, monkeypatch, flags, said
):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(SystemExit) as stop:
    cli.main(['prepare', *flags])
  assert stop.value.code == 2
  output = capsys.readouterr()
  assert output.out == ''
  assert said in output.err.splitlines()[-1]
  assert list(tmp_path.iterdir()) == []


def test_an_unknown_condition_is_refused_with_those_that_there_are(
  photos, tmp_path, capsys
):
  with pytest.raises(SystemExit) as stop:
    prepare(photos, tmp_path / 'set', '--conditions', 'sketch,smell')
  assert stop.value.code == 2
  error = capsys.readouterr().err.splitlines()[-1]
  assert "'smell'" in error
  assert 'palette' in error
  assert not (tmp_path / 'set').exists()


@pytest.mark.parametrize('name', ['caption', 'mask'])
def test_a_condition_that_images_do_not_hold_is_refused(photos, tmp_path, capsys, name):
  assert prepare(photos, tmp_path / 'set', '--conditions', name) == 1
  assert f'prepare: {name} is' in capsys.readouterr().err
  assert not (tmp_path / 'set').exists()


def test_adding_conditions_needs_a_trained_encoder(data, tmp_path, capsys):
  flags = ['--onto', str(data), '--encoder', str(tmp_path)]
  assert cli.main(['prepare', *flags]) == 1
  error = capsys.readouterr().err
  assert error.startswith(f'composer-jax prepare: {tmp_path / "config.json"} does not')
  assert not (data / 'added').exists()


@pytest.mark.parametrize(
  ('flag', 'field'),
  [
    ('--depth', 'depth'),
    ('--instances', 'instances'),
    ('--sketch', 'sketch'),
    ('--captions', 'text'),
  ],
)
def test_each_flag_of_an_extractor_is_about_its_own_field(
  photos, tmp_path, capsys, flag, field
):
  assert prepare(photos, tmp_path / 'set', flag, 'guess:x') == 1
  error = capsys.readouterr().err
  assert error.startswith(f"composer-jax prepare: 'guess:x' cannot extract {field};")
  assert not (tmp_path / 'set').exists()


@pytest.fixture(scope='module')
def clip(tmp_path_factory):
  """A published CLIP, and the folder that its import makes."""
  folder = tmp_path_factory.mktemp('clip')
  model = write_clip_folder(folder / 'published')
  flags = ['--from', str(folder / 'published'), '--out', str(folder / 'imported')]
  assert cli.main(['import', '--kind', 'clip', *flags]) == 0
  return model, folder / 'imported'


@pytest.fixture(scope='module')
def embedded(photos, clip, tmp_path_factory):
  """Those images, prepared small, with that encoder. Not to be changed."""
  out = tmp_path_factory.mktemp('data') / 'embedded'
  assert prepare(photos, out, '--size', '8', '--semantics', f'clip:{clip[1]}') == 0
  return out


def test_semantics_are_those_of_the_original_pictures(photos, clip, embedded):
  size = TINY.image_size
  processor = transformers.CLIPImageProcessor(
    size={'shortest_edge': size}, crop_size={'height': size, 'width': size}
  )
  splits = {split: load_dataset(embedded, split) for split in ('train', 'test')}
  for split in splits.values():
    for record in split:
      pixels = processor(Image.open(photos / record['key']), return_tensors='pt')
      found = clip[0].get_image_features(**pixels).pooler_output
      expected = found.detach().numpy()[0]
      # Within what rounding to gray levels, and to float16, leaves.
      near = 0.01 * np.abs(expected).max()
      np.testing.assert_allclose(record['semantics'], expected, atol=near)
      assert bool(record['caption'].any()) == bool(record['text'])
  about = splits['train'].added['semantics']
  assert about['encoder']['folder'] == 'imported'
  assert about['encoder']['pictures'] == f'originals, {size} x {size}'
  stored = np.stack([record['semantics'] for record in splits['train']]).astype(float)
  np.testing.assert_allclose(about['statistics']['mean'], stored.mean(0), atol=1e-6)


def test_semantics_of_stored_pixels_do_not_replace_them_unasked(embedded, clip, capsys):
  before = {p: p.read_bytes() for p in embedded.rglob('*') if p.is_file()}
  onto = ['prepare', '--onto', str(embedded), '--encoder', str(clip[1])]
  assert cli.main([*onto, '--conditions', 'semantics']) == 1
  error = capsys.readouterr().err
  assert 'originals' in error and 'Use --overwrite' in error
  assert {p: p.read_bytes() for p in embedded.rglob('*') if p.is_file()} == before


def test_an_encoder_that_is_not_there_is_missed_before_anything_is_made(
  photos, tmp_path, capsys
):
  out, folder = tmp_path / 'set', tmp_path / 'none'
  assert prepare(photos, out, '--semantics', f'clip:{folder}') == 1
  assert str(folder / 'config.json') in capsys.readouterr().err
  assert not out.exists()
