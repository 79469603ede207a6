from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from composer_jax.config import SampleConfig, settings_from
from composer_jax.diffusion.resolution import average
from composer_jax.sampling.guidance import Branch, Wish
from composer_jax.sampling.tiles import blending, corners, in_tiles
from tests.composer_jax.sampling.test_cascade import keys, model_of
from tests.composer_jax.tiny import SIZE, denoising, shapes_of

LAYOUTS = [
  (16, 8, 0, [0, 8]),
  (16, 8, 4, [0, 4, 8]),
  (16, 12, 4, [0, 4]),
  (1024, 256, 32, [0, 224, 448, 672, 768]),
  (8, 8, 4, [0]),
]


@pytest.mark.parametrize(('size', 'tile', 'overlap', 'starts'), LAYOUTS)
def test_tiles_reach_over_the_side_and_their_shares_add_up_to_one(
  size, tile, overlap, starts
):
  np.testing.assert_array_equal(corners(size, tile, overlap), starts)
  total = np.zeros(size)
  for start, share in zip(starts, blending(size, tile, overlap), strict=True):
    assert (share > 0).all()
    total[start : start + tile] += share
  np.testing.assert_allclose(total, 1, atol=1e-6)


def test_a_tile_hands_over_to_its_neighbour_in_even_steps():
  left, right = blending(12, 8, 4)
  np.testing.assert_allclose(left[:4], 1)
  np.testing.assert_allclose(left[4:], [7 / 8, 5 / 8, 3 / 8, 1 / 8])
  np.testing.assert_allclose(right, left[::-1])


@pytest.mark.parametrize(('size', 'tile', 'overlap', 'starts'), LAYOUTS[:3])
def test_what_is_done_pixel_by_pixel_is_the_same_in_tiles(size, tile, overlap, starts):
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(2, size, size, 3)), jnp.float32)
  fine = jnp.asarray(rng.integers(0, 255, (2, 2 * size, 2 * size, 1)), jnp.uint8)
  seen = []

  def network(images):
    x, nothing, maps = images
    assert nothing is None
    seen.append(x.shape)
    return jnp.sin(x) + average(maps['fine'].astype(jnp.float32), x.shape[1])

  images = (x, None, {'fine': fine})
  made = jax.jit(lambda images: in_tiles(network, images, size, tile, overlap))(images)
  assert set(seen) == {(2, tile, tile, 3)}
  np.testing.assert_allclose(made, network(images), rtol=1e-5)


def upsampler(**sample):
  return denoising(
    names=('sketch',),
    model={
      'image_size': 2 * SIZE,
      'low_res_size': SIZE,
      'multipliers': (1, 1),
      'attention': (False, True),
      'fold': 1,
    },
    diffusion={'prediction': 'v', 'low_res_spread': 0.5},
    maps=4 * SIZE,
    **({'guidance': 1.0, 'eta': 0.0, 'steps': 1} | sample),
  )


def inputs():
  rng = np.random.default_rng(1)
  shape = shapes_of(('sketch',), 4 * SIZE)['sketch']
  sketch = (rng.random((2, *shape)) < 0.3).astype(np.uint8) * 255
  wish = Wish(
    (Branch({'sketch': sketch}, {'sketch': np.ones(2, bool)}),),
    np.ones((1, 2), np.float32),
  )
  return wish, rng.uniform(-1, 1, (2, SIZE, SIZE, 3)).astype(np.float32)


def test_a_step_in_tiles_equals_a_plain_loop_over_them():
  stage, (wish, low) = upsampler(tile=8, overlap=4), inputs()
  made = np.asarray(stage(wish, keys(1, 2), low))
  # As t = 999 is all noise, x_0 is what the network finds around the enlarged image.
  large = np.asarray(jax.image.resize(low, (2, 16, 16, 3), 'cubic'))
  level_keys = [jax.random.split(key)[0] for key in keys(1, 2)]
  x_T = np.stack(
    [jax.random.normal(jax.random.fold_in(k, 0), (16, 16, 3)) for k in level_keys]
  )
  network, sketch = nnx.jit(model_of(stage)), wish.terms[0].stored['sketch']
  total, weight = np.zeros((2, 16, 16, 3)), np.zeros((16, 16, 1))
  ramp = np.minimum(np.minimum(np.arange(8) + 0.5, 7.5 - np.arange(8)), 4)
  for y in (0, 4, 8):
    for x in (0, 4, 8):
      here = (slice(None), slice(y, y + 8), slice(x, x + 8))
      fine = (slice(None), slice(2 * y, 2 * y + 16), slice(2 * x, 2 * x + 16))
      output = network(
        jnp.asarray(x_T[here]),
        jnp.full(2, 999),
        {'sketch': sketch[fine]},
        wish.terms[0].kept,
        low_res=jnp.asarray(large[here]),
        level=jnp.zeros(2),
      )
      share = (ramp[:, None] * ramp)[..., None]
      total[here] += np.asarray(output) * share
      weight[here[1:]] += share
  wanted = np.clip(large - 0.5 * total / weight, -1, 1)
  np.testing.assert_allclose(made, wanted, atol=1e-3)


def test_one_tile_is_the_whole_image_to_the_bit():
  stage, (wish, low) = upsampler(steps=3, guidance=1.5, eta=1.0), inputs()
  whole = np.asarray(stage(wish, keys(1, 2), low))
  for tile in (16, 32):
    settings = settings_from(stage.config.sample, {'tile': tile, 'overlap': 4})
    one = np.asarray(stage(wish, keys(1, 2), low, settings))
    np.testing.assert_array_equal(one, whole)


def test_tiles_take_less_memory():
  stage = denoising(
    names=(),
    model={
      'image_size': 64,
      'low_res_size': 32,
      'multipliers': (1, 2),
      'attention': (False, False),
    },
  )
  wish = Wish((Branch({}, {}),), np.ones((1, 1), np.float32))
  low, used = jnp.zeros((1, 32, 32, 3)), []
  for tile in (0, 16):
    settings = settings_from(stage.config.sample, {'tile': tile, 'overlap': 4})
    program = stage.lower(wish, keys(1), low, settings).compile()
    used.append(program.memory_analysis().temp_size_in_bytes)
  assert used[1] < 0.6 * used[0]


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'tile': 7, 'overlap': 0}, r'sample.tile is 7; expected a multiple of 2'),
    ({'tile': 8, 'overlap': 3}, r'sample.overlap is 3; expected a multiple of 2'),
    ({'tile': 8, 'overlap': 8}, r'overlap is 8; expected less than .*tile, 8'),
    ({'tile': -8}, r'config.sample.tile is -8; expected at least 0'),
  ],
)
def test_tiles_that_do_not_fit_are_refused(settings, message):
  stage, (wish, low) = upsampler(), inputs()
  with pytest.raises(ValueError, match=message):
    stage(wish, keys(1, 2), low, SampleConfig(**settings))


def test_a_base_model_is_not_cut():
  stage = denoising(names=())
  wish = Wish((Branch({}, {}),), np.ones((1, 1), np.float32))
  with pytest.raises(ValueError, match=r'tile is 4, .*low_res_size 0; expected tile 0'):
    stage(wish, keys(1), None, SampleConfig(tile=4, overlap=0))
