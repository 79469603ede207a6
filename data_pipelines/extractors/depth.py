"""Depth by a model of transformers that gives relative inverse depth, as MiDaS does.

Ranftl et al., "Towards Robust Monocular Depth Estimation", 2019, arXiv:1907.01341
(MiDaS), and "Vision Transformers for Dense Prediction", 2021, arXiv:2103.13413 (DPT);
Yang et al., "Depth Anything", 2024, arXiv:2401.10891.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from composer_jax.conditions.depth import NEAREST
from data_pipelines.extractors.extractor import to_size
from data_pipelines.extractors.pretrained import Pretrained, inference
from data_pipelines.sources import BadRecord


class Depth(Pretrained):
  """The condition `depth`; see `Extractor`.

  Such models are trained to be right but for an unknown scale and shift an image, so
  each map is stretched to the whole range, 0 for its farthest point and 10 for its
  nearest.
  """

  def __init__(self, kind: str, path: str):
    super().__init__(kind, path, kind, 'AutoModelForDepthEstimation')
    if self.config.get('depth_estimation_type', 'relative') != 'relative':
      raise ValueError(
        f'{path} is a model of depth_estimation_type'
        f' {self.config["depth_estimation_type"]!r}, in which far is large; expected a'
        ' relative one, in which near is large.'
      )

  def extract(self, pictures: np.ndarray) -> Sequence[np.ndarray]:
    """See `Extractor`; what is found are float32 maps (H, W), large where near."""
    with inference():
      found = self.model(**self.pixels(pictures)).predicted_depth
    return list(found.cpu().numpy())

  def store(self, found: np.ndarray, size: int) -> np.ndarray:
    if not np.isfinite(found).all():
      raise BadRecord('not_finite', 'The depth model gave values that are not finite.')
    near = to_size(found, size).astype(np.float64)
    low, spread = near.min(), np.ptp(near)
    # Rounding errors of a flat map are no relief.
    if spread <= 1e-6 * np.abs(near).max():
      return np.zeros((size, size, 1), np.float16)
    return (NEAREST * (near - low) / spread)[..., None].astype(np.float16)
