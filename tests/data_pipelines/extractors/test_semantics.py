from __future__ import annotations

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image
from transformers import CLIPImageProcessor

from composer_jax.images import encode_png
from data_pipelines.extractors.semantics import Originals
from data_pipelines.shard import digest_of
from data_pipelines.sources import open_source


def test_pictures_are_as_clips_own_processor_makes_them(folder, prepared):
  info = json.loads((prepared / 'dataset.json').read_text())
  keys = ['07.png', '01.png', '35.png']  # Opaque ones; CLIP itself drops an alpha.
  found = Originals(info, 28)(keys)
  processor = CLIPImageProcessor(
    size={'shortest_edge': 28},
    crop_size={'height': 28, 'width': 28},
    do_normalize=False,
    do_rescale=False,
  )
  for key, own in zip(keys, found, strict=True):
    picture = Image.open(folder / key).convert('RGB')
    expected = processor(picture, return_tensors='np')['pixel_values'][0]
    levels = own.transpose(2, 0, 1).astype(int) - np.rint(expected).astype(int)
    assert np.abs(levels).max() <= 1


def test_a_copy_is_of_the_same_picture(prepared):
  info = json.loads((prepared / 'dataset.json').read_text())
  first, copy = Originals(info, 28)(['07.png', '07.png (copy 2)'])
  np.testing.assert_array_equal(first, copy)


def test_a_key_that_looks_like_that_of_a_copy_is_its_own(tmp_path):
  """As keys of archives may: they have no ending."""
  archive = tmp_path / 'a.tar'
  names = ('dog', 'dog (copy 2)')
  with tarfile.open(archive, 'w') as tar:
    for level, name in enumerate(names):
      data = encode_png(np.full((32, 32, 3), 100 * level, np.uint8))
      member = tarfile.TarInfo(f'{name}.png')
      member.size = len(data)
      tar.addfile(member, io.BytesIO(data))
  source = f'webdataset:{archive}'
  keys = list(open_source(source).keys())
  assert sum(key.endswith('dog (copy 2)') for key in keys) == 1
  info = {'source': source, 'keys': {'digest': digest_of(keys)}}
  found = Originals(info, 28)(keys)
  assert [int(picture.mean()) for picture in found] == [0, 100]


def test_a_source_that_has_changed_is_refused(folder, prepared):
  info = json.loads((prepared / 'dataset.json').read_text())
  info['keys']['digest'] = 'another'
  with pytest.raises(RuntimeError, match='has changed since it was prepared'):
    Originals(info, 28)
