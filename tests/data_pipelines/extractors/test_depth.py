from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
import transformers
from transformers.models.dpt.image_processing_pil_dpt import DPTImageProcessorPil

from composer_jax.conditions.depth import Depth
from data_pipelines.extractors import open_extractor
from data_pipelines.sources import BadRecord

CLASSES = {
  'dpt': transformers.DPTForDepthEstimation,
  'depth_anything': transformers.DepthAnythingForDepthEstimation,
}


@pytest.mark.parametrize('kind', CLASSES)
def test_a_batch_equals_the_library_run_one_by_one(kind, pictures, request):
  folder = request.getfixturevalue(kind)
  depth = open_extractor('depth', f'{kind}:{folder}')
  pictures = pictures[:5, : depth.side, : depth.side]
  found = depth.extract(pictures)
  processor = DPTImageProcessorPil.from_pretrained(folder)
  model = CLASSES[kind].from_pretrained(folder).eval()
  assert np.ptp([each.mean() for each in found]) > 1e-3
  for picture, own in zip(pictures, found, strict=True):
    with torch.no_grad():
      inputs = processor(images=picture, return_tensors='pt')
      expected = model(**inputs).predicted_depth[0].numpy()
    np.testing.assert_allclose(own, expected, rtol=1e-4, atol=1e-4 * expected.max())


def test_the_same_pictures_give_the_same_bits(dpt, pictures):
  once = open_extractor('depth', f'dpt:{dpt}').extract(pictures)
  again = open_extractor('depth', f'dpt:{dpt}').extract(pictures)
  np.testing.assert_array_equal(once, again)


def test_what_is_stored_spans_the_conditions_range_and_near_is_large(dpt):
  found = np.random.default_rng(0).uniform(3, 90, (64, 64)).astype(np.float32)
  stored = open_extractor('depth', f'dpt:{dpt}').store(found, 16)
  spec = Depth().spec(16)
  assert (stored.shape, stored.dtype) == (spec.shape, spec.dtype)
  means = found.reshape(16, 4, 16, 4).mean((1, 3))
  expected = 10 * (means - means.min()) / (means.max() - means.min())
  np.testing.assert_allclose(stored[..., 0], expected, atol=0.01)


def test_a_flat_map_has_no_relief(dpt):
  flat = np.full((64, 64), 7.3, np.float32)
  flat[0, 0] += 1e-6
  assert not open_extractor('depth', f'dpt:{dpt}').store(flat, 16).any()


def test_a_map_that_is_not_finite_is_refused(dpt):
  found = np.ones((64, 64), np.float32)
  found[3, 3] = np.nan
  with pytest.raises(BadRecord, match='not finite') as refused:
    open_extractor('depth', f'dpt:{dpt}').store(found, 16)
  assert refused.value.reason == 'not_finite'


def test_metric_depth_in_which_far_is_large_is_refused(depth_anything, tmp_path):
  own = shutil.copytree(depth_anything, tmp_path / 'own')
  config = json.loads((own / 'config.json').read_text())
  config['depth_estimation_type'] = 'metric'
  (own / 'config.json').write_text(json.dumps(config))
  with pytest.raises(ValueError, match="'metric'.*near is large"):
    open_extractor('depth', f'depth_anything:{own}')
