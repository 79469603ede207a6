from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from composer_jax.diffusion.schedule import make_schedule
from composer_jax.sampling.cascade import run_cascade
from composer_jax.sampling.guidance import Branch, Wish
from composer_jax.training.stages import Diffusion
from tests.composer_jax.tiny import SIZE, denoising, shapes_of

NAMES = ('palette', 'sketch')


def conditions(count, seed=0):
  rng = np.random.default_rng(seed)
  shapes = shapes_of(NAMES)
  stored = {
    'palette': rng.dirichlet(np.ones(180), count).astype(np.float32),
    'sketch': (rng.random((count, *shapes['sketch'])) < 0.3).astype(np.uint8) * 255,
  }
  return stored, {name: np.ones(count, bool) for name in NAMES}


def follow(stage, stored, kept, keys, low_res=None, **settings):
  """Samples of one term."""
  wish = wish_of(stored, kept)
  settings = dataclasses.replace(stage.config.sample, **settings)
  return stage(wish, keys, low_res, settings)


def wish_of(stored, kept):
  count = len(next(iter(kept.values())))
  return Wish((Branch(stored, kept),), np.ones((1, count), np.float32))


def keys(*seeds):
  return jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))


def test_a_stage_equals_a_plain_loop_over_its_steps():
  stage = denoising(names=NAMES, diffusion={'prediction': 'v'}, guidance=2.0)
  stored, kept = conditions(2)
  images = follow(stage, stored, kept, keys(5, 6), steps=4, eta=0.0)

  model = model_of(stage)
  alphas = make_schedule('cosine', 1000).alphas_cumprod
  times = [999, 749, 499, 249]
  draw = [
    jax.random.normal(jax.random.fold_in(k, 0), (SIZE, SIZE, 3)) for k in keys(5, 6)
  ]
  x = np.stack(draw).astype(np.float64)
  dropped = {name: np.zeros(2, bool) for name in NAMES}
  for t, previous in zip(times, [*times[1:], None], strict=True):
    a, b = alphas[t], 1.0 if previous is None else alphas[previous]
    step = jnp.full(2, t)
    with_all = np.asarray(model(jnp.asarray(x, jnp.float32), step, stored, kept))
    without = np.asarray(model(jnp.asarray(x, jnp.float32), step, stored, dropped))
    v = without + 2.0 * (with_all - without)
    x_0 = np.clip(np.sqrt(a) * x - np.sqrt(1 - a) * v, -1, 1)
    eps = (x - np.sqrt(a) * x_0) / np.sqrt(1 - a)
    x = np.sqrt(b) * x_0 + np.sqrt(1 - b) * eps
  np.testing.assert_allclose(images, np.clip(x, -1, 1), atol=2e-4)


def model_of(stage):
  template = nnx.eval_shape(
    lambda: Diffusion(stage.config, stage.condition_shapes).init(jax.random.key(0))
  )
  graph, _ = nnx.split(template)
  return nnx.merge(graph, stage.weights)


def test_guidance_1_is_the_same_in_one_pass_as_in_two():
  stage = denoising(names=NAMES)
  stored, kept = conditions(2)
  one = follow(stage, stored, kept, keys(1, 2), guidance=1.0)
  two = follow(stage, stored, kept, keys(1, 2), guidance=1.0 + 1e-7)
  np.testing.assert_allclose(one, two, atol=1e-4)


def test_an_image_depends_on_its_seed_and_not_on_its_batch():
  stage = denoising(names=NAMES)
  stored, kept = conditions(3)
  together = np.asarray(follow(stage, stored, kept, keys(7, 8, 9)))
  for row, seed in enumerate((7, 8, 9)):
    own = {name: value[row : row + 1] for name, value in stored.items()}
    alone = follow(stage, own, {name: np.ones(1, bool) for name in NAMES}, keys(seed))
    np.testing.assert_allclose(together[row], alone[0], atol=1e-4)
  other = np.asarray(follow(stage, stored, kept, keys(7, 8, 10)))
  assert (other[2] != together[2]).any()


def test_the_cascade_hands_images_up_and_ends_in_bytes():
  base = denoising(names=NAMES)
  large = denoising(
    names=('sketch',), model={'image_size': 2 * SIZE, 'low_res_size': SIZE}
  )
  stored, kept = conditions(2)
  images = run_cascade(
    [base, large],
    wish_of(stored, kept),
    np.array([1, 2]),
    [dataclasses.replace(base.config.sample, steps=2), None],
  )
  assert images.dtype == np.uint8
  assert images.shape == (2, 2 * SIZE, 2 * SIZE, 3)
  seeds = jax.vmap(jax.random.key)(jnp.asarray([1, 2], jnp.uint32))
  each = [jax.vmap(lambda k, i=i: jax.random.fold_in(k, i))(seeds) for i in (0, 1)]
  small = follow(base, stored, kept, each[0], steps=2)
  wanted = np.asarray(follow(large, stored, kept, each[1], small))
  np.testing.assert_array_equal(images, np.round((wanted + 1) * 127.5).astype(np.uint8))


def test_an_upsampler_follows_its_low_resolution_image():
  large = denoising(
    names=('sketch',), model={'image_size': 2 * SIZE, 'low_res_size': SIZE}
  )
  stored, kept = conditions(1)
  flat = [np.full((1, SIZE, SIZE, 3), value, np.float32) for value in (-1, 1)]
  made = [np.asarray(follow(large, stored, kept, keys(1), low)) for low in flat]
  assert (made[0] != made[1]).any()


def test_an_upsampler_that_hardly_may_leave_its_input_returns_it():
  large = denoising(
    names=('sketch',),
    model={'image_size': 2 * SIZE, 'low_res_size': SIZE},
    diffusion={'prediction': 'v', 'low_res_spread': 1e-4},
  )
  stored, kept = conditions(1)
  small = np.random.default_rng(0).uniform(-0.5, 0.5, (1, SIZE, SIZE, 3))
  wanted = jax.image.resize(small, (1, 2 * SIZE, 2 * SIZE, 3), 'cubic')
  made = follow(large, stored, kept, keys(1), jnp.asarray(small, jnp.float32), steps=20)
  np.testing.assert_allclose(made, wanted, atol=1e-2)


def test_an_upsampler_adds_the_details_of_the_intensity_to_its_input():
  large = denoising(
    names=('intensity',),
    model={'image_size': SIZE, 'low_res_size': SIZE // 2},
    diffusion={'prediction': 'v', 'low_res_spread': 1e-4, 'low_res_details': True},
    guidance=1.0,
  )
  # Stripes of a pixel, of which the small image shows the mean.
  columns = np.arange(SIZE)[None, None, :, None] % 2
  stripes = np.broadcast_to(96 + 64 * columns, (2, SIZE, SIZE, 1))
  stored = {'intensity': stripes.astype(np.uint8)}
  small = jnp.zeros((2, SIZE // 2, SIZE // 2, 3))
  kept = {'intensity': np.array([True, False])}
  made = np.asarray(follow(large, stored, kept, keys(1, 2), small, steps=20))
  wanted = np.broadcast_to((64 * columns[0] - 32) / 127.5, made[0].shape)
  np.testing.assert_allclose(made[0], wanted, atol=1e-2)
  np.testing.assert_allclose(made[1], 0, atol=1e-2)


def test_a_base_model_that_may_not_leave_what_is_given_returns_it():
  base = denoising(
    names=('mask',), diffusion={'prediction': 'v', 'given_spread': 1e-4}, guidance=1.0
  )
  mask = np.random.default_rng(0).integers(64, 192, (2, SIZE, SIZE, 4))
  mask[..., 3] = 0
  mask[:, :, : SIZE // 2, 3] = 255
  stored = {'mask': mask.astype(np.uint8) * (mask[..., 3:] > 0).astype(np.uint8)}
  made = follow(base, stored, {'mask': np.array([True, False])}, keys(1, 2), steps=20)
  error = np.abs(np.asarray(made) - (mask[..., :3] / 127.5 - 1))[:, :, : SIZE // 2]
  assert error[0].max() < 1e-2
  assert error[1].mean() > 0.1


@pytest.mark.parametrize('level', [0, 200])
def test_the_noise_on_the_low_resolution_image_is_drawn_from_the_key(level):
  large = denoising(
    names=('sketch',),
    model={'image_size': 2 * SIZE, 'low_res_size': SIZE},
    diffusion={'low_res_level': 250},
    low_res_level=level,
    eta=0.0,
  )
  stored, kept = conditions(1)
  small = np.zeros((1, SIZE, SIZE, 3), np.float32)
  first = np.asarray(follow(large, stored, kept, keys(1), small))
  np.testing.assert_array_equal(first, follow(large, stored, kept, keys(1), small))
  assert np.isfinite(first).all()
  assert np.abs(first).max() <= 1


@pytest.mark.parametrize('sampler', ['ddim', 'ddpm', 'dpm_solver'])
@pytest.mark.parametrize('percentile', [0.0, 0.9])
def test_every_sampler_and_threshold_gives_an_image_of_its_own(sampler, percentile):
  stage = denoising(names=NAMES, diffusion={'prediction': 'v'})
  stored, kept = conditions(2)
  settings = {'sampler': sampler, 'percentile': percentile, 'steps': 4}
  made = np.asarray(follow(stage, stored, kept, keys(1, 2), **settings))
  assert np.isfinite(made).all()
  assert np.abs(made).max() <= 1
  plain = np.asarray(follow(stage, stored, kept, keys(1, 2), steps=4, eta=0.0))
  assert (made != plain).any()


def test_an_upsampler_without_guidance_follows_the_first_term_alone():
  large = denoising(
    names=('sketch',),
    model={'image_size': 2 * SIZE, 'low_res_size': SIZE},
    guidance=1.0,
  )
  stored, kept = conditions(2)
  first = wish_of(stored, kept)
  other = Branch({**stored, 'sketch': 255 - stored['sketch']}, kept)
  both = Wish((*first.terms, other), np.array([[1, 1], [-1, -1]], np.float32))
  low = jnp.zeros((2, SIZE, SIZE, 3))
  np.testing.assert_array_equal(
    large(first, keys(1, 2), low), large(both, keys(1, 2), low)
  )


def test_a_base_model_follows_all_terms_whatever_its_guidance():
  base = denoising(names=NAMES, guidance=1.0)
  stored, kept = conditions(2)
  first = wish_of(stored, kept)
  other = Branch({**stored, 'sketch': 255 - stored['sketch']}, kept)
  away = Wish((*first.terms, other), np.array([[1, 1], [-1, 0]], np.float32))
  one, two = (np.asarray(base(wish, keys(1, 2))) for wish in (first, away))
  assert np.abs(one[0] - two[0]).max() > 0.01
  np.testing.assert_allclose(one[1], two[1], atol=1e-4)


def test_inverting_an_image_and_sampling_leads_back_to_it():
  stage = denoising(names=NAMES, diffusion={'prediction': 'v'}, guidance=1.0, eta=0.0)
  # Weights that are all random make a far rougher model than training does.
  stage.weights = jax.tree.map(lambda w: 0.3 * w, stage.weights)
  stored, kept = conditions(2)
  images = np.random.default_rng(0).uniform(-0.8, 0.8, (2, SIZE, SIZE, 3))
  images = images.astype(np.float32)
  wish, errors = wish_of(stored, kept), []
  for steps in (10, 100):
    settings = dataclasses.replace(stage.config.sample, steps=steps)
    x_T = stage.invert(wish, images, keys(1, 2), None, settings)
    again = stage(wish, keys(1, 2), None, settings, x_T)
    errors.append(float(np.mean((np.asarray(again) - images) ** 2)))
  assert errors[1] < errors[0]
  assert 10 * np.log10(4 / errors[1]) > 30
