from __future__ import annotations

import functools
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from composer_jax.composer import Composer
from composer_jax.diffusion.process import coefficients, to_eps_and_x0
from composer_jax.diffusion.schedule import make_schedule
from composer_jax.sampling.corrector import langevin
from composer_jax.sampling.ddim import ddim
from composer_jax.sampling.ddpm import ddpm
from composer_jax.sampling.dpm_solver import dpm_solver
from composer_jax.sampling.expression import Term
from composer_jax.sampling.loop import initial_noise, sample, timesteps
from composer_jax.sampling.threshold import static
from composer_jax.sampling.watching import Cancelled
from tests.compiling import AS_USERS
from tests.composer_jax.tiny import SIZE, composer_of, denoising

ALPHAS = make_schedule('cosine').alphas_cumprod
STEPS = 3
SEEDS = np.array([4, 9])


def denoise(x_t, t):
  eps = 0.8 * jnp.tanh(x_t[..., ::-1]) + 0.3 * jnp.sin(3 * x_t + t / 100)
  c = coefficients(jnp.asarray(ALPHAS, jnp.float32), t, x_t.ndim)
  return to_eps_and_x0('eps', eps, x_t, c)


def go_on(*_):
  return True


@pytest.fixture(scope='module')
def cascade():
  """A base model and an upsampler."""
  upsampler = denoising(
    1, model={'image_size': 2 * SIZE, 'low_res_size': SIZE}, maps=SIZE, steps=2
  )
  return Composer([denoising(steps=STEPS), upsampler], None)


def stored_of(count=2):
  rng = np.random.default_rng(0)
  return {
    'palette': rng.dirichlet(np.ones(180), count).astype(np.float32),
    'sketch': (rng.random((count, SIZE, SIZE, 1)) < 0.3).astype(np.uint8) * 255,
  }


@pytest.mark.parametrize(
  ('sampler', 'corrector'),
  [
    (ddim(0.8), None),
    (ddpm(), None),
    (dpm_solver(), None),
    (ddim(0.8), langevin(2, 0.1)),
  ],
)
def test_a_watched_loop_gives_the_same_bits(sampler, corrector):
  keys = jax.vmap(jax.random.key)(jnp.asarray(SEEDS))
  x_T = initial_noise(keys, (4, 4, 3))
  seen = []

  def watch(index, x_0):
    seen.append((int(index), np.array(x_0)))
    return True

  def run(watch):
    steps = timesteps(1000, 8, 'trailing')
    loop = functools.partial(
      sample, denoise, sampler, threshold=static(), corrector=corrector, watch=watch
    )
    # Without fusion by emitters the last bit depends on what else is fused.
    loop = jax.jit(loop, compiler_options=AS_USERS)
    return np.asarray(loop(x_T, ALPHAS, steps, keys))

  plain, watched = run(None), run(watch)
  np.testing.assert_array_equal(watched, plain)
  assert [index for index, _ in seen] == list(range(8))
  # All these samplers end with what was predicted last, but for rounding.
  np.testing.assert_allclose(seen[-1][1], watched, atol=1e-4)


def test_a_watched_cascade_gives_the_same_bits_and_shows_every_step(cascade):
  seen = []

  def watch(stage, step, steps, images):
    assert images.dtype == np.uint8
    seen.append((stage, step, steps, images.shape))
    return True

  stored = stored_of()
  plain = cascade.compose(stored, seeds=SEEDS)
  watched = cascade.compose(stored, seeds=SEEDS, watch=watch)
  np.testing.assert_array_equal(watched, plain)
  np.testing.assert_array_equal(cascade.compose(stored, seeds=SEEDS), plain)
  assert seen == [
    *((0, step, STEPS, (2, SIZE, SIZE, 3)) for step in (1, 2, 3)),
    *((1, step, 2, (2, 2 * SIZE, 2 * SIZE, 3)) for step in (1, 2)),
  ]


@pytest.mark.parametrize('sampler', ['ddim', 'ddpm', 'dpm_solver'])
@pytest.mark.parametrize('steps', [1, 2, 5])
def test_any_number_of_steps_gives_the_same_bits(cascade, sampler, steps):
  stored, shown = stored_of(), []
  settings = {'sampler': sampler, 'steps': steps, 'spacing': 'trailing'}

  def watch(stage, step, of, images):
    shown.append((stage, step, of))
    return True

  plain = cascade.compose(stored, seeds=SEEDS, sampling=settings)
  watched = cascade.compose(stored, seeds=SEEDS, sampling=settings, watch=watch)
  np.testing.assert_array_equal(watched, plain)
  assert shown[:steps] == [(0, step, steps) for step in range(1, steps + 1)]


def test_terms_can_be_watched_and_the_last_look_is_the_image():
  composer, looks = composer_of(), []
  first, second = (
    {name: value[i] for name, value in stored_of().items()} for i in (0, 1)
  )
  terms = [[Term(1.0, first), Term(-0.5, second)]]

  def watch(stage, step, steps, images):
    looks.append(images)
    return True

  made = composer.compose_terms(terms, seeds=SEEDS[:1], watch=watch)
  np.testing.assert_array_equal(made, composer.compose_terms(terms, seeds=SEEDS[:1]))
  assert len(looks) == composer.stages[0].config.sample.steps
  assert np.abs(looks[-1].astype(int) - made).max() <= 1


def test_other_watchers_and_values_compile_nothing(cascade):
  def compiled():
    return [stage._sample._cache_size() for stage in cascade.stages]

  cascade.compose(stored_of(), seeds=SEEDS, watch=go_on)
  before = compiled()
  for number in range(3):
    cascade.compose(
      stored_of(),
      {'sketch': np.full(2, 0.3 * number)},
      seeds=SEEDS + number,
      windows={'palette': (0.1 * number, 0.9)},
      sampling={'guidance': 3.0 + number, 'eta': 0.2 * number, 'steps': 2 + number},
      watch=lambda *_: True,
    )
  assert compiled() == before


@pytest.mark.parametrize('last', [(0, 1), (0, 3), (1, 1)])
def test_a_watcher_stops_the_run_where_it_says_so(cascade, last):
  seen = []

  def watch(stage, step, steps, images):
    seen.append((stage, step))
    return (stage, step) != last

  with pytest.raises(Cancelled):
    cascade.compose(stored_of(), seeds=SEEDS, watch=watch)
  assert seen[-1] == last
  assert len(seen) == STEPS * last[0] + last[1]
  # Nothing of it is left.
  cascade.compose(stored_of(), seeds=SEEDS, watch=go_on)


def test_what_a_watcher_raises_ends_the_run_and_comes_out(cascade):
  def watch(stage, step, steps, images):
    raise KeyError('mine')

  with pytest.raises(KeyError, match='mine'):
    cascade.compose(stored_of(), seeds=SEEDS, watch=watch)
  cascade.compose(stored_of(), seeds=SEEDS, watch=go_on)


def test_runs_of_several_threads_are_each_told_of_their_own(cascade):
  wrong, made = [], {}

  def run(count):
    def watch(stage, step, steps, images):
      if len(images) != count:
        wrong.append(count)
      return True

    stored = stored_of(count)
    made[count] = cascade.compose(stored, seeds=np.arange(count), watch=watch)

  threads = [threading.Thread(target=run, args=[count]) for count in (2, 3, 4, 5)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert not wrong
  assert made.keys() == {2, 3, 4, 5}


def test_padding_is_not_shown_and_many_images_come_in_parts():
  counts = []

  def watch(stage, step, steps, images):
    counts.append(len(images))
    return True

  composer_of().compose(
    stored_of(35), seeds=np.arange(35), sampling={'steps': 1}, watch=watch
  )
  assert counts == [32, 3]
