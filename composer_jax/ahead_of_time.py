"""What a config costs on chips that are not here, as their own compiler sees it.

The compiler of TPUs comes with the package libtpu and needs no TPU: it takes a program
for a topology, such as `v5p:4x4x8`, with shapes instead of arrays.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import re
import time
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import serialize_executable, topologies

from composer_jax.config import Config
from composer_jax.describe import describe
from composer_jax.hlo import Program
from composer_jax.sampling.cascade import Denoising
from composer_jax.sampling.guidance import Branch, Wish
from composer_jax.sampling.prior import Imagining
from composer_jax.sharding.mesh import batch_sharding, make_mesh, replicated
from composer_jax.training.stages import Diffusion, abstract_inputs
from composer_jax.training.step import abstract_state, make_step


@dataclasses.dataclass(frozen=True)
class Chip:
  """What a chip's data sheet says.

  Attributes:
    flops: bfloat16 multiplications and additions a second.
    bandwidth: bytes a second between the chip and its memory.
    memory: bytes of it.
    clock: cycles a second: what its matrix units need for those FLOPs.
  """

  flops: float
  bandwidth: float
  memory: float
  clock: float


CHIPS = {
  'v4': Chip(275e12, 1228e9, 32e9, 1.05e9),
  'v5e': Chip(197e12, 819e9, 16e9, 1.5e9),
  'v5p': Chip(459e12, 2765e9, 95e9, 1.75e9),
  'v6e': Chip(918e12, 1640e9, 32e9, 1.75e9),
}
"""By the name before the colon of a topology."""

_OTHERS = re.compile('--xla_(cpu|gpu|backend_optimization_level)')
"""Flags of XLA that the compiler of TPUs does not know."""


@dataclasses.dataclass(frozen=True)
class Compilation:
  """A compiled program and what it costs on each chip.

  Attributes:
    parameters: of the model.
    chips: of the topology.
    flops_per_chip: of convolutions and matrix products in a step, recomputation
      included. Of a sampler, the step is the sampling of a whole batch.
    bytes_moved: between chip and memory, in a step.
    collectives: kind to how often it is done in a step, and the bytes of its results.
    argument_bytes: of weights, optimiser and batch.
    temporary_bytes: of everything else while it runs.
    total_bytes: of both, results and code, without what is shared.
    hbm_bytes: of the chip's memory.
    estimated_step_seconds: as XLA has it, where nothing overlaps, with the bodies of
      loops counted as often as they run.
    kernel_seconds: what the compiler counts for its kernels, in cycles of the chip: how
      well an operation uses it is in this.
    compile_seconds: that compiling took.
    images_per_second_per_chip: at that speed.
    mfu: share of the chip's bfloat16 peak, counted on the model's FLOPs alone: three
      forward passes a training step, none for recomputation.
  """

  parameters: int
  chips: int
  flops_per_chip: float
  bytes_moved: float
  collectives: dict[str, dict[str, int]]
  argument_bytes: int
  temporary_bytes: int
  total_bytes: int
  hbm_bytes: int
  estimated_step_seconds: float
  kernel_seconds: float
  compile_seconds: float
  images_per_second_per_chip: float
  mfu: float

  @property
  def fits(self) -> bool:
    """Whether the chip's memory holds it."""
    return self.total_bytes <= self.hbm_bytes


def compile_for(
  config: Config,
  topology: str,
  what: Literal['train', 'sample'] = 'train',
  slices: int = 1,
) -> tuple[Compilation, jax.stages.Compiled]:
  """Compiles the train step or the sampler of a config.

  Args:
    config: of the run. Its batch is sampled at once, too.
    topology: such as `v5e:16x16`: chip and extent of the slice.
    what: which program.
    slices: how many of them, joined by the network of the data centre.

  Returns:
    What it costs, and the program, for `save_program`.

  Raises:
    ValueError: the topology is unknown, the config does not fit it, or libtpu is not
      installed.
  """
  chip, devices = open_topology(topology, slices)
  model = describe(config)
  lower = _lower_train if what == 'train' else _lower_sample
  begin = time.perf_counter()
  with tpu_compiler():
    lowered, calls = lower(config, devices)
    compiled = lowered.compile()
  seconds = time.perf_counter() - begin
  program = Program(compiled.as_text() or '')
  cost = program.cost(chip.flops, chip.bandwidth)
  memory: Any = compiled.memory_analysis()
  images = config.data.batch_size
  cut = what == 'train' and config.diffusion.crop
  seen = describe(_of_crops(config)) if cut else model
  work = calls * seen.forward_flops * images / len(devices)
  found = Compilation(
    parameters=model.parameters,
    chips=len(devices),
    flops_per_chip=cost.flops,
    bytes_moved=cost.bytes_moved,
    collectives={
      kind: {'count': count, 'bytes': size}
      for kind, (count, size) in program.collectives().items()
    },
    argument_bytes=memory.argument_size_in_bytes,
    temporary_bytes=memory.temp_size_in_bytes,
    total_bytes=memory.argument_size_in_bytes
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes
    + memory.temp_size_in_bytes
    + memory.generated_code_size_in_bytes,
    hbm_bytes=int(chip.memory),
    estimated_step_seconds=cost.seconds,
    kernel_seconds=cost.cycles / chip.clock,
    compile_seconds=seconds,
    images_per_second_per_chip=images / len(devices) / cost.seconds,
    mfu=work / cost.seconds / chip.flops,
  )
  return found, compiled


def open_topology(topology: str, slices: int = 1) -> tuple[Chip, Sequence[Any]]:
  """The chip of a topology such as `v5p:4x4x8`, and the devices of as many slices.

  Raises:
    ValueError: it is unknown, or libtpu is not installed.
  """
  name = topology.partition(':')[0]
  if name not in CHIPS:
    raise ValueError(
      f'--topology is {topology!r}; expected a chip among {", ".join(CHIPS)} and the'
      ' extent of a slice, such as v5p:4x4x8.'
    )
  with tpu_compiler():
    try:
      found = topologies.get_topology_desc(
        platform='tpu', topology_name=topology, num_slices=slices
      )
    except (RuntimeError, ValueError, NotImplementedError) as error:
      raise ValueError(
        f'--topology is {topology!r}, which libtpu refuses: {error}. It comes with'
        " `pip install 'composer_jax[tpu]'`; slices of v5e and v6e have two numbers,"
        ' such as v5e:16x16, and those of v4 and v5p three.'
      ) from error
  return CHIPS[name], found.devices


@contextlib.contextmanager
def tpu_compiler() -> Iterator[None]:
  """While it compiles, keeps libtpu from TPUs, and from flags that it does not know.

  It would ask the cloud what machine this is, for minutes, and let no other process
  open it meanwhile; and it ends the process for a flag of another compiler.
  """
  flags = os.environ.get('XLA_FLAGS', '').split()
  changes = {
    'TPU_SKIP_MDS_QUERY': '1',
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
    'XLA_FLAGS': ' '.join(flag for flag in flags if not _OTHERS.match(flag)),
  }
  before = {name: os.environ.get(name) for name in changes}
  os.environ |= changes
  try:
    yield
  finally:
    for name, value in before.items():
      if value is None:
        del os.environ[name]
      else:
        os.environ[name] = value


def _of_crops(config: Config) -> Config:
  """That of a model whose images are as large as what this one trains on."""
  crop, unet = config.diffusion.crop, config.unet
  low = unet.low_res_size * crop // unet.image_size
  return dataclasses.replace(
    config,
    model=dataclasses.replace(unet, image_size=crop, low_res_size=low),
    diffusion=dataclasses.replace(config.diffusion, crop=0),
  )


def _lower_train(
  config: Config, devices: Sequence[Any]
) -> tuple[jax.stages.Lowered, float]:
  """The train step, and how many forward passes its work is worth."""
  mesh = make_mesh(config.mesh, devices)
  stage, batch = abstract_inputs(config)
  sharding = batch_sharding(mesh, config.mesh.rules)
  given = {
    name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
    for name, leaf in batch.items()
  }
  _, state = abstract_state(stage, config, mesh)
  length = jax.ShapeDtypeStruct((), jnp.float32, sharding=replicated(mesh))
  return make_step(stage, config, mesh).lower(state, given, length), 3


def _lower_sample(
  config: Config, devices: Sequence[Any]
) -> tuple[jax.stages.Lowered, float]:
  """The sampler of a whole batch, and how many forward passes it takes."""
  mesh = make_mesh(config.mesh.for_sampling(), devices)
  stage, batch = abstract_inputs(config)
  graph, state = abstract_state(stage, config, mesh)
  count, settings = config.data.batch_size, config.sample
  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), count))
  if config.stage == 'prior':
    imagining = Imagining(config, graph, state.ema, mesh)
    return imagining.lower(batch['caption'], keys), 2 * settings.steps
  if not isinstance(stage, Diffusion):
    raise ValueError(f'A {config.stage} stage has no sampler; use --what train.')
  unet = config.unet

  def array(*shape: int) -> Any:
    return jax.ShapeDtypeStruct(shape, jnp.float32)

  stored: dict[str, Any] = {name: batch[name] for name in unet.conditions}
  kept = {name: array(count) for name in stored}
  side = unet.low_res_size
  low_res = array(count, side, side, 3) if side else None
  denoising = Denoising(config, stage.condition_shapes, graph, state.ema, mesh)
  wish = Wish((Branch(stored, kept),), np.ones((1, count), np.float32))
  passes = settings.steps * (1 if settings.guidance == 1 else 2)
  return denoising.lower(wish, keys, low_res), passes


def save_program(compiled: jax.stages.Compiled, path: pathlib.Path) -> None:
  """Writes a compiled program, for `load_program` on chips like those it is for."""
  payload, _, _ = serialize_executable.serialize(compiled)
  path.write_bytes(payload)


def load_program(
  path: pathlib.Path, arguments: Any, results: Any
) -> jax.stages.Compiled:
  """Opens a program that was compiled ahead of time.

  JAX reads it as a pickle: open only what you have compiled yourself.

  Args:
    path: as `save_program` wrote it, by the same versions of JAX and libtpu.
    arguments: tree like that of its arguments, `(args, kwargs)`.
    results: tree like that of its results.
  """
  return serialize_executable.deserialize_and_load(
    path.read_bytes(), jax.tree.structure(arguments), jax.tree.structure(results)
  )
