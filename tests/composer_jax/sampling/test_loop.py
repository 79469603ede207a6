from __future__ import annotations

import warnings

import diffusers
import jax
import numpy as np
import pytest
from jax import numpy as jnp

from composer_jax.diffusion.process import coefficients, to_eps_and_x0
from composer_jax.diffusion.schedule import make_schedule
from composer_jax.sampling.corrector import langevin
from composer_jax.sampling.ddim import ddim
from composer_jax.sampling.ddpm import ddpm
from composer_jax.sampling.dpm_solver import dpm_solver
from composer_jax.sampling.loop import initial_noise, sample, timesteps
from composer_jax.sampling.threshold import dynamic, static

ALPHAS = make_schedule('cosine').alphas_cumprod
SHAPE = (4, 4, 3)


def denoise(x_t, t):
  eps = 0.8 * jnp.tanh(x_t[..., ::-1]) + 0.3 * jnp.sin(3 * x_t + t / 100)
  c = coefficients(jnp.asarray(ALPHAS, jnp.float32), t, x_t.ndim)
  return to_eps_and_x0('eps', eps, x_t, c)


def keys_of(seeds):
  return jax.vmap(jax.random.key)(jnp.asarray(seeds))


def run(seeds, sampler=None, num_sample=8, threshold=None, corrector=None):
  keys = keys_of(seeds)
  steps = timesteps(1000, num_sample, 'trailing')
  return sample(
    denoise,
    sampler or ddim(0.8),
    initial_noise(keys, SHAPE),
    ALPHAS,
    steps,
    keys,
    threshold=threshold or static(),
    corrector=corrector,
  )


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

  def record(x_t, estimate, step, noise):
    # The images are a shift register; of each estimate one number says enough.
    row = jnp.stack([*map(jnp.float32, step), *(part.ravel()[0] for part in estimate)])
    return jnp.concatenate([x_t[:, 1:], row[None, None]], axis=1)

  got = sample(
    lambda x_t, t: (jnp.full_like(x_t, t), jnp.full_like(x_t, 2 * t + 1)),
    record,
    jnp.zeros((1, 7, 8)),
    ALPHAS,
    times,
    keys_of([0]),
  )[0]
  last = [times[0], *times[:-1]]
  np.testing.assert_array_equal(got[:, 0], times)
  np.testing.assert_array_equal(got[:, 1], [*times[1:], -1])
  np.testing.assert_allclose(got[:, 2], ALPHAS[times], rtol=1e-6)
  np.testing.assert_allclose(got[:, 3], [*ALPHAS[times[1:]], 1], rtol=1e-6)
  np.testing.assert_allclose(got[:, 4], ALPHAS[last], rtol=1e-6)
  np.testing.assert_array_equal(got[:, 5], times)
  np.testing.assert_array_equal(got[:, 6], 2 * times + 1)
  np.testing.assert_array_equal(got[:, 7], 2 * np.array(last) + 1)


@pytest.mark.parametrize('threshold', [None, static(), static(0.3), dynamic(0.8, 5.0)])
def test_a_threshold_bounds_x_0_and_keeps_it_consistent_with_eps(threshold):
  keys = keys_of([0, 1])
  x_T = 3 * np.asarray(initial_noise(keys, SHAPE))

  @jax.jit
  def predictions(t):
    def result(which):
      def sampler(x_t, estimate, step, noise):
        return which(estimate)

      steps = t[None]
      return sample(denoise, sampler, x_T, ALPHAS, steps, keys, threshold=threshold)

    return result(lambda estimate: estimate.eps), result(lambda estimate: estimate.x_0)

  for t in (0, 500, 999):
    eps, x_0 = map(np.asarray, predictions(jnp.int32(t)))
    a = np.float32(ALPHAS[t])
    x_t = np.sqrt(a) * x_0 + np.sqrt(1 - a) * eps
    np.testing.assert_allclose(x_t, x_T, atol=2e-5)
    _, free = denoise(x_T, jnp.int32(t))
    assert np.abs(free).max() > 1
    wanted = threshold(free) if threshold else free
    np.testing.assert_allclose(x_0, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
  ('sampler', 'corrector'),
  [
    (ddim(0.8), None),
    (ddpm(), None),
    (dpm_solver(), None),
    (ddim(0.8), langevin(2, 0.1)),
  ],
)
def test_an_image_is_the_same_alone_and_in_any_batch(sampler, corrector):
  jitted = jax.jit(lambda seeds: run(seeds, sampler, corrector=corrector))
  seeds = jnp.array([5, 0, 17, 3, 2**31 - 1, 8, 1, 11])
  together = np.asarray(jitted(seeds))
  for index in (0, 3, 7):
    alone = jitted(seeds[index : index + 1])[0]
    np.testing.assert_allclose(alone, together[index], atol=1e-5)
  np.testing.assert_allclose(jitted(seeds[::-1])[::-1], together, atol=1e-5)
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
  count = 10

  def push(x_t, noise):
    return jnp.concatenate([x_t[:, 1:], noise[:, :1]], axis=1)

  def collect(x_t, estimate, step, noise):
    return push(x_t, noise)

  def collect_twice(predict_eps, x_t, step, keys):
    # With no eps to follow, what Langevin adds is its noise alone.
    unit = 1 / jnp.sqrt(2 * (1 - step.alpha_cumprod))
    for number in (1, 2):
      moved, before = (
        langevin(n, 1.0)(jnp.zeros_like, jnp.zeros_like(x_t), step, keys)
        for n in (number, number - 1)
      )
      x_t = push(x_t, unit * (moved - before))
    return x_t

  # Each draw is as large as the register; its first entry of 64 numbers is kept.
  register = jnp.zeros((16, 3 * count, 64))
  steps = timesteps(1000, count, 'leading')
  noise = sample(
    lambda x, t: (x, x),
    collect,
    register,
    ALPHAS,
    steps,
    keys,
    corrector=collect_twice,
  )
  everything = np.concatenate([x_T[:, None], noise], axis=1).reshape(-1, 64)
  overlap = np.corrcoef(everything) - np.eye(len(everything))
  assert np.abs(overlap).max() < 0.75
  assert abs(everything.mean()) < 5 / everything.size**0.5
  assert abs(everything.std() - 1) < 5 / (2 * everything.size) ** 0.5


def test_a_corrector_moves_x_t_before_each_step_with_the_eps_of_that_timestep():
  times = timesteps(1000, 6, 'trailing')

  def corrector(predict_eps, x_t, step, keys):
    return x_t + predict_eps(x_t) / (step.t + 1)

  def keep(x_t, estimate, step, noise):
    return x_t

  # The eps is t + 1, so that each visit adds 1.
  got = sample(
    lambda x_t, t: (jnp.full_like(x_t, t + 1), x_t),
    keep,
    jnp.zeros((2, *SHAPE)),
    ALPHAS,
    times,
    keys_of([0, 1]),
    corrector=corrector,
  )
  np.testing.assert_array_equal(got, np.full((2, *SHAPE), len(times)))


def test_a_corrector_is_given_the_eps_that_the_sampler_is_given():
  keys = keys_of([0, 1])
  x_T = 3 * np.asarray(initial_noise(keys, SHAPE))

  def run_one_step(sampler, corrector):
    return sample(
      denoise,
      sampler,
      x_T,
      ALPHAS,
      [500],
      keys,
      threshold=dynamic(0.8, 2.0),
      corrector=corrector,
    )

  given = run_one_step(lambda x_t, estimate, step, noise: estimate.eps, None)
  np.testing.assert_allclose(
    run_one_step(
      lambda x_t, *rest: x_t, lambda predict_eps, x_t, step, keys: predict_eps(x_t)
    ),
    given,
    atol=1e-6,
  )
  assert np.abs(given - denoise(x_T, jnp.int32(500))[0]).max() > 0.1


def test_new_settings_seeds_noise_and_schedule_compile_nothing():
  traces = []

  @jax.jit
  def compiled(x_T, eta, percentile, size, keys, alphas, steps):
    traces.append('run')

    def counting(x_t, t):
      traces.append('model')
      return denoise(x_t, t)

    return sample(
      counting,
      ddim(eta),
      x_T,
      alphas,
      steps,
      keys,
      threshold=dynamic(percentile, 1 + eta),
      corrector=langevin(2, size),
    )

  results = []
  for seed, eta, schedule, spacing in [
    (0, 0.0, 'cosine', 'leading'),
    (1, 0.3, 'linear', 'trailing'),
    (2, 1.0, 'cosine', 'linspace'),
  ]:
    keys = keys_of([seed, seed + 10])
    alphas = make_schedule(schedule).alphas_cumprod.astype(np.float32)
    steps = timesteps(1000, 50, spacing)
    percentile, size = 0.9 + eta / 20, 0.1 + eta / 10
    x_T = initial_noise(keys, SHAPE)
    results.append(compiled(x_T, eta, percentile, size, keys, alphas, steps))
  # Once for the function, once in the step and once in the corrector: not once a step
  # of either, nor once a call.
  assert traces.count('run') == 1
  assert traces.count('model') == 2
  assert np.abs(results[0] - results[1]).max() > 0.1


def test_the_compiled_loop_does_not_grow_with_the_steps():
  def size(num_sample):
    corrector = langevin(num_sample // 2, 0.1)
    lowered = jax.jit(
      lambda seeds: run(seeds, num_sample=num_sample, corrector=corrector)
    )
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
