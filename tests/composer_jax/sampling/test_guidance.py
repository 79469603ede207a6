from __future__ import annotations

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from composer_jax.diffusion.process import coefficients, to_eps_and_x0
from composer_jax.diffusion.schedule import make_schedule
from composer_jax.sampling.ddim import ddim
from composer_jax.sampling.guidance import classifier_free, unguided
from composer_jax.sampling.loop import initial_noise, sample, timesteps

ALPHAS = jnp.asarray(make_schedule('cosine').alphas_cumprod, jnp.float32)
X_T = np.random.default_rng(0).normal(size=(3, 4, 4, 2)).astype(np.float32)
CONDITIONS = {
  'hue': np.random.default_rng(1).normal(size=(3, 2)).astype(np.float32),
  'shade': np.array([40, 200, 90], np.uint8),
}
KEPT = {
  'hue': np.array([True, True, False]),
  'shade': np.array([True, False, False]),
}


def output(x_t, t, conditions, kept):
  """A stand-in for a network: dropped conditions have no say."""
  t = t.reshape(-1, 1, 1, 1)
  hue = (conditions['hue'] * kept['hue'][:, None])[:, None, None, :]
  shade = (conditions['shade'] / 255 * kept['shade'])[:, None, None, None]
  return jnp.tanh(x_t[..., ::-1] * (1 + shade)) + hue * jnp.cos(x_t + t / 300)


def make_model(prediction='eps'):
  def model(x_t, t, conditions, kept):
    c = coefficients(ALPHAS, t, x_t.ndim)
    return to_eps_and_x0(prediction, output(x_t, t, conditions, kept), x_t, c)

  return model


def direct(prediction, t, guidance):
  """Two separate passes, image by image, and x_0 made anew from the guided eps."""
  model, result = jax.jit(make_model(prediction)), []
  nothing = {name: np.zeros_like(value) for name, value in KEPT.items()}
  for i in range(len(X_T)):
    one = slice(i, i + 1)
    conditions = {name: value[one] for name, value in CONDITIONS.items()}
    steps = jnp.full((1,), t)
    kept = {name: value[one] for name, value in KEPT.items()}
    eps_with, _ = model(X_T[one], steps, conditions, kept)
    dropped = {name: value[one] for name, value in nothing.items()}
    eps_without, _ = model(X_T[one], steps, conditions, dropped)
    w = np.broadcast_to(guidance, len(X_T))[i]
    eps = eps_without + w * (eps_with - eps_without)
    a = ALPHAS[t]
    result.append((eps[0], ((X_T[one] - jnp.sqrt(1 - a) * eps) / jnp.sqrt(a))[0]))
  return tuple(np.stack(part) for part in zip(*result, strict=True))


@pytest.mark.parametrize('guidance', [0.0, 1.0, 3.0, np.float32([0.5, 2, 7])])
@pytest.mark.parametrize('prediction', ['eps', 'v', 'x0'])
@pytest.mark.parametrize('t', [5, 500, 990])
def test_guided_eps_and_x_0_equal_two_separate_passes(prediction, t, guidance):
  denoise = classifier_free(make_model(prediction), CONDITIONS, KEPT, guidance)
  eps, x_0 = denoise(X_T, jnp.int32(t))
  wanted_eps, wanted_x_0 = direct(prediction, t, guidance)
  # A v or x0 output loses digits on the way to eps at small t, x_0 at large t.
  loose = 1e-5 + 1e-6 / np.sqrt(1 - ALPHAS[t])
  np.testing.assert_allclose(eps, wanted_eps, atol=20 * loose)
  np.testing.assert_allclose(x_0, wanted_x_0, atol=20 * loose / np.sqrt(ALPHAS[t]))
  a = ALPHAS[t]
  again = jnp.sqrt(a) * x_0 + jnp.sqrt(1 - a) * eps
  np.testing.assert_allclose(again, X_T, atol=5e-5)


def test_one_pass_sees_the_same_batch_twice_and_the_second_half_without_conditions():
  seen = []

  def model(x_t, t, conditions, kept):
    seen.append((x_t, t, conditions, kept))
    return x_t, x_t

  classifier_free(model, CONDITIONS, KEPT, 2.0)(X_T, jnp.int32(7))
  ((x_t, t, conditions, kept),) = seen
  np.testing.assert_array_equal(x_t, np.concatenate([X_T, X_T]))
  np.testing.assert_array_equal(t, [7] * 6)
  assert t.dtype == jnp.int32
  for name, value in CONDITIONS.items():
    np.testing.assert_array_equal(conditions[name], np.concatenate([value, value]))
    assert conditions[name].dtype == value.dtype
    np.testing.assert_array_equal(kept[name][:3], KEPT[name])
    assert kept[name].dtype == bool
    assert not kept[name][3:].any()


def test_an_image_that_keeps_nothing_is_not_moved_by_guidance():
  def eps(guidance):
    denoise = classifier_free(make_model(), CONDITIONS, KEPT, guidance)
    return np.asarray(denoise(X_T, jnp.int32(300))[0])

  np.testing.assert_array_equal(eps(1.0)[2], eps(9.0)[2])
  assert np.abs(eps(1.0) - eps(9.0))[:2].max(axis=(1, 2, 3)).min() > 0.1


def test_a_model_without_conditions_can_be_asked():
  def model(x_t, t, conditions, kept):
    assert conditions == kept == {}
    return 2 * x_t, x_t

  eps, x_0 = classifier_free(model, {}, {}, 3.0)(X_T, jnp.int32(3))
  np.testing.assert_array_equal(eps, 2 * X_T)
  np.testing.assert_array_equal(x_0, X_T)


def test_without_guidance_is_guidance_1_in_one_pass():
  seen = []

  def model(x_t, *rest):
    seen.append(len(x_t))
    return make_model()(x_t, *rest)

  t = jnp.asarray(300)
  plain = unguided(model, CONDITIONS, KEPT)(X_T, t)
  guided = classifier_free(model, CONDITIONS, KEPT, 1.0)(X_T, t)
  for ours, wanted in zip(plain, guided, strict=True):
    np.testing.assert_allclose(ours, wanted, rtol=1e-5, atol=1e-6)
  assert seen == [3, 6]


def test_guidance_of_the_wrong_length_is_refused():
  denoise = classifier_free(make_model(), CONDITIONS, KEPT, jnp.ones(2))
  with pytest.raises(ValueError, match=r'\(2,\).*3 images'):
    denoise(X_T, jnp.int32(3))


def test_new_guidance_and_conditions_compile_nothing():
  traces = []

  @jax.jit
  def compiled(conditions, kept, guidance, eta, keys):
    def model(*args):
      traces.append(None)
      return make_model()(*args)

    denoise = classifier_free(model, conditions, kept, guidance)
    x_T = initial_noise(keys, X_T.shape[1:])
    steps = timesteps(1000, 20, 'trailing')
    return sample(denoise, ddim(eta), x_T, ALPHAS, steps, keys, clip=True)

  images = []
  for seed in range(3):
    keys = jax.random.split(jax.random.key(seed), 3)
    kept = {name: np.roll(value, seed) for name, value in KEPT.items()}
    images.append(compiled(CONDITIONS, kept, 1.0 + seed, 0.1 * seed, keys))
  assert len(traces) == 1
  assert all(np.isfinite(image).all() for image in images)


def test_guidance_of_a_gaussian_mixture_finds_the_guided_density():
  # Two unit-variance classes at -m and m: guidance w makes the score
  # w * score(class) + (1 - w) * score(both), here compared at one x_t by
  # differentiating the log densities themselves.
  m, w, t = 0.8, 2.5, 400
  a = ALPHAS[t]
  x_t = np.linspace(-3, 3, 9, dtype=np.float32).reshape(-1, 1)

  def log_class(x, sign):
    return jax.scipy.stats.norm.logpdf(x, sign * jnp.sqrt(a) * m)

  def log_both(x):
    return jnp.logaddexp(log_class(x, -1), log_class(x, 1)) - jnp.log(2)

  def model(x, t, conditions, kept):
    with_class = jnp.sqrt(1 - a) * (x - jnp.sqrt(a) * m * conditions['sign'])
    without = jnp.sqrt(1 - a) * (x - jnp.sqrt(a) * m * jnp.tanh(jnp.sqrt(a) * m * x))
    eps = jnp.where(kept['sign'][:, None], with_class, without)
    return eps, (x - jnp.sqrt(1 - a) * eps) / jnp.sqrt(a)

  conditions = {'sign': np.ones((9, 1), np.float32)}
  kept = {'sign': np.ones(9, bool)}
  eps, _ = classifier_free(model, conditions, kept, w)(x_t, jnp.int32(t))

  def guided_density(x):
    return w * log_class(x, 1) + (1 - w) * log_both(x)

  score = jax.vmap(jax.grad(guided_density))(x_t[:, 0])
  np.testing.assert_allclose(eps[:, 0], -jnp.sqrt(1 - a) * score, atol=1e-5)
