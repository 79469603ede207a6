from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from etils import epath
from PIL import Image

from composer_jax.images import BadImage
from data_pipelines.sources import open_source

COUNTS = {'train': 5, 'test': 3}
FEATURES = tfds.features


def png(value, side=12):
  file = io.BytesIO()
  Image.new('RGBA', (side, side), (value, 0, 0, 128)).save(file, 'PNG')
  file.seek(0)
  return file


def jpeg(value):
  file = io.BytesIO()
  Image.new('RGB', (12, 12), (value, 0, 0)).save(file, 'JPEG')
  file.seek(0)
  return file


@pytest.fixture(scope='module')
def prepare(tmp_path_factory):
  """Writes a small data set for each set of features; gives the folder of its version.

  The image of example i has red i.
  """
  made = {}

  def make(name, features, example):
    root = epath.Path(tmp_path_factory.mktemp('tfds'))

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
      VERSION = tfds.core.Version('1.0.0')
      # Otherwise the files of a package would be sought around this test.
      pkg_dir_path, code_path = root, None

      def _info(self):
        return tfds.core.DatasetInfo(
          builder=self,
          features=FEATURES.FeaturesDict(features),
          license='CC0 1.0',
          citation='Somebody, 2020',
        )

      def _split_generators(self, download_manager):
        return {split: self._generate_examples(n) for split, n in COUNTS.items()}

      def _generate_examples(self, n):
        for i in range(n):
          yield str(i), example(i)

    if name not in made:
      Builder.name = name
      builder = Builder(data_dir=root, file_format='array_record')
      builder.download_and_prepare()
      made[name] = root, builder.data_path
    return made[name]

  return make


@pytest.fixture
def classes(prepare):
  features = {
    'image': FEATURES.Image(shape=(None, None, 4)),
    'label': FEATURES.ClassLabel(names=['tabby_cat', 'dog']),
  }
  return prepare('classes', features, lambda i: {'image': png(i), 'label': i % 2})


def test_all_splits_are_read_in_the_order_of_sorted_keys(classes):
  source = open_source(f'tfds:{classes[1]}')
  keys = list(source.keys())
  assert keys == sorted(keys)
  assert len(set(keys)) == 8
  assert [key.split('/')[0] for key in keys] == ['test'] * 3 + ['train'] * 5
  examples = [source.load(index, 12) for index in range(8)]
  assert [example.key for example in examples] == keys
  reds = [int(example.picture.pixels[0, 0, 0]) for example in examples]
  assert sorted(reds[:3]) == [0, 1, 2]
  assert sorted(reds[3:]) == [0, 1, 2, 3, 4]
  # The class is the caption, and transparency is kept.
  for example, red in zip(examples, reds, strict=True):
    assert example.caption == ('dog' if red % 2 else 'tabby cat')
    assert (example.picture.alpha == 128).all()


def test_one_split_or_a_part_of_it(classes):
  assert len(open_source(f'tfds:{classes[1]}@test').keys()) == 3
  assert len(open_source(f'tfds:{classes[1]}@train[:40%]').keys()) == 2
  with pytest.raises(ValueError, match=r"'nope'.*train"):
    open_source(f'tfds:{classes[1]}@nope')


def run(program, *arguments, **variables):
  """What a program prints in a process of its own, line by line."""
  command = [sys.executable, '-c', program, *arguments]
  # Where this test's modules were found, those of the program are.
  environment = os.environ | {'PYTHONPATH': os.pathsep.join(sys.path)} | variables
  return subprocess.check_output(command, env=environment, text=True).splitlines()


def test_a_data_set_is_found_by_name_where_the_environment_says(classes):
  program = (
    'from data_pipelines.sources import open_source;'
    'print(len(open_source("tfds:classes").keys()));'
    'print(len(open_source("tfds:classes:1.0.0@train").keys()))'
  )
  root, _ = classes
  assert run(program, TFDS_DATA_DIR=str(root)) == ['8', '5']


@pytest.mark.parametrize('where', ['no_such_data_set', '/no/such/folder'])
def test_absent_data_are_one_clear_error_and_nothing_is_downloaded(where):
  with pytest.raises(FileNotFoundError, match='Nothing is downloaded'):
    open_source(f'tfds:{where}')


def test_captions_and_several_captions(prepare):
  features = {
    'image': FEATURES.Image(),
    'caption': FEATURES.Text(),
    'label': FEATURES.ClassLabel(names=['x']),
  }
  _, path = prepare(
    'one_caption',
    features,
    lambda i: {'image': jpeg(i), 'caption': f' nummer {i} ü', 'label': 0},
  )
  captions = {open_source(f'tfds:{path}@test').load(i, 8).caption for i in range(3)}
  assert captions == {'nummer 0 ü', 'nummer 1 ü', 'nummer 2 ü'}
  features = {
    'image': FEATURES.Image(),
    'captions': FEATURES.Sequence({'id': np.int64, 'text': FEATURES.Text()}),
  }
  texts = [{'id': 1, 'text': 'first'}, {'id': 2, 'text': 'second'}]
  _, path = prepare(
    'many_captions', features, lambda i: {'image': jpeg(i), 'captions': texts[:i]}
  )
  captions = [open_source(f'tfds:{path}@test').load(i, 8).caption for i in range(3)]
  assert sorted(captions) == ['', 'first', 'first']


def test_an_image_alone_has_no_caption_and_a_bad_one_is_refused(prepare):
  _, path = prepare(
    'bare',
    {'picture': FEATURES.Image()},
    lambda i: {'picture': png(i) if i else io.BytesIO(b'these are not pixels')},
  )
  source = open_source(f'tfds:{path}@test')
  reasons = []
  for index in range(3):
    try:
      reasons.append(source.load(index, 8).caption)
    except BadImage as error:
      reasons.append(error.reason)
  assert sorted(reasons) == ['', '', 'not_an_image']


def test_no_image_or_an_ambiguous_one_is_refused(prepare):
  _, path = prepare('words', {'text': FEATURES.Text()}, lambda i: {'text': 'x'})
  with pytest.raises(ValueError, match='image features'):
    open_source(f'tfds:{path}')
  features = {'left': FEATURES.Image(), 'right': FEATURES.Image()}
  _, path = prepare('pairs', features, lambda i: {'left': png(i), 'right': png(i)})
  with pytest.raises(ValueError, match=r'left.*right'):
    open_source(f'tfds:{path}')


def test_licence_and_credit_are_those_of_the_data_set(classes):
  source = open_source(f'tfds:{classes[1]}')
  assert source.licence == 'CC0 1.0'
  assert source.credit == 'Somebody, 2020'


def test_another_process_reads_the_same_without_tensorflow(classes, tmp_path):
  source = open_source(f'tfds:{classes[1]}')
  source.load(0, 8)
  (tmp_path / 'source').write_bytes(pickle.dumps(source))
  program = (
    'import pickle, sys; source = pickle.load(open(sys.argv[1], "rb"));'
    'print(*(source.load(i, 8).picture.pixels[0, 0, 0] for i in range(8)));'
    'print("tensorflow" in sys.modules)'
  )
  printed = run(program, tmp_path / 'source')
  reds = [str(source.load(i, 8).picture.pixels[0, 0, 0]) for i in range(8)]
  assert printed == [' '.join(reds), 'False']
