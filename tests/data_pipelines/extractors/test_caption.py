from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers

from data_pipelines.extractors import open_extractor
from data_pipelines.sources import BadRecord


def test_a_batch_equals_the_library_run_one_by_one(blip, pictures):
  pictures = pictures[:6, :32, :32]
  captions = open_extractor('text', f'blip:{blip}').extract(pictures)
  assert len(set(captions)) > 3
  processor = transformers.AutoImageProcessor.from_pretrained(blip, backend='pil')
  tokenizer = transformers.AutoTokenizer.from_pretrained(blip)
  model = transformers.BlipForConditionalGeneration.from_pretrained(blip).eval()
  for picture, caption in zip(pictures, captions, strict=True):
    inputs = processor(images=picture, return_tensors='pt')
    with torch.no_grad():
      tokens = model.generate(**inputs, do_sample=False, max_new_tokens=40)
    assert caption == tokenizer.decode(tokens[0], skip_special_tokens=True)


def test_what_is_stored_obeys_the_rules_for_captions(blip):
  captioner = open_extractor('text', f'blip:{blip}')
  assert captioner.store(' a red house \n', 16) == 'a red house'
  with pytest.raises(BadRecord, match='10,001 characters'):
    captioner.store('x' * 10_001, 16)


def test_it_looks_at_pictures_of_the_models_size(blip):
  captioner = open_extractor('text', f'blip:{blip}')
  assert captioner.side == 32
  assert captioner.pixels(np.zeros((2, 32, 32, 3), np.uint8)).pixel_values.shape == (
      2, 3, 32, 32,
  )  # fmt: skip
