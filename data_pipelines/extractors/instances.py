"""Instances by a segmenter of transformers: Mask2Former, MaskFormer or DETR.

Cheng et al., "Masked-attention Mask Transformer for Universal Image Segmentation",
2021, arXiv:2112.01527, and "Per-Pixel Classification is Not All You Need for Semantic
Segmentation", 2021, arXiv:2107.06278 (MaskFormer); Carion et al., "End-to-End Object
Detection with Transformers", 2020, arXiv:2005.12872 (DETR).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from composer_jax.conditions.instances import number_by_size
from data_pipelines.extractors.pretrained import Pretrained, inference

PANOPTIC = '-panoptic'
"""Ends the kind of a model whose segments are things and stuff, and cover the image."""


class Instances(Pretrained):
  """The condition `instances`; see `Extractor`.

  The library's own post-processing, with its own thresholds, turns what the model says
  into segments. What is in none of them is background.
  """

  def __init__(self, kind: str, path: str):
    super().__init__(
      kind, path, kind.removesuffix(PANOPTIC), 'AutoModelForUniversalSegmentation'
    )
    self._panoptic = kind.endswith(PANOPTIC)

  def extract(self, pictures: np.ndarray) -> Sequence[np.ndarray]:
    """See `Extractor`; what is found are labels (side, side), 0 background."""
    import torch

    sizes = [pictures.shape[1:3]] * len(pictures)
    with inference():
      outputs = self.model(**self.pixels(pictures))
      tensors = {k: v.cpu() for k, v in outputs.items() if isinstance(v, torch.Tensor)}
      outputs = type(outputs)(**tensors)
      if self._panoptic:
        segmented = self.processor.post_process_panoptic_segmentation(
          outputs, label_ids_to_fuse=set(), target_sizes=sizes
        )
      else:
        segmented = self.processor.post_process_instance_segmentation(
          outputs, target_sizes=sizes
        )
    labels = np.zeros(pictures.shape[:3], np.int64)
    for own, one in zip(labels, segmented, strict=True):
      # The ids of the background and of the first segment differ by model.
      for number, segment in enumerate(one['segments_info'], start=1):
        own[one['segmentation'].numpy() == segment['id']] = number
    return list(labels)

  def store(self, found: np.ndarray, size: int) -> np.ndarray:
    # Labels can't be averaged: each pixel has the one at its middle.
    middles = ((np.arange(size) + 0.5) * len(found) / size).astype(int)
    return number_by_size(found[np.ix_(middles, middles)])[..., None]
