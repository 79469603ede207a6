"""A small folder of images, good and bad, and what prepares it."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator

import numpy as np
import pytest
import upath
from PIL import Image

from data_pipelines.prepare import prepare

GOOD, BAD = 36, 4


@pytest.fixture(scope='session')
def folder(tmp_path_factory) -> pathlib.Path:
  """36 images of many shapes, a third of them transparent, and four bad files."""
  root = tmp_path_factory.mktemp('images')
  rng = np.random.default_rng(0)
  for i in range(GOOD):
    height, width = rng.integers(40, 90, 2)
    pixels = np.full((height, width, 4), 255, np.uint8)
    pixels[..., :3] = rng.integers(0, 256, 3)
    top, left = rng.integers(5, 20, 2)
    pixels[top : top + 18, left : left + 18, :3] = rng.integers(0, 256, 3)
    if i % 3 == 0:
      pixels[..., 3] = 0
      pixels[top : top + 18, left : left + 18, 3] = 200
    Image.fromarray(pixels).save(root / f'{i:02d}.png')
    if i % 2:
      (root / f'{i:02d}.txt').write_text(f'café number {i}', encoding='utf-8')
  (root / 'bad_empty.png').write_bytes(b'')
  (root / 'bad_text.png').write_text('not an image at all')
  (root / 'bad_cut.png').write_bytes((root / '00.png').read_bytes()[:90])
  Image.new('RGB', (1, 1)).save(root / 'bad_tiny.png')
  return root


@pytest.fixture(scope='session')
def prepared(folder, tmp_path_factory) -> pathlib.Path:
  """That folder, prepared in one go in one process. Not to be changed."""
  out = tmp_path_factory.mktemp('prepared') / 'data'
  prepare(f'folder:{folder}', out, size=32, shards=5, progress=False, test_fraction=0.2)
  return out


def files_of(directory: pathlib.Path) -> dict[str, bytes]:
  """The bytes of every file below a folder, by relative path."""
  return {
    str(path.relative_to(directory)): path.read_bytes()
    for path in sorted(directory.rglob('*'))
    if path.is_file()
  }


@pytest.fixture(name='files_of', scope='session')
def files_of_fixture():
  return files_of


@pytest.fixture(scope='session')
def write_net():
  """Writes an ONNX file: lines are what a convolution gives, cut off at 0 and 1."""
  import onnx
  from onnx import TensorProto, helper, numpy_helper

  def write(
    path: pathlib.Path,
    kernel: np.ndarray,
    *,
    shape: tuple[int | str, ...] | None = None,
    scale: float = 1.0,
    extra_output: bool = False,
  ) -> pathlib.Path:
    shape = shape or ('b', kernel.shape[1], 'h', 'w')
    spatial = kernel.ndim - 2
    pads = [kernel.shape[2] // 2] * (2 * spatial)
    nodes = [
      helper.make_node('Conv', ['x', 'kernel'], ['conv'], pads=pads),
      helper.make_node('Abs', ['conv'], ['rectified']),
      helper.make_node('Clip', ['rectified', 'zero', 'one'], ['lines']),
    ]
    constants = {
      'kernel': kernel.astype(np.float32),
      'zero': np.float32(0),
      'one': np.float32(scale),
    }
    names = ['conv', 'lines'] if extra_output else ['lines']
    outputs = [
      helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * kernel.ndim)
      for name in names
    ]
    graph = helper.make_graph(
      nodes,
      'lines',
      [helper.make_tensor_value_info('x', TensorProto.FLOAT, shape)],
      outputs,
      [numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 17)])
    model.ir_version = 8
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path

  return write


@pytest.fixture(scope='session')
def store() -> Iterator[str]:
  """The address of an S3 server on this machine, with one bucket."""
  from moto.server import ThreadedMotoServer

  server = ThreadedMotoServer(ip_address='127.0.0.1', port=0, verbose=False)
  server.start()
  host, port = server.get_host_and_port()
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('AWS_ENDPOINT_URL', f'http://{host}:{port}')
    patch.setenv('AWS_ACCESS_KEY_ID', 'anyone')
    patch.setenv('AWS_SECRET_ACCESS_KEY', 'anything')
    patch.setenv('AWS_DEFAULT_REGION', 'us-east-1')
    upath.UPath('s3://bucket').fs.mkdir('bucket')
    yield os.environ['AWS_ENDPOINT_URL']
  server.stop()


def objects_of(url: str) -> dict[str, bytes]:
  """The bytes of every object below a path of a bucket, by relative path."""
  path = upath.UPath(url, use_listings_cache=False)
  names = path.fs.find(path.path)
  return {os.path.relpath(n, path.path): path.fs.cat_file(n) for n in names}


@pytest.fixture(name='objects_of', scope='session')
def objects_of_fixture():
  return objects_of
