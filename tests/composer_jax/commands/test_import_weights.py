from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import skimage.data
import transformers
from PIL import Image

from composer_jax import cli
from composer_jax.composer import decompose, square_of
from composer_jax.images import Picture
from composer_jax.models.clip_images import clip_square
from composer_jax.trained import load_encoder
from data_pipelines.loader import load_dataset
from tests.composer_jax.weights.clip_folder import TINY, change_json, write_clip_folder

CAPTIONS = ['a red dog', 'the fox of AND', '', 'café 🦊 12']
SIDE = TINY.image_size


@pytest.fixture(scope='module')
def published(tmp_path_factory):
  """A folder as published, and its model."""
  folder = tmp_path_factory.mktemp('published') / 'tiny-clip'
  model = write_clip_folder(folder)
  card = '---\ntags:\n- clip\nlicense: "mit"\n---\n\n# A CLIP\n\nlicense: none\n'
  (folder / 'README.md').write_text(card)
  return folder, model


@pytest.fixture
def own(published, tmp_path):
  """A copy to change, without the model card."""
  folder = tmp_path / 'clip'
  shutil.copytree(published[0], folder, ignore=shutil.ignore_patterns('README.md'))
  return folder


def run(folder, out):
  return cli.main(
    ['import', '--kind', 'clip', '--from', str(folder), '--out', str(out)]
  )


@pytest.fixture(scope='module')
def imported(published, tmp_path_factory):
  """That folder, imported. Not to be changed."""
  out = tmp_path_factory.mktemp('models') / 'nested' / 'clip'
  assert run(published[0], out) == 0
  return out


def contents(folder):
  return {p: p.read_bytes() for p in folder.rglob('*') if p.is_file()}


def test_the_folder_opens_as_an_encoder_that_embeds_as_the_published_one(
  published, imported
):
  folder, model = published
  encoder = load_encoder(imported)
  assert (encoder.width, encoder.num_tokens, encoder.step) == (24, 12, 0)

  images = np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE, 3), np.uint8)
  processor = transformers.CLIPImageProcessor(
    size={'shortest_edge': SIDE}, crop_size={'height': SIDE, 'width': SIDE}
  )
  pixels = processor(list(images), return_tensors='pt')['pixel_values']
  expected = model.get_image_features(pixels).pooler_output.detach().numpy()
  near = 1e-4 * np.abs(expected).max()
  np.testing.assert_allclose(encoder.embed_images(images), expected, atol=near)

  tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
  tokens = tokenizer(
    CAPTIONS, padding='max_length', truncation=True, max_length=12, return_tensors='pt'
  )
  text = model.get_text_features(tokens['input_ids'])
  words, sentences = encoder.embed_captions(CAPTIONS)
  largest = text.last_hidden_state.abs().max().item()
  # The states of padding are zero.
  wanted = text.last_hidden_state.detach() * tokens['attention_mask'][:, :, None]
  np.testing.assert_allclose(words, wanted, atol=1e-4 * largest)
  wanted = text.pooler_output.detach().numpy()
  near = 1e-4 * np.abs(wanted).max()
  np.testing.assert_allclose(sentences, wanted, atol=near)


def test_an_encoder_finer_than_the_maps_looks_at_the_picture_itself(imported):
  encoder, picture = load_encoder(imported), Picture(skimage.data.coffee())
  coarse = decompose(picture, SIDE // 2, encoder=encoder)['semantics']
  itself = encoder.embed_images(clip_square(picture, SIDE)[None])[0]
  np.testing.assert_allclose(coarse, itself, rtol=1e-3, atol=1e-3)
  stored = encoder.embed_images(square_of(picture, SIDE // 2).pixels[None])[0]
  assert np.abs(coarse - stored).max() > 0.01


def test_it_says_where_the_model_came_from_without_a_path(published, imported):
  folder, _ = published
  text = (imported / 'inputs.json').read_text()
  inputs = json.loads(text)
  digests = {
    name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
    for name in ('config.json', 'vocab.json', 'merges.txt', 'model.safetensors')
  }
  assert inputs['imported'] == {
    'kind': 'clip',
    'from': 'tiny-clip',
    'licence': 'mit',
    'digests': digests,
  }
  command = 'composer-jax import --kind clip --from tiny-clip --out clip'
  assert inputs['command'] == command
  assert str(folder.parent) not in text


def test_conditions_of_a_data_set_are_added_with_it(imported, tmp_path):
  photos = tmp_path / 'photos'
  photos.mkdir()
  for i in range(3):
    part = skimage.data.coffee()[40 * i : 40 * i + 50, 80:140]
    Image.fromarray(part).save(photos / f'{i}.png')
  (photos / '1.txt').write_text('coffee')
  data = tmp_path / 'data'
  flags = ['--source', f'folder:{photos}', '--out', str(data), '--size', '16']
  assert cli.main(['prepare', *flags, '--conditions', 'palette']) == 0
  flags = ['--onto', str(data), '--conditions', 'semantics,caption']
  assert cli.main(['prepare', *flags, '--encoder', str(imported)]) == 0

  encoder = load_encoder(imported)
  splits = [load_dataset(data, split) for split in ('train', 'test')]
  records = {record['key']: record for split in splits for record in split}
  image = records['1.png']['image'][None]
  np.testing.assert_array_equal(
    records['1.png']['semantics'], encoder.embed_images(image)[0].astype(np.float16)
  )
  _, sentence = encoder.embed_captions(['coffee'])
  caption = records['1.png']['caption']
  assert caption.shape == (13, 24)
  np.testing.assert_array_equal(caption[-1], sentence[0].astype(np.float16))
  assert not records['0.png']['caption'].any()


def test_what_was_made_is_said_with_its_licence(published, own, tmp_path, capsys):
  out = tmp_path / 'out'
  assert run(published[0], out / 'a') == 0
  assert capsys.readouterr().out == (
    f'clip of tiny-clip is in {out / "a"}; licence: mit.\n'
  )
  assert run(own, out / 'b') == 0
  assert capsys.readouterr().out == (
    f'clip of clip is in {out / "b"}; licence: not stated in the folder.\n'
  )
  assert sorted(path.name for path in out.iterdir()) == ['a', 'b']


def test_a_second_import_of_the_same_changes_nothing(published, imported):
  before = contents(imported)
  assert run(published[0], imported) == 0
  assert contents(imported) == before


def test_an_empty_folder_is_taken(published, tmp_path):
  (tmp_path / 'out').mkdir()
  assert run(published[0], tmp_path / 'out') == 0
  assert (tmp_path / 'out' / 'config.json').is_file()


@pytest.mark.parametrize('there', ['another import', 'a note', 'a file'])
def test_a_place_that_is_taken_is_refused(published, own, tmp_path, capsys, there):
  out = tmp_path / 'out'
  if there == 'another import':
    change_json(own / 'config.json', dtype='float16')
    assert run(own, out) == 0
  elif there == 'a note':
    out.mkdir()
    (out / 'note.txt').write_text('keep me')
  else:
    out.write_text('keep me')
  before = contents(tmp_path)
  assert run(published[0], out) == 1
  error = capsys.readouterr().err
  assert error == (
    f'composer-jax import: {out} holds something else than this import; give another'
    ' --out.\n'
  )
  assert contents(tmp_path) == before


def test_weights_that_do_not_fit_leave_nothing(own, tmp_path, capsys):
  change_json(own / 'config.json', 'text_config', num_hidden_layers=4)
  assert run(own, tmp_path / 'out') == 1
  error = capsys.readouterr().err
  assert error.startswith(f'composer-jax import: {own / "model.safetensors"} does')
  assert error.count('\n') == 1
  assert sorted(path.name for path in tmp_path.iterdir()) == ['clip']


def test_pickles_are_refused_with_a_way_out(own, tmp_path, capsys):
  (own / 'model.safetensors').rename(own / 'pytorch_model.bin')
  assert run(own, tmp_path / 'out') == 1
  error = capsys.readouterr().err
  assert error.startswith(f'composer-jax import: {own / "pytorch_model.bin"} is a')
  assert 'safetensors.torch.save_file' in error
  assert not (tmp_path / 'out').exists()


def test_an_unknown_kind_is_refused_with_those_that_there_are(tmp_path, capsys):
  with pytest.raises(SystemExit) as stop:
    cli.main(['import', '--kind', 'blip', '--from', 'x', '--out', str(tmp_path / 'x')])
  assert stop.value.code == 2
  assert "invalid choice: 'blip'" in capsys.readouterr().err


def test_a_killed_import_leaves_nothing_that_opens_and_can_be_repeated(
  published, tmp_path
):
  folder, _ = published
  out, part = tmp_path / 'out', tmp_path / 'out.part'
  arguments = ['import', '--kind', 'clip', '--from', folder, '--out', out]
  process = subprocess.Popen(
    [sys.executable, '-m', 'composer_jax', *arguments],
    env=os.environ | {'PYTHONPATH': os.pathsep.join(sys.path)},
  )
  while not part.exists() and process.poll() is None:
    time.sleep(0.001)
  process.kill()
  assert process.wait() == -signal.SIGKILL
  assert part.is_dir()
  assert not out.exists()
  for path in (out, part):
    with pytest.raises(FileNotFoundError, match=r'config\.json does not exist'):
      load_encoder(path)
  assert run(folder, out) == 0
  assert load_encoder(out).width == 24
  assert not part.exists()
