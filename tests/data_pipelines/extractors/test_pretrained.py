from __future__ import annotations

import hashlib
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import DPTForDepthEstimation

from data_pipelines.extractors import open_extractor
from data_pipelines.extractors.pretrained import inference


@pytest.fixture
def own(dpt, tmp_path):
  """A copy that a test may change."""
  return shutil.copytree(dpt, tmp_path / 'own')


def test_what_it_is_made_of_is_noted_down(dpt):
  depth = open_extractor('depth', f'dpt:{dpt}')
  assert (depth.about['kind'], depth.about['name']) == ('dpt', 'tiny-dpt')
  expected = {
    path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in dpt.iterdir()
  }
  assert depth.about['digests'] == expected
  assert 'model.safetensors' in expected
  assert depth.versions.keys() == {'torch', 'transformers'}
  json.dumps(depth.about)


def test_pickles_are_refused(own):
  weights = load_file(own / 'model.safetensors')
  (own / 'model.safetensors').unlink()
  torch.save(weights, own / 'pytorch_model.bin')
  with pytest.raises(ValueError, match='pytorch_model.bin is a pickle.*save_file'):
    open_extractor('depth', f'dpt:{own}')


def test_a_pickle_beside_safe_weights_is_not_read(own, pictures):
  (own / 'pytorch_model.bin').write_bytes(b'not even a pickle')
  found = open_extractor('depth', f'dpt:{own}').extract(pictures[:2])
  assert np.isfinite(found).all()


def test_another_model_is_refused_by_name(dpt, own):
  with pytest.raises(ValueError, match="of type 'dpt'; an extractor 'depth_anything'"):
    open_extractor('depth', f'depth_anything:{dpt}')
  (own / 'config.json').unlink()
  with pytest.raises(
    FileNotFoundError, match='config.json is missing.*save_pretrained'
  ):
    open_extractor('depth', f'dpt:{own}')


def test_weights_that_would_be_random_are_refused(own):
  weights = load_file(own / 'model.safetensors')
  kept = {name: value for name, value in weights.items() if 'head' not in name}
  assert len(kept) < len(weights)
  save_file(kept, own / 'model.safetensors', metadata={'format': 'pt'})
  with pytest.raises(ValueError, match=r'missing or of another shape: .*head'):
    open_extractor('depth', f'dpt:{own}').check()


def test_half_precision_weights_are_run_in_float32(own):
  DPTForDepthEstimation.from_pretrained(own).half().save_pretrained(own)
  assert '"float16"' in (own / 'config.json').read_text()
  model = open_extractor('depth', f'dpt:{own}').model
  assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
  assert not model.training


def test_inference_leaves_the_number_of_threads_as_it_was():
  before = torch.get_num_threads()
  with inference():
    assert torch.get_num_threads() == 1
    assert torch.is_inference_mode_enabled()
  assert torch.get_num_threads() == before
