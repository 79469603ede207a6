"""Programs for four TPU chips, which the compiler alone has seen."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from composer_jax.ahead_of_time import CHIPS, open_topology, tpu_compiler
from composer_jax.hlo import Program
from composer_jax.models.layers import Conv3x3
from composer_jax.sharding.mesh import MeshConfig, compiler_options, make_mesh

LAYERS, ROWS, WIDTH = 6, 1024, 1024
CHIP = CHIPS['v5e']


@pytest.fixture(scope='module')
def mesh():
  _, devices = open_topology('v5e:2x2')
  return make_mesh(MeshConfig(fsdp=-1, data=1), devices)


def compiled(mesh, function, *arguments, **options):
  """A program and XLA's own figures; arguments are shapes and how they are split."""
  shapes = [
    jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=NamedSharding(mesh, P(*split)))
    for shape, split in arguments
  ]
  with tpu_compiler():
    program = jax.jit(function, **options).lower(*shapes).compile()
  return Program(program.as_text()), program.cost_analysis()


def scanned(x, weights):
  return jax.lax.scan(lambda x, w: (nnx.silu(x @ w), None), x, weights)[0]


def unrolled(x, weights):
  for w in weights:
    x = nnx.silu(x @ w)
  return x


LOOP = (((ROWS, WIDTH), ('fsdp',)), ((LAYERS, WIDTH, WIDTH), (None, 'fsdp')))


def test_loops_count_as_often_as_they_run(mesh):
  loop, analysis = compiled(mesh, scanned, *LOOP)
  flat, _ = compiled(mesh, unrolled, *LOOP)
  flops = 2 * ROWS * WIDTH * WIDTH / 4
  # XLA itself counts the body of a loop once, which is why there is this module.
  assert analysis['flops'] == pytest.approx(flops, rel=0.01)
  costs = [p.cost(CHIP.flops, CHIP.bandwidth) for p in (loop, flat)]
  for cost in costs:
    assert cost.flops == LAYERS * flops
  assert costs[0].bytes_moved == pytest.approx(costs[1].bytes_moved, rel=0.3)
  assert costs[0].seconds == pytest.approx(costs[1].seconds, rel=0.3)


def test_kernels_take_no_fewer_cycles_than_their_products_do(mesh):
  for function in (scanned, unrolled):
    program, _ = compiled(mesh, function, *LOOP)
    cost = program.cost(CHIP.flops, CHIP.bandwidth)
    fewest = cost.flops / CHIP.flops * CHIP.clock
    assert fewest < cost.cycles < 6 * fewest


def test_loops_whose_counter_takes_two_run_half_as_often(mesh):
  def pairs(x, weights):
    def both(carried):
      i, x = carried
      return i + 2, nnx.silu(nnx.silu(x @ weights[i]) @ weights[i + 1])

    return jax.lax.while_loop(lambda carried: carried[0] < LAYERS, both, (0, x))[1]

  program, _ = compiled(mesh, pairs, *LOOP)
  cost = program.cost(CHIP.flops, CHIP.bandwidth)
  assert cost.flops == LAYERS * 2 * ROWS * WIDTH * WIDTH / 4


def test_of_stacked_weights_a_layer_reads_its_own(mesh):
  whole = (LOOP[0], ((LAYERS, WIDTH, WIDTH), ()))
  program, _ = compiled(mesh, scanned, *whole)
  moved = program.cost(CHIP.flops, CHIP.bandwidth).bytes_moved
  weights, rows = 2 * WIDTH * WIDTH, 2 * ROWS * WIDTH / 4
  # What is fetched ahead is moved twice; the whole stack each time would be six times.
  assert 1 <= moved / (LAYERS * (weights + 2 * rows)) < 2


def test_each_layer_is_gathered_by_itself(mesh):
  for function in (scanned, unrolled):
    program, _ = compiled(mesh, function, *LOOP)
    assert program.collectives() == {'all-gather': (LAYERS, LAYERS * WIDTH * WIDTH * 2)}


def test_without_loops_the_figures_are_near_those_of_xla(mesh):
  program, analysis = compiled(mesh, unrolled, *LOOP)
  cost = program.cost(CHIP.flops, CHIP.bandwidth)
  assert cost.flops == pytest.approx(analysis['flops'], rel=0.01)
  assert cost.bytes_moved == pytest.approx(analysis['bytes accessed'], rel=0.15)
  assert cost.seconds == pytest.approx(analysis['optimal_seconds'], rel=0.15)


def test_convolutions_count_a_product_for_each_weight_and_pixel(mesh):
  conv = Conv3x3(128, 256, rngs=nnx.Rngs(0))
  graph, weights = nnx.split(conv)

  def forward(x):
    return nnx.merge(graph, weights)(x)

  program, _ = compiled(mesh, forward, ((8, 16, 16, 128), ('fsdp',)))
  cost = program.cost(CHIP.flops, CHIP.bandwidth)
  # The border meets padding, 2 of 48 places a side; the compiler may cut the image into
  # parts that overlap, and so do some of it twice.
  useful = 2 * (8 / 4) * (3 * 16 - 2) ** 2 * 128 * 256
  assert useful <= cost.flops < 2 * useful


def test_products_of_batches_of_matrices_count_no_gaps(mesh):
  def attend(q, k):
    return jax.nn.dot_product_attention(q, k, k)

  shape = ((8, 64, 4, 128), ('fsdp',))
  program, _ = compiled(mesh, attend, shape, shape)
  cost = program.cost(CHIP.flops, CHIP.bandwidth)
  # Scores and what they choose, of 2 images and 4 heads a chip.
  assert cost.flops == 2 * (2 * 2 * 4 * 64 * 64 * 128)


def test_what_goes_to_a_neighbour_counts_as_what_arrives(mesh):
  def shift(x):
    ring = [(i, (i + 1) % 4) for i in range(4)]
    return jax.lax.ppermute(x, 'fsdp', ring)

  split = P('fsdp')
  shifted = jax.shard_map(shift, mesh=mesh, in_specs=split, out_specs=split)
  program, _ = compiled(mesh, shifted, ((ROWS, WIDTH), ('fsdp',)))
  assert program.collectives() == {'collective-permute': (1, 2 * ROWS * WIDTH / 4)}


def test_weights_go_round_only_where_the_config_says_so(mesh):
  def product(x, w):
    return x @ w

  arguments = (((32, 64, 64, WIDTH), ('fsdp',)), ((WIDTH, WIDTH), ('fsdp',)))
  kinds = []
  for rings in (False, True):
    program, _ = compiled(
      mesh,
      product,
      *arguments,
      compiler_options=compiler_options(MeshConfig(rings=rings), mesh),
      out_shardings=NamedSharding(mesh, P('fsdp')),
    )
    kinds.append(set(program.collectives()))
  assert kinds == [{'all-gather'}, {'collective-permute'}]


def test_a_lower_target_takes_kernels_of_more_cycles(mesh):
  def product(x, w):
    dims = ('NHWC', 'HWIO', 'NHWC')
    return jax.lax.conv_general_dilated(x, w, (1, 1), 'SAME', dimension_numbers=dims)

  arguments = (((32, 32, 32, 512), ('fsdp',)), ((3, 3, 512, 512), ()))
  cycles = []
  for target in (0.6, 1.0):
    options = compiler_options(MeshConfig(kernel_target=target), mesh)
    program, _ = compiled(mesh, product, *arguments, compiler_options=options)
    cycles.append(program.cost(CHIP.flops, CHIP.bandwidth).cycles)
  assert cycles[0] > 1.1 * cycles[1]


def test_gradients_of_split_weights_are_reduced_and_scattered_at_once(mesh):
  def gradient(w, x):
    return jax.grad(lambda w: (x @ w).astype(jnp.float32).sum())(w)

  split = NamedSharding(mesh, P('fsdp'))
  shapes = [
    jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=split)
    for shape in ((WIDTH, WIDTH), (ROWS, WIDTH))
  ]
  step = jax.jit(gradient, out_shardings=split)
  program = Program(step.lower(*shapes).compile().as_text())
  assert set(program.collectives()) == {'reduce-scatter'}
