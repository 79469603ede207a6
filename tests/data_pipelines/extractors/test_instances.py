from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers

from composer_jax.conditions.instances import Instances
from data_pipelines.extractors import open_extractor

CLASSES = {
  'mask2former': transformers.Mask2FormerForUniversalSegmentation,
  'maskformer': transformers.MaskFormerForInstanceSegmentation,
  'detr': transformers.DetrForSegmentation,
}


@pytest.mark.parametrize('head', ['instance', 'panoptic'])
@pytest.mark.parametrize('name', CLASSES)
def test_a_batch_equals_the_library_run_one_by_one(name, head, pictures, request):
  folder = request.getfixturevalue(name)
  kind = name if head == 'instance' else f'{name}-panoptic'
  pictures = pictures[:4]
  found = open_extractor('instances', f'{kind}:{folder}').extract(pictures)
  assert len({each.tobytes() for each in found}) > 1
  processor = transformers.AutoImageProcessor.from_pretrained(folder, backend='pil')
  model = CLASSES[name].from_pretrained(folder).eval()
  segment = getattr(processor, f'post_process_{head}_segmentation')
  agree = []
  for picture, own in zip(pictures, found, strict=True):
    with torch.no_grad():
      outputs = model(**processor(images=picture, return_tensors='pt'))
    (expected,) = segment(outputs, target_sizes=[(64, 64)])
    ids = [each['id'] for each in expected['segments_info']]
    assert own.max() <= len(ids)
    # A background is what is in no segment, whatever number the library gives it.
    translated = np.zeros((64, 64), int)
    segmentation = expected['segmentation'].numpy()
    for number in range(len(ids)):
      translated[segmentation == ids[number]] = number + 1
    agree.append((own == translated).mean())
  # A pixel at a threshold may fall to either side by the last bit of a sum.
  assert min(agree) > 0.99


def test_ids_are_by_falling_area_and_small_parts_are_background(mask2former):
  labels = np.zeros((64, 64), int)
  labels[:16] = 5
  labels[16:48] = 2
  labels[48:50, :2] = 9
  stored = open_extractor('instances', f'mask2former:{mask2former}').store(labels, 32)
  spec = Instances().spec(32)
  assert (stored.shape, stored.dtype) == (spec.shape, spec.dtype)
  expected = np.zeros((32, 32), int)
  expected[:8], expected[8:24] = 2, 1
  np.testing.assert_array_equal(stored[..., 0], expected)
