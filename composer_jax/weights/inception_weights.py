"""FID's Inception v3: `pt_inception-2015-12-05-6726825d`, as safetensors.

PyTorch-FID and torch-fidelity publish that file as a pickle, which `open_weights`
refuses, and says how to convert.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import jax
from flax import nnx

from composer_jax.models.inception import Inception
from composer_jax.safetensors_files import open_weights
from composer_jax.weights.mapping import (
  Path,
  Source,
  convolution,
  same,
  take,
  transposed,
)

_LEAVES = {
  'scale': 'weight',
  'bias': 'bias',
  'mean': 'running_mean',
  'var': 'running_var',
}


def read_inception(path: str | os.PathLike[str]) -> Inception:
  """Reads the network of FID.

  Args:
    path: a `.safetensors` file that holds the tensors of that pickle under their names,
      such as `Mixed_5b.branch1x1.conv.weight`. Counts of batches may be there or not.

  Returns:
    The network, in float32, on the default device.

  Raises:
    FileNotFoundError: there is nothing there.
    ValueError: it is a pickle or damaged; or tensors are missing, unknown, or of the
      wrong shape or type, of which all are named.
  """
  files = open_weights(path)
  model = abstract_inception()
  shapes = nnx.state(model)
  weights = take(
    files,
    sources(shapes),
    shapes,
    buffers=[
      name for name in files.entries if name.endswith('.bn.num_batches_tracked')
    ],
    expected='the Inception v3 of FID',
    advice='Convert pt_inception-2015-12-05-6726825d.pth whole.',
  )
  nnx.update(model, jax.device_put(weights))
  return model


def abstract_inception() -> Inception:
  """The network with shapes in place of weights."""
  return nnx.eval_shape(lambda: Inception(nnx.Rngs(0)))


def sources(shapes: nnx.State) -> dict[Path, Source]:
  """Where each parameter comes from.

  Args:
    shapes: of all parameters, as `nnx.state(abstract_inception())` gives.
  """
  found: dict[Path, Source] = {}
  paths: Iterable[Any] = dict(nnx.to_flat_state(shapes))
  for path in paths:
    *modules, leaf = path
    home = '.'.join(map(str, modules))
    if leaf == 'kernel':
      change = transposed if home == 'fc' else convolution
      found[path] = Source(f'{home}.weight', change)
    else:
      found[path] = Source(f'{home}.{_LEAVES[leaf]}', same)
  return found
