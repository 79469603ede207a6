"""What a job runs on: `v5p:4x4x8`, `gpu:4x8` or `cpu:4`, and what follows from it."""

from __future__ import annotations

import dataclasses
import math
import re


@dataclasses.dataclass(frozen=True)
class Generation:
  """What Google's documentation says of one generation of TPUs.

  Attributes:
    type_prefix: of the accelerator types of the Cloud TPU API, such as `v5litepod`.
    type_unit: cores a chip where those types count cores, 1 where they count chips.
    gke: value of the node label `cloud.google.com/gke-tpu-accelerator`.
    machine: Compute Engine machine type without its number of chips.
    runtime: software version that TPU VMs boot.
    dimensions: axes of a slice.
    largest: chips of the largest slice.
    whole: shapes that one host holds; in all others a host has four chips.
  """

  type_prefix: str
  type_unit: int
  gke: str
  machine: str
  runtime: str
  dimensions: int
  largest: int
  whole: tuple[tuple[int, ...], ...]


_FLAT = ((1, 1), (2, 2), (2, 4))
_CUBE = ((2, 2, 1),)

GENERATIONS = {
  'v4': Generation(
    'v4', 2, 'tpu-v4-podslice', 'ct4p-hightpu', 'tpu-ubuntu2204-base', 3, 4096, _CUBE
  ),
  'v5e': Generation(
    'v5litepod', 1, 'tpu-v5-lite-podslice', 'ct5lp-hightpu', 'v2-alpha-tpuv5-lite',
    2, 256, _FLAT,
  ),
  'v5p': Generation(
    'v5p', 2, 'tpu-v5p-slice', 'ct5p-hightpu', 'v2-alpha-tpuv5', 3, 6144, _CUBE
  ),
  'v6e': Generation(
    'v6e', 1, 'tpu-v6e-slice', 'ct6e-standard', 'v2-alpha-tpuv6e', 2, 256, _FLAT
  ),
}  # fmt: skip
"""Sources: the pages "Plan TPUs in GKE", "TPU v5e", "TPU v5p", "TPU v6e" and "TPU
software versions" of Google Cloud's documentation."""

_SMALL = {
  2: (*_FLAT, (4, 4), (4, 8), (8, 8), (8, 16), (16, 16)),
  3: (*_CUBE, (2, 2, 2), (2, 2, 4), (2, 4, 4)),
}
"""Slices in two dimensions, all of them; in three, those that are not made of cubes of
4 x 4 x 4 chips."""

EXAMPLES = 'cpu:4, gpu:2x8, v5e:16x16, v5p:4x4x8'


@dataclasses.dataclass(frozen=True)
class Topology:
  """Hosts, and the devices of each.

  Attributes:
    kind: `cpu`, `gpu`, or a generation of TPUs such as `v5e`.
    shape: of a TPU slice, its chips along each axis; else hosts and devices of each.
  """

  kind: str
  shape: tuple[int, ...]

  @property
  def tpu(self) -> Generation:
    """The generation of TPUs.

    Raises:
      ValueError: these are no TPUs.
    """
    if self.kind not in GENERATIONS:
      raise ValueError(
        f'topology {self} has no TPUs; expected one of {", ".join(GENERATIONS)}, such'
        ' as v5e:16x16.'
      )
    return GENERATIONS[self.kind]

  @property
  def devices(self) -> int:
    """Devices in all; of a TPU, chips."""
    return math.prod(self.shape)

  @property
  def devices_per_host(self) -> int:
    """Devices of one host; of a TPU, chips."""
    if self.kind not in GENERATIONS:
      return self.shape[1]
    return self.devices if self.shape in self.tpu.whole else 4

  @property
  def hosts(self) -> int:
    """Hosts of one slice, or of all where there are no slices."""
    return self.devices // self.devices_per_host

  @property
  def grid(self) -> str:
    """The shape as Google Cloud writes it, such as `4x4x8`."""
    return 'x'.join(map(str, self.shape))

  @property
  def accelerator_type(self) -> str:
    """What the Cloud TPU API calls such a slice, such as `v5litepod-256`."""
    return f'{self.tpu.type_prefix}-{self.devices * self.tpu.type_unit}'

  @property
  def machine_type(self) -> str:
    """The machine type of the hosts of a TPU slice, such as `ct5lp-hightpu-4t`."""
    return f'{self.tpu.machine}-{self.devices_per_host}t'

  def __str__(self) -> str:
    return f'{self.kind}:{self.grid}'


def parse(text: str) -> Topology:
  """Reads `KIND:AxB`: the chips of a TPU slice, or hosts and devices of each.

  Raises:
    ValueError: there is no such hardware; says what there is.
  """
  match = re.fullmatch(r'(\w+):([1-9]\d*(?:x[1-9]\d*)*)', text)
  if match is None:
    raise ValueError(f'topology is {text!r}; expected one such as {EXAMPLES}.')
  kind, shape = match[1], tuple(map(int, match[2].split('x')))
  if kind in ('cpu', 'gpu'):
    if len(shape) > 2 or (kind == 'gpu' and len(shape) != 2):
      raise ValueError(
        f'topology is {text!r}; expected {kind}:HOSTSxDEVICES, such as {kind}:2x8.'
      )
    return Topology(kind, shape if len(shape) == 2 else (*shape, 1))
  if kind not in GENERATIONS:
    known = ', '.join(('cpu', 'gpu', *GENERATIONS))
    raise ValueError(
      f'topology is {text!r}; expected one of {known}, as in {EXAMPLES}.'
    )
  found = Topology(kind, shape)
  _check_slice(found)
  return found


def _check_slice(topology: Topology) -> None:
  tpu, shape = topology.tpu, topology.shape
  small = _SMALL[tpu.dimensions]
  # Larger slices in three dimensions are made of cubes, shortest axis first.
  cubes = tpu.dimensions == 3 and all(side % 4 == 0 for side in shape)
  ordered = tuple(sorted(shape)) == shape
  fits = len(shape) == tpu.dimensions and topology.devices <= tpu.largest
  if not (fits and (shape in small or (cubes and ordered))):
    listed = ', '.join('x'.join(map(str, s)) for s in small)
    more = (
      f', or multiples of 4 in rising order, {tpu.largest} chips at most'
      if tpu.dimensions == 3
      else ''
    )
    raise ValueError(
      f'topology is {topology}; a slice of {topology.kind} is {listed}{more}.'
    )
