"""Captions by BLIP, for pictures that come without one.

Li et al., "BLIP: Bootstrapping Language-Image Pre-training", 2022, arXiv:2201.12086.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data_pipelines.extractors.pretrained import Pretrained, inference
from data_pipelines.sources.source import check_caption

MAX_TOKENS = 40
"""Of the longest caption; what would follow is cut off."""


class Caption(Pretrained):
  """The text of a record; see `Extractor`.

  The likeliest token each time, so that the same picture has the same caption.
  """

  def __init__(self, kind: str, path: str):
    super().__init__(kind, path, 'blip', 'BlipForConditionalGeneration')

  def check(self) -> None:
    super().check()
    _ = self.tokenizer

  def extract(self, pictures: np.ndarray) -> Sequence[str]:
    """See `Extractor`; what is found are captions."""
    inputs = self.pixels(pictures)
    with inference():
      tokens = self.model.generate(
        pixel_values=inputs['pixel_values'],
        do_sample=False,
        num_beams=1,
        max_new_tokens=MAX_TOKENS,
      )
    return self.tokenizer.batch_decode(tokens.cpu(), skip_special_tokens=True)

  def store(self, found: str, size: int) -> str:
    return check_caption(found, name='The captioner')
