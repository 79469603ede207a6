"""Reads a compiled program: its loops, its collectives, what its operations cost.

XLA's own analysis of costs takes the body of a loop once. The text of the program says
how often it runs.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections import Counter

import numpy as np

COLLECTIVES = (
  'all-gather',
  'all-reduce',
  'all-to-all',
  'collective-permute',
  'reduce-scatter',
)

# What moves nothing, or is counted where it is called.
_FREE = {
  'after-all',
  'bitcast',
  'call',
  'conditional',
  'constant',
  'get-tuple-element',
  'parameter',
  'partition-id',
  'tuple',
  'while',
}

_COMPUTATION = re.compile(r'^(ENTRY )?%(\S+) \(.*\) -> .* \{$')
_INSTRUCTION = re.compile(
  r'^ +(?:ROOT )?%(\S+) = (\([^()]*\)|\S+) ([\w-]+)\(([^()]*)\)(.*)$'
)
_ARRAY = re.compile(r'(\w+)\[([\d,]*)\]')
_NOTE = re.compile(r'(?<=\])\{[^{}]*\}|/\*.*?\*/')
"""Layouts of arrays, and comments."""

_CALLED = re.compile(r'(?:calls|to_apply|body|branch_computations)=\{?%([^,}\s]+)')

_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')


@dataclasses.dataclass(frozen=True)
class Cost:
  """What one device does in a program.

  Attributes:
    flops: multiplications and additions of convolutions and matrix products.
    bytes_moved: operands and results of all operations, fused ones taken together.
    seconds: were each operation to take as long as its FLOPs or its bytes do, whichever
      is more, and no two of them to overlap.
    cycles: that the compiler of TPUs counts for its kernels; others count none.
  """

  flops: float = 0.0
  bytes_moved: float = 0.0
  seconds: float = 0.0
  cycles: int = 0


@dataclasses.dataclass(frozen=True)
class _Instruction:
  """One line: `%name = type kind(operands)attributes`."""

  type: str
  kind: str
  inside: str
  attributes: str

  @functools.cached_property
  def operands(self) -> list[str]:
    return re.findall(r'%([^,\s]+)', self.inside)

  def is_parameter(self, index: str) -> bool:
    return self.kind == 'parameter' and self.inside == index


@dataclasses.dataclass(frozen=True)
class _Use:
  """Of an array in a fusion.

  Attributes:
    read: bytes, as often as they are read.
    written: bytes in place, or None.
    given_on: whether it is the result, in another shape.
  """

  read: int
  written: int | None
  given_on: bool


class Program:
  """A compiled program.

  Args:
    text: as `jax.stages.Compiled.as_text` gives it.
  """

  def __init__(self, text: str):
    self._computations: dict[str, dict[str, _Instruction]] = {}
    self._entry = ''
    current: dict[str, _Instruction] = {}
    for line in text.splitlines():
      if found := _COMPUTATION.match(line):
        current = self._computations.setdefault(found[2], {})
        if found[1]:
          self._entry = found[2]
      elif found := _INSTRUCTION.match(_NOTE.sub('', line)):
        current[found[1]] = _Instruction(*found.groups()[1:])

  def collectives(self) -> dict[str, tuple[int, int]]:
    """Kind to how often it is done and the bytes of its results, loops included."""
    count: Counter[str] = Counter()
    size: Counter[str] = Counter()
    for computation, often in self._runs(fused=True).items():
      if self._goes_on(computation):
        continue
      for instruction in self._computations[computation].values():
        kind = instruction.kind.removesuffix('-start')
        if kind in COLLECTIVES:
          # TPUs fuse the sum over devices with taking each one's part of it.
          if computation.startswith('all-reduce-scatter'):
            kind = 'reduce-scatter'
          arrays = _ARRAY.findall(instruction.type)
          if instruction.kind.endswith('-start'):
            # It names its operands first, and counters last.
            arrays = [array for array in arrays if array != ('u32', '')]
            arrays = arrays[len(arrays) // 2 :]
          count[kind] += often
          size[kind] += often * sum(_bytes(*array) for array in arrays)
    return {kind: (count[kind], size[kind]) for kind in sorted(count)}

  def _goes_on(self, computation: str) -> bool:
    """Whether a collective in it was begun before, and is there once more to go on."""
    return computation.startswith('async_collective_fusion') or any(
      'AsyncCollectiveDone' in instruction.attributes
      for instruction in self._computations[computation].values()
    )

  def cost(self, flops_per_second: float, bytes_per_second: float) -> Cost:
    """Sums over all operations; those in loops count as often as they run.

    Args:
      flops_per_second: that the device does at most.
      bytes_per_second: between its cores and its memory, at most.
    """
    flops = moved = seconds = 0.0
    cycles = 0
    for name, times in self._runs(fused=False).items():
      computation = self._computations[name]
      for instruction in computation.values():
        if instruction.kind in _FREE or instruction.kind.endswith('-done'):
          continue
        work = self._flops(computation, instruction)
        size = self._moved(computation, instruction)
        flops += times * work
        moved += times * size
        seconds += times * max(work / flops_per_second, size / bytes_per_second)
        if counted := _CYCLES.search(instruction.attributes):
          cycles += times * int(counted[1])
    return Cost(flops, moved, seconds, cycles)

  def _runs(self, *, fused: bool) -> dict[str, int]:
    """How often each computation runs; those that are fused into one, if asked for."""
    runs: Counter[str] = Counter()

    def visit(name: str, often: int) -> None:
      runs[name] += often
      for instruction in self._computations[name].values():
        times = often
        if instruction.kind == 'while':
          times *= self._trips(instruction)
        if fused or instruction.kind in ('while', 'call', 'conditional'):
          for called in _CALLED.findall(instruction.attributes):
            visit(called, times)

    visit(self._entry, 1)
    return runs

  def _trips(self, loop: _Instruction) -> int:
    """How often a loop runs: its counter begins at 0 and stays below a number."""
    called = dict(re.findall(r'(condition|body)=%([^,\s]+)', loop.attributes))
    condition = self._computations[called['condition']]
    numbers = [n for one in condition.values() if (n := _number(one)) is not None]
    step = self._step(condition, self._computations[called['body']])
    return math.ceil(max(numbers, default=1) / step)

  def _step(
    self, condition: dict[str, _Instruction], body: dict[str, _Instruction]
  ) -> int:
    """What the body of a loop adds to its counter; loops over a ring take two."""
    *_, test = condition.values()
    *_, result = body.values()
    for operand in test.operands:
      counter = condition[operand]
      place = re.search(r'index=(\d+)', counter.attributes)
      if counter.kind != 'get-tuple-element' or place is None:
        continue
      value = body.get(result.operands[int(place[1])])
      if value is not None and value.kind == 'add':
        added = [_number(body[one]) for one in value.operands]
        return next((number for number in added if number), 1)
    return 1

  def _flops(
    self, computation: dict[str, _Instruction], instruction: _Instruction
  ) -> int:
    if instruction.kind == 'fusion':
      (called,) = _CALLED.findall(instruction.attributes)
      inner = self._computations[called]
      return sum(self._flops(inner, one) for one in inner.values())
    if instruction.kind not in ('convolution', 'dot'):
      return 0
    left, right = (
      _shape(computation[operand].type) for operand in instruction.operands
    )
    result = _shape(instruction.type)
    labels = re.search(r'dim_labels=(\w+)_(\w+)->(\w+)', instruction.attributes)
    if labels is None:  # A matrix product.
      axes = re.search(r'lhs_contracting_dims=\{([\d,]*)\}', instruction.attributes)
      contracted = [int(axis) for axis in axes[1].split(',') if axis] if axes else []
      return 2 * math.prod(result) * math.prod(left[axis] for axis in contracted)
    into, kernel, out = (
      dict(zip(names, shape, strict=True))
      for names, shape in zip(labels.groups(), (left, right, result), strict=True)
    )
    window = _Window(instruction.attributes)
    places = math.prod(
      window.places(int(axis), into[axis], kernel[axis], out[axis])
      for axis in out
      if axis.isdigit()
    )
    return 2 * out['b'] * out['f'] * kernel['i'] * places

  def _moved(
    self, computation: dict[str, _Instruction], instruction: _Instruction
  ) -> int:
    """Bytes of operands and results; of sliced operands, those of the slice."""
    result = _size(instruction.type)
    if instruction.kind.endswith('-start'):  # The result has the operands, too.
      return result
    if instruction.kind in ('dynamic-slice', 'slice'):
      return 2 * result
    operands = [
      _size(computation[o].type) for o in instruction.operands if o in computation
    ]
    if instruction.kind == 'fusion':
      # What is only passed through does not move.
      for index in re.findall(r'\}: \((\d+), \{\}', instruction.attributes):
        result -= operands[int(index)]
        operands[int(index)] = 0
      (called,) = _CALLED.findall(instruction.attributes)
      for index in range(len(operands)):
        use = self._use(called, str(index))
        if use.written is not None:
          result -= operands[index] - use.written
        if not use.given_on:
          operands[index] = min(operands[index], use.read)
    return max(result, 0) + sum(operands)

  def _use(self, fusion: str, index: str) -> _Use:
    """What a fusion, and those within it, do with one of its parameters."""
    computation = self._computations[fusion]
    names = {name for name, one in computation.items() if one.is_parameter(index)}
    read, written = 0, None
    for name, one in computation.items():  # Each is defined before it is used.
      for place, operand in enumerate(one.operands):
        if operand not in names:
          continue
        if one.kind == 'bitcast':
          names.add(name)
        elif one.kind == 'fusion':
          (called,) = _CALLED.findall(one.attributes)
          use = self._use(called, str(place))
          read += use.read
          written = written if use.written is None else use.written
          if use.given_on:
            names.add(name)
        elif one.kind in ('dynamic-slice', 'slice') and place == 0:
          read += _size(one.type)
        elif one.kind == 'dynamic-update-slice' and place == 0:
          written = _size(computation[one.operands[1]].type)
        else:
          read += _size(computation[operand].type)
    return _Use(read, written, given_on=[*computation][-1] in names)


class _Window:
  """How the kernel of a convolution moves, from `window={size=3x3 pad=1_1x1_1}`."""

  def __init__(self, attributes: str):
    found = re.search(r'window=\{([^}]*)\}', attributes)
    self._fields = dict(field.split('=') for field in found[1].split()) if found else {}

  def _of(self, name: str, axis: int, default: str) -> str:
    return self._fields[name].split('x')[axis] if name in self._fields else default

  def places(self, axis: int, size: int, kernel: int, out: int) -> int:
    """Pairs of a place in the result and one in the kernel that meet an input.

    Others meet padding, or gaps between dilated inputs. Products of batches of
    matrices are convolutions of which most do.
    """
    stride = int(self._of('stride', axis, '1'))
    low = int(self._of('pad', axis, '0_0').split('_')[0])
    gaps = int(self._of('lhs_dilate', axis, '1'))
    spread = int(self._of('rhs_dilate', axis, '1'))
    at = np.arange(out)[:, None] * stride + np.arange(kernel) * spread - low
    return int(((at >= 0) & (at <= (size - 1) * gaps) & (at % gaps == 0)).sum())


def _number(instruction: _Instruction) -> int | None:
  """The whole number that a constant is."""
  found = instruction.kind == 'constant' and instruction.inside.isdigit()
  return int(instruction.inside) if found else None


def _shape(text: str) -> tuple[int, ...]:
  """Sizes of the first array of a type."""
  (_, shape), *_ = _ARRAY.findall(text)
  return tuple(int(n) for n in shape.split(',') if n)


def _size(text: str) -> int:
  """Bytes of a type, or of all in a tuple."""
  return sum(_bytes(*array) for array in _ARRAY.findall(text))


def _bytes(kind: str, shape: str) -> int:
  """Bytes of an array such as `bf16` of `8,128`."""
  numbers = math.prod(int(n) for n in shape.split(',') if n)
  bits = re.search(r'\d+', kind)
  return numbers * (max(int(bits[0]) // 8, 1) if bits else 1)
