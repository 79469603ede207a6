"""Lines by ONNX files: an edge detector, and a net that simplifies what it draws.

The paper uses PiDiNet (Su et al. 2021, arXiv:2108.07009) and sketch simplification
(Simo-Serra et al. 2018, arXiv:1703.08966). Their authors publish no ONNX files, so
whoever exports them puts each net's own scaling into the graph. A file must have

  one input, float32 (B, C, H, W) from 0 to 1: sRGB if C is 3, lines if C is 1;
  as its last output, float32 (B, 1, H', W') or (B, H', W') from 0 to 1: lines,

where lines are 1 and paper is 0. B is free or 1; H and W are free, or the same number.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from composer_jax.safetensors_files import digest
from data_pipelines.extractors.extractor import existing, need, to_size, version
from data_pipelines.sources import BadRecord

SIDE = 512
"""Side, in pixels, of what a net of free size sees: a little more than the photographs
of BSDS500, 481 x 321, that edge detectors are trained and measured on."""


class Edges:
  """The condition `sketch`; see `Extractor`."""

  def __init__(self, kind: str, paths: str):
    """Checks one file, or several that are applied one after another.

    Args:
      kind: of extractor, to note down.
      paths: separated by commas.

    Raises:
      MissingExtra: ONNX Runtime is not installed.
      FileNotFoundError: there is no such file.
      ValueError: two files have one name.
    """
    need(kind, 'onnxruntime')
    self._files = [existing(path, folder=False) for path in paths.split(',')]
    names = [file.name for file in self._files]
    if len(set(names)) < len(names):
      raise ValueError(
        f'{paths!r}: the files are told apart by their names; expected different ones.'
      )
    self.about: dict[str, Any] = {
      'kind': kind,
      'name': ', then '.join(names),
      'digests': {file.name: digest(file) for file in self._files},
    }
    self.versions = {'onnxruntime': version('onnxruntime')}

  @functools.cached_property
  def _nets(self) -> list[_Net]:
    return [_Net(file.read_bytes(), str(file)) for file in self._files]

  @functools.cached_property
  def side(self) -> int:
    return self._nets[0].side or SIDE

  def check(self) -> None:
    _ = self._nets

  def extract(self, pictures: np.ndarray) -> Sequence[np.ndarray]:
    """See `Extractor`; what is found are float32 maps (H, W), 1 on a line."""
    images = pictures.astype(np.float32).transpose(0, 3, 1, 2) / 255
    for net in self._nets:
      if net.side and net.side != images.shape[-1]:
        scaled = [[to_size(c, net.side) for c in image] for image in images]
        images = np.array(scaled)
      images = net.run(images)
    return list(images[:, 0])

  def store(self, found: np.ndarray, size: int) -> np.ndarray:
    if not np.isfinite(found).all():
      raise BadRecord('not_finite', 'The edge model gave values that are not finite.')
    if size < min(found.shape):
      # An average would fade lines that are thinner than a pixel.
      rows, columns = (np.arange(size) * side // size for side in found.shape)
      lines = np.maximum.reduceat(np.maximum.reduceat(found, rows, 0), columns, 1)
    else:
      lines = to_size(found, size)
    return np.rint(255 * np.clip(lines, 0, 1)).astype(np.uint8)[..., None]


class _Net:
  """One ONNX file.

  Attributes:
    side: of the square it takes, None if it takes any.
  """

  def __init__(self, data: bytes, name: str):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # Sums may be split by thread; workers are for speed.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.use_deterministic_compute = True
    self._name = name
    try:
      # From bytes, so that it can't name other files to be read too.
      self._session = onnxruntime.InferenceSession(
        data, options, providers=['CPUExecutionProvider']
      )
    except Exception as error:  # Classes of its own, without a common one.
      raise ValueError(
        f'{name} is no ONNX file that ONNX Runtime opens: {error} Weights must be in'
        ' the file itself.'
      ) from error
    inputs = self._session.get_inputs()
    shape = inputs[0].shape
    self._channels: int = shape[1] if len(shape) == 4 else 0
    free = [not isinstance(length, int) for length in shape]
    if (
      len(inputs) != 1
      or inputs[0].type != 'tensor(float)'
      or self._channels not in (1, 3)
      or not (free[0] or shape[0] == 1)
      or not ((free[2] and free[3]) or shape[2] == shape[3])
    ):
      asked = ', '.join(f'{i.name}: {i.type} {i.shape}' for i in inputs)
      raise ValueError(
        f'{name} takes {asked}; expected one input, float32 (B, C, H, W) with 3 or 1'
        ' channels, B free or 1, and H and W free or equal.'
      )
    self._input, self._one_by_one = inputs[0].name, not free[0]
    self.side = None if free[2] else shape[2]

  def run(self, images: np.ndarray) -> np.ndarray:
    """Float32 (B, 3 or 1, H, W) to lines, float32 (B, 1, H', W')."""
    if images.shape[1] < self._channels:
      images = np.repeat(images, self._channels, axis=1)
    elif images.shape[1] > self._channels:
      # Luma, Rec. 601.
      luma = np.array([0.299, 0.587, 0.114], np.float32)
      images = np.tensordot(images, luma, (1, 0))[:, None]
    parts = np.split(images, len(images)) if self._one_by_one else [images]
    found = [self._session.run(None, {self._input: part})[-1] for part in parts]
    lines = np.concatenate(found)
    if lines.ndim == 3:
      lines = lines[:, None]
    if lines.ndim != 4 or lines.shape[:2] != (len(images), 1):
      raise ValueError(
        f'{self._name}: its last output has the shape {lines.shape}; expected'
        f' ({len(images)}, 1, H, W).'
      )
    finite = lines[np.isfinite(lines)]
    if finite.size and (finite.min() < -0.01 or finite.max() > 1.01):
      raise ValueError(
        f'{self._name}: its last output is from {finite.min():g} to {finite.max():g};'
        ' expected 0 to 1. Export it with its sigmoid.'
      )
    return lines.astype(np.float32)
