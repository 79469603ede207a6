from __future__ import annotations

import warnings

import diffusers
import jax
import numpy as np
import pytest
from jax import numpy as jnp

from composer_jax.diffusion.process import coefficients, to_eps_and_x0
from composer_jax.diffusion.schedule import make_schedule
from composer_jax.sampling.ddim import ddim
from composer_jax.sampling.loop import initial_noise, sample, timesteps

ALPHAS = make_schedule('cosine').alphas_cumprod
SHAPE = (4, 4, 3)


def denoise(x_t, t):
  eps = 0.8 * jnp.tanh(x_t[..., ::-1]) + 0.3 * jnp.sin(3 * x_t + t / 100)
  c = coefficients(jnp.asarray(ALPHAS, jnp.float32), t, x_t.ndim)
  return to_eps_and_x0('eps', eps, x_t, c)


def keys_of(seeds):
  return jax.vmap(jax.random.key)(jnp.asarray(seeds))


def run(seeds, eta=0.8, num_sample=8, clip=True):
  keys = keys_of(seeds)
  steps = timesteps(1000, num_sample, 'trailing')
  x_T = initial_noise(keys, SHAPE)
  return sample(denoise, ddim(eta), x_T, ALPHAS, steps, keys, clip=clip)


@pytest.mark.parametrize('spacing', ['leading', 'trailing', 'linspace'])
@pytest.mark.parametrize('num_train', [1000, 37])
def test_timesteps_equal_those_of_diffusers(spacing, num_train):
  scheduler = diffusers.DDIMScheduler(num_train, timestep_spacing=spacing)
  for num_sample in range(1, num_train + 1):
    scheduler.set_timesteps(num_sample)
    got = timesteps(num_train, num_sample, spacing)
    wanted = scheduler.timesteps.numpy()
    # Rounding errors let diffusers' `trailing` run on to t = -1 for some counts.
    np.testing.assert_array_equal(got, wanted[wanted >= 0])
    assert len(got) == num_sample
    assert got.dtype == np.int32
    assert (np.diff(got) < 0).all()


def test_timesteps_refuse_what_they_cannot_do():
  for count in (0, -1, 11):
    with pytest.raises(ValueError, match=f'{count} sampling steps.*1 to 10'):
      timesteps(10, count, 'leading')
  with pytest.raises(ValueError, match=r"'even'.*leading"):
    timesteps(10, 5, 'even')


@pytest.mark.parametrize('spacing', ['leading', 'trailing', 'linspace'])
def test_each_step_goes_to_the_next_timestep_and_the_last_to_the_clean_image(spacing):
  times = timesteps(1000, 7, spacing)  # A count that does not divide 1000.

  def record(x_t, eps, x_0, step, noise):
    # The images are a shift register, and denoise's eps says what t it was given.
    row = jnp.stack([*map(jnp.float32, step), eps.ravel()[0]])
    return jnp.concatenate([x_t[:, 1:], row[None, None]], axis=1)

  got = sample(
    lambda x_t, t: (jnp.full_like(x_t, t), x_t),
    record,
    jnp.zeros((1, 7, 5)),
    ALPHAS,
    times,
    keys_of([0]),
  )[0]
  np.testing.assert_array_equal(got[:, 0], times)
  np.testing.assert_array_equal(got[:, 4], times)
  np.testing.assert_array_equal(got[:, 1], [*times[1:], -1])
  np.testing.assert_allclose(got[:, 2], ALPHAS[times], rtol=1e-6)
  np.testing.assert_allclose(got[:, 3], [*ALPHAS[times[1:]], 1], rtol=1e-6)


@pytest.mark.parametrize('clip', [False, True])
def test_clipping_bounds_x_0_and_keeps_it_consistent_with_eps(clip):
  keys = keys_of([0, 1])
  x_T = 3 * np.asarray(initial_noise(keys, SHAPE))

  @jax.jit
  def predictions(t):
    def result(which):
      def sampler(x_t, eps, x_0, step, noise):
        return which(eps, x_0)

      return sample(denoise, sampler, x_T, ALPHAS, t[None], keys, clip=clip)

    return result(lambda eps, x_0: eps), result(lambda eps, x_0: x_0)

  for t in (0, 500, 999):
    eps, x_0 = map(np.asarray, predictions(jnp.int32(t)))
    a = np.float32(ALPHAS[t])
    x_t = np.sqrt(a) * x_0 + np.sqrt(1 - a) * eps
    np.testing.assert_allclose(x_t, x_T, atol=2e-5)
    _, free = denoise(x_T, jnp.int32(t))
    wanted = np.clip(free, -1, 1) if clip else free
    assert np.abs(free).max() > 1
    np.testing.assert_allclose(x_0, wanted, rtol=1e-4, atol=1e-5)


def test_an_image_is_the_same_alone_and_in_any_batch():
  jitted = jax.jit(run)
  seeds = jnp.array([5, 0, 17, 3, 2**31 - 1, 8, 1, 11])
  together = np.asarray(jitted(seeds))
  for index in (0, 3, 7):
    alone = jitted(seeds[index : index + 1])[0]
    np.testing.assert_allclose(alone, together[index], atol=1e-5)
  halves = np.concatenate([jitted(seeds[:4]), jitted(seeds[4:])])
  np.testing.assert_allclose(halves, together, atol=1e-5)
  np.testing.assert_array_equal(jitted(seeds), together)
  assert np.abs(together[0] - together[1]).max() > 0.1


def test_initial_noise_belongs_to_its_key():
  alone = initial_noise(keys_of([7]), SHAPE)
  among = initial_noise(keys_of([3, 7]), SHAPE)
  np.testing.assert_array_equal(alone[0], among[1])
  assert alone.dtype == jnp.float32


def test_no_noise_is_used_twice_and_all_of_it_is_standard_normal():
  keys = keys_of(range(16))
  x_T = initial_noise(keys, (64,))

  def collect(x_t, eps, x_0, step, noise):
    return jnp.concatenate([x_t[:, 1:], noise[:, :1]], axis=1)

  # Each draw is as large as the register; its first entry of 64 numbers is kept.
  register = jnp.zeros((16, 30, 64))
  steps = timesteps(1000, 30, 'leading')
  noise = sample(lambda x, t: (x, x), collect, register, ALPHAS, steps, keys)
  everything = np.concatenate([x_T[:, None], noise], axis=1).reshape(-1, 64)
  overlap = np.corrcoef(everything) - np.eye(len(everything))
  assert np.abs(overlap).max() < 0.75
  count = everything.size
  assert abs(everything.mean()) < 5 / count**0.5
  assert abs(everything.std() - 1) < 5 / (2 * count) ** 0.5


def test_new_eta_seeds_noise_and_schedule_compile_nothing():
  traces = []

  @jax.jit
  def compiled(x_T, eta, keys, alphas, steps):
    traces.append(None)

    def counting(x_t, t):
      traces.append(None)
      return denoise(x_t, t)

    return sample(counting, ddim(eta), x_T, alphas, steps, keys)

  for seed, eta, schedule, spacing in [
    (0, 0.0, 'cosine', 'leading'),
    (1, 0.3, 'linear', 'trailing'),
    (2, 1.0, 'cosine', 'linspace'),
  ]:
    keys = keys_of([seed, seed + 10])
    alphas = make_schedule(schedule).alphas_cumprod.astype(np.float32)
    steps = timesteps(1000, 50, spacing)
    compiled(initial_noise(keys, SHAPE), eta, keys, alphas, steps)
  # Once for the function and once for its body: not once a step, nor once a call.
  assert len(traces) == 2


def test_the_compiled_loop_does_not_grow_with_the_steps():
  def size(num_sample):
    lowered = jax.jit(lambda seeds: run(seeds, num_sample=num_sample))
    return len(lowered.lower(jnp.arange(2)).as_text().splitlines())

  assert size(4) == size(400)


def test_a_key_for_each_image_is_asked_for():
  with pytest.raises(ValueError, match='2 keys for 3 images'):
    sample(denoise, ddim(), jnp.zeros((3, *SHAPE)), ALPHAS, [9, 4], keys_of([0, 1]))


def test_float64_schedules_are_taken_without_a_warning():
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    result = run([0])
  assert result.dtype == jnp.float32
