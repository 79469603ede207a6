"""A model's parameters out of tensors that bear other names and lie another way."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
from flax import nnx, traverse_util

from composer_jax.safetensors_files import SafetensorsFiles

Path = tuple[str | int, ...]
"""Of a parameter: the names, or in lists the numbers, that lead to it."""

Change = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Transform:
  """From their layout of an array to ours, and back."""

  forward: Change
  backward: Change

  def __call__(self, x: np.ndarray) -> np.ndarray:
    return self.forward(x)

  def after(self, first: Transform) -> Transform:
    """This one of what `first` makes."""
    return Transform(
      lambda x: self.forward(first.forward(x)),
      lambda x: first.backward(self.backward(x)),
    )


same = Transform(lambda x: x, lambda x: x)
"""As it is: biases, scales, tables of embeddings."""

transposed = Transform(lambda x: x.T, lambda x: x.T)
"""PyTorch's weight of a linear map, (outputs, inputs), as a kernel."""

convolution = Transform(
  lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1)
)
"""PyTorch's weight of a convolution, (outputs, inputs, height, width), as a kernel
(height, width, inputs, outputs)."""

pointwise = Transform(
  lambda x: np.squeeze(x, (2, 3)).T, lambda x: x.T[:, :, None, None]
)
"""PyTorch's weight of a 1 x 1 convolution, (outputs, inputs, 1, 1), as a kernel
(inputs, outputs)."""


def without_axes(count: int) -> Transform:
  """An array without its first axes, which have one entry each."""
  axes = tuple(range(count))
  return Transform(
    lambda x: np.squeeze(x, axes), lambda x: x.reshape((1,) * count + x.shape)
  )


@dataclasses.dataclass(frozen=True)
class Source:
  """Where one of our parameters comes from.

  Attributes:
    names: of their tensor, or of several that ours is made of.
    transform: makes each of theirs ours.
    axis: of ours along which several are laid side by side, such as -1 for the kernels
      of queries, keys and values; None stacks them along a new first axis, such as the
      layers of a scan.
  """

  names: str | tuple[str, ...]
  transform: Transform = same
  axis: int | None = None

  @property
  def parts(self) -> tuple[str, ...]:
    """The names, also where it is one."""
    return (self.names,) if isinstance(self.names, str) else self.names

  def make(self, read: Callable[[str], np.ndarray]) -> np.ndarray:
    """Our array out of theirs, each of which `read` gives by name.

    Raises:
      ValueError: theirs do not have the shapes that it takes.
    """
    arrays = (self.transform(read(name)) for name in self.parts)
    if isinstance(self.names, str):
      return next(arrays)
    if self.axis is not None:
      return np.concatenate(list(arrays), self.axis)
    # One after another: a stack of layers may be a third of a model.
    stack = None
    for i, array in enumerate(arrays):
      if stack is None:
        stack = np.empty((len(self.names), *array.shape), array.dtype)
      if array.shape != stack.shape[1:]:
        raise ValueError(f'{array.shape} and {stack.shape[1:]} are in one stack.')
      stack[i] = array
    if stack is None:
      raise ValueError('nothing to stack.')
    return stack

  def unmake(self, ours: np.ndarray) -> dict[str, np.ndarray]:
    """The inverse of `make`: their arrays by name."""
    names = self.parts
    if isinstance(self.names, str):
      parts = [ours]
    elif self.axis is None:
      parts = list(ours)
    else:
      parts = np.split(ours, len(names), self.axis)
    arrays = (np.asarray(self.transform.backward(p), order='C') for p in parts)
    return dict(zip(names, arrays, strict=True))


def give(
  weights: Mapping[Any, Any], sources: Mapping[Path, Source]
) -> dict[str, np.ndarray]:
  """The inverse of `take`: tensors by their published names.

  Args:
    weights: of our model, a nested dict of arrays as `nnx.to_pure_dict` gives.
    sources: of each of its parameters.
  """
  tensors: dict[str, np.ndarray] = {}
  for path, value in traverse_util.flatten_dict(weights).items():
    tensors |= sources[path].unmake(np.asarray(value))
  return tensors


def take(
  files: SafetensorsFiles,
  sources: Mapping[Path, Source],
  shapes: nnx.State,
  *,
  buffers: Collection[str] = (),
  expected: str = 'the model that its config describes',
  advice: str = 'Take weights and config of one model.',
) -> nnx.State:
  """The parameters of a model, out of files.

  All names and shapes are compared before anything is read; then one parameter is read
  after another, so that memory holds little more than the result.

  Args:
    files: of the published weights.
    sources: of each of our parameters.
    shapes: of the parameters, abstract: `nnx.state(nnx.eval_shape(make_model))`.
    buffers: names of tensors that are no weights and may be in the files or not.
    expected: what the files should hold, to name in a message.
    advice: what to do if they do not.

  Returns:
    NumPy arrays of the dtypes in `shapes`.

  Raises:
    ValueError: tensors are missing, unknown, or of the wrong shape or type; names all
      of them.
  """
  # Of variables that hold shapes, by path; then of the same that hold arrays.
  flat: Any = dict(nnx.to_flat_state(shapes))
  if found := _differences(files, sources, flat, buffers):
    raise ValueError(f'{files.origin} does not hold {expected}; {found}. {advice}')
  for path, leaf in flat.items():
    made = sources[path].make(files.read)
    flat[path] = leaf.replace(np.asarray(made, leaf.dtype, order='C'))
  return nnx.from_flat_state(flat)


def _differences(
  files: SafetensorsFiles,
  sources: Mapping[Path, Source],
  wanted: Mapping[Path, nnx.Variable],
  buffers: Collection[str],
) -> str:
  """Names and shapes of tensors that are not as wanted; '' where all are."""
  missing, wrong, known = [], [], set(buffers)
  for path, leaf in wanted.items():
    names = sources[path].parts
    known.update(names)
    ours = f'{"/".join(map(str, path))} {leaf.shape}'
    absent = [name for name in names if name not in files.entries]
    missing += [f'{name} for {ours}' for name in absent]
    if absent:
      continue
    entries = [files.entries[name] for name in names]
    made = _shape_made(sources[path], files)
    # NumPy's own test does not know bfloat16, which is of kind V.
    whole = any(entry.dtype.kind in 'biu' for entry in entries)
    if made != leaf.shape or whole:
      wrong.append(
        ' and '.join(
          f'{name} {entry.shape} {entry.dtype}'
          for name, entry in zip(names, entries, strict=True)
        )
        + f' for {ours} {leaf.dtype}'
      )
  extra = [
    f'{name} {entry.shape}'
    for name, entry in files.entries.items()
    if name not in known
  ]
  return '; '.join(
    f'{what}: {", ".join(items)}'
    for what, items in (('missing', missing), ('unknown', extra), ('wrong', wrong))
    if items
  )


def _shape_made(source: Source, files: SafetensorsFiles) -> tuple[int, ...] | None:
  """The shape of what a source makes; None where its transform does not apply."""
  try:
    # One byte, seen as an array of any shape.
    byte = np.zeros((), bool)
    made = source.make(lambda name: np.broadcast_to(byte, files.entries[name].shape))
  except (ValueError, IndexError):
    return None
  return made.shape
