from __future__ import annotations

import hashlib

import numpy as np
import pytest
from scipy import ndimage

from composer_jax.conditions.sketch import Sketch
from data_pipelines.extractors import open_extractor
from data_pipelines.sources import BadRecord

LAPLACE = np.array([[0, -1, 0], [-1, 4, -1], [0, -1, 0]])
COLOUR = np.stack([0.5 * LAPLACE, LAPLACE, 0.3 * LAPLACE])[None]
"""Colour to lines, (1, 3, 3, 3)."""
CENTRE = np.pad([[0.5]], 1)[None, None]
"""Lines to lines half as strong, (1, 1, 3, 3)."""


def expected(picture: np.ndarray) -> np.ndarray:
  """What a net of the kernel `COLOUR` gives for uint8 sRGB (H, W, 3)."""
  image = picture.transpose(2, 0, 1) / 255
  found = [
    ndimage.correlate(channel, kernel, mode='constant')
    for channel, kernel in zip(image, COLOUR[0], strict=True)
  ]
  return np.clip(np.abs(np.sum(found, 0)), 0, 1)


@pytest.mark.parametrize('batch', ['b', 1])
def test_a_batch_equals_the_net_computed_otherwise(
  write_net, tmp_path, pictures, batch
):
  path = write_net(
    tmp_path / 'a.onnx', COLOUR, shape=(batch, 3, 64, 64), extra_output=True
  )
  edges = open_extractor('sketch', f'onnx:{path}')
  assert edges.side == 64
  found = edges.extract(pictures)
  for picture, own in zip(pictures, found, strict=True):
    np.testing.assert_allclose(own, expected(picture), atol=1e-5)


def test_a_second_net_gets_the_lines_of_the_first(write_net, tmp_path, pictures):
  first = write_net(tmp_path / 'edges.onnx', COLOUR)
  second = write_net(tmp_path / 'simplify.onnx', CENTRE)
  edges = open_extractor('sketch', f'onnx:{first},{second}')
  assert edges.about['name'] == 'edges.onnx, then simplify.onnx'
  assert edges.about['digests'] == {
    path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (first, second)
  }
  for picture, own in zip(pictures, edges.extract(pictures), strict=True):
    np.testing.assert_allclose(own, expected(picture) / 2, atol=1e-5)


def test_between_nets_of_different_sizes_lines_are_averaged(
  write_net, tmp_path, pictures
):
  first = write_net(tmp_path / 'edges.onnx', COLOUR)
  second = write_net(tmp_path / 'simplify.onnx', CENTRE, shape=('b', 1, 32, 32))
  (found,) = open_extractor('sketch', f'onnx:{first},{second}').extract(pictures[:1])
  means = expected(pictures[0]).reshape(32, 2, 32, 2).mean((1, 3))
  np.testing.assert_allclose(found, means / 2, atol=1e-5)


def test_a_net_of_gray_pictures_gets_luma(write_net, tmp_path, pictures):
  path = write_net(tmp_path / 'gray.onnx', CENTRE)
  (found,) = open_extractor('sketch', f'onnx:{path}').extract(pictures[:1])
  luma = pictures[0] @ [0.299, 0.587, 0.114] / 255
  np.testing.assert_allclose(found, luma / 2, atol=1e-5)


def test_a_net_of_any_size_sees_large_pictures(write_net, tmp_path):
  path = write_net(tmp_path / 'a.onnx', COLOUR)
  assert open_extractor('sketch', f'onnx:{path}').side == 512


@pytest.mark.parametrize('size', [16, 24])
def test_a_thin_line_stays_a_line_when_it_is_stored(write_net, tmp_path, size):
  edges = open_extractor('sketch', f'onnx:{write_net(tmp_path / "a.onnx", COLOUR)}')
  found = np.zeros((64, 64), np.float32)
  found[:, 10] = 1
  found[20, 40:] = 0.4
  stored = edges.store(found, size)
  spec = Sketch().spec(size)
  assert (stored.shape, stored.dtype) == (spec.shape, spec.dtype)
  # Each line runs through as many pixels as it is long, and is one of them wide.
  (upright,) = np.unique(np.nonzero(stored[..., 0] == 255)[1])
  assert (stored[:, upright, 0] == 255).all()
  assert abs(upright - 10 * size / 64) <= 1
  (level,) = np.unique(np.nonzero(stored[..., 0] == round(0.4 * 255))[0])
  assert abs(level - 20 * size / 64) <= 1
  assert (stored[..., 0] == 102).sum() == pytest.approx(24 * size / 64, abs=1)


def test_lines_that_are_not_finite_are_refused(write_net, tmp_path):
  edges = open_extractor('sketch', f'onnx:{write_net(tmp_path / "a.onnx", COLOUR)}')
  with pytest.raises(BadRecord, match='not finite'):
    edges.store(np.full((64, 64), np.nan, np.float32), 16)


@pytest.mark.parametrize(
  'shape', [(4, 3, 64, 64), ('b', 3, 64, 48), ('b', 4, 64, 64), ('b', 3, 64)]
)
def test_a_net_of_another_input_is_refused(write_net, tmp_path, shape):
  path = tmp_path / 'a.onnx'
  if len(shape) == 4:
    kernel = np.ones((1, shape[1], 3, 3))
    write_net(path, kernel, shape=shape)
  else:
    write_net(path, np.ones((1, 3, 3)), shape=shape)
  with pytest.raises(ValueError, match=r'a\.onnx takes x: .*expected one input'):
    open_extractor('sketch', f'onnx:{path}').check()


def test_an_output_beyond_its_range_is_refused(write_net, tmp_path, pictures):
  path = write_net(tmp_path / 'a.onnx', 50 * COLOUR, scale=9)
  with pytest.raises(ValueError, match=r'from 0 to 9; expected 0 to 1'):
    open_extractor('sketch', f'onnx:{path}').extract(pictures)


def test_a_file_that_is_no_net_is_refused(tmp_path):
  (tmp_path / 'a.onnx').write_text('hello')
  with pytest.raises(ValueError, match='no ONNX file'):
    open_extractor('sketch', f'onnx:{tmp_path / "a.onnx"}').check()


def test_two_files_of_one_name_are_refused(write_net, tmp_path):
  (tmp_path / 'b').mkdir()
  paths = [write_net(p / 'a.onnx', COLOUR) for p in (tmp_path, tmp_path / 'b')]
  with pytest.raises(ValueError, match='expected different ones'):
    open_extractor('sketch', f'onnx:{paths[0]},{paths[1]}')
