from __future__ import annotations

import diffusers
import jax
import numpy as np
import pytest
import torch
from jax import numpy as jnp

from composer_jax.diffusion.process import (
  coefficients,
  q_sample,
  target,
  to_eps_and_x0,
  velocity_around,
)

SCHEDULER = diffusers.DDPMScheduler(1000, beta_schedule='squaredcos_cap_v2')
ALPHAS = jnp.asarray(SCHEDULER.alphas_cumprod.numpy())
T = np.array([0, 1, 250, 700, 999])
RNG = np.random.default_rng(0)
X_0 = RNG.uniform(-1, 1, (5, 4, 3, 3)).astype(np.float32)
NOISE = RNG.normal(size=X_0.shape).astype(np.float32)
C = coefficients(ALPHAS, jnp.asarray(T), X_0.ndim)


def tensors(*arrays):
  return [torch.from_numpy(array) for array in arrays]


def test_noising_equals_that_of_diffusers():
  wanted = SCHEDULER.add_noise(*tensors(X_0, NOISE, T)).numpy()
  np.testing.assert_allclose(q_sample(X_0, NOISE, C), wanted, atol=1e-6)


def test_velocity_equals_that_of_diffusers():
  wanted = SCHEDULER.get_velocity(*tensors(X_0, NOISE, T)).numpy()
  np.testing.assert_allclose(target('v', X_0, NOISE, C), wanted, atol=1e-6)


@pytest.mark.parametrize(
  ('prediction', 'theirs'),
  [('eps', 'epsilon'), ('v', 'v_prediction'), ('x0', 'sample')],
)
def test_conversions_equal_those_of_diffusers(prediction, theirs):
  scheduler = diffusers.DDIMScheduler(
    1000,
    beta_schedule='squaredcos_cap_v2',
    prediction_type=theirs,
    clip_sample=False,
  )
  scheduler.set_timesteps(1000)
  x_t = np.array(q_sample(X_0, NOISE, C))
  output = RNG.normal(size=X_0.shape).astype(np.float32)
  eps, x_0 = map(np.asarray, to_eps_and_x0(prediction, output, x_t, C))
  for i, t in enumerate(T.tolist()):
    step = scheduler.step(*tensors(output[i]), t, *tensors(x_t[i]))
    wanted = step.pred_original_sample.numpy()
    np.testing.assert_allclose(
      x_0[i], wanted, rtol=1e-5, atol=1e-6 * np.abs(wanted).max()
    )
    if t:  # Their eps shows only in where it takes them.
      a = scheduler.alphas_cumprod[t - 1].numpy()
      their_eps = (step.prev_sample.numpy() - np.sqrt(a) * wanted) / np.sqrt(1 - a)
      error = np.abs(eps[i] - their_eps).max() / np.abs(their_eps).max()
      assert error < 2e-3


@pytest.mark.parametrize('prediction', ['eps', 'v', 'x0'])
def test_the_target_converts_back_to_noise_and_image(prediction):
  wanted = target(prediction, X_0, NOISE, C)
  eps, x_0 = to_eps_and_x0(prediction, wanted, q_sample(X_0, NOISE, C), C)
  shape = (-1, 1, 1, 1)
  # A float32 x_t holds the image to 1e-7 / signal and the noise to 1e-7 / noise.
  error = np.abs(x_0 - X_0) * np.asarray(C.signal).reshape(shape)
  assert error.max() < 5e-7
  error = np.abs(eps - NOISE) * np.asarray(C.noise).reshape(shape)
  assert error.max() < 5e-7


def test_coefficients_take_a_scalar_step_and_any_number_of_axes():
  one = coefficients(ALPHAS, jnp.int32(250), 4)
  assert one.signal.shape == (1, 1, 1, 1)
  np.testing.assert_array_equal(one.signal[0], C.signal[2])
  vectors = coefficients(ALPHAS, jnp.asarray(T), 2)
  assert vectors.noise.shape == (5, 1)
  np.testing.assert_allclose(C.signal**2 + C.noise**2, 1, atol=1e-6)


def test_noised_images_have_the_mean_and_variance_of_q():
  x_0 = jnp.full((40_000, 1), 0.6)
  noise = jax.random.normal(jax.random.key(0), x_0.shape)
  t = jnp.full((40_000,), 400)
  x_t = np.asarray(q_sample(x_0, noise, coefficients(ALPHAS, t, 2)))
  a = float(ALPHAS[400])
  assert abs(x_t.mean() - 0.6 * a**0.5) < 5 * ((1 - a) / 40_000) ** 0.5
  assert abs(x_t.var() / (1 - a) - 1) < 5 * (2 / 40_000) ** 0.5


def test_an_unknown_prediction_is_refused():
  for call in (
    lambda: target('score', X_0, NOISE, C),
    lambda: to_eps_and_x0('score', X_0, NOISE, C),
  ):
    with pytest.raises(ValueError, match=r"'score'.*eps"):
      call()


@pytest.mark.parametrize('spread', [0.1, 0.25, 1.0])
def test_around_a_guess_v_has_the_mean_and_variance_of_a_joint_normal(spread):
  # (v, x_t) is a linear map of (x_0, eps), so conditioning is two lines of algebra.
  guess = RNG.uniform(-1, 1, X_0.shape).astype(np.float32)
  x_t = q_sample(X_0, NOISE, C)
  none, one = (velocity_around(guess, spread, f, x_t, C) for f in (0.0, 1.0))
  for i, a in enumerate(np.asarray(ALPHAS, np.float64)[T]):
    signal, noise = np.sqrt(a), np.sqrt(1 - a)
    to_v_and_x = np.array([[-noise, signal], [signal, noise]])
    covariance = to_v_and_x @ np.diag([spread**2, 1]) @ to_v_and_x.T
    mean_v, mean_x = to_v_and_x[:, :1, None] * guess[i].ravel()
    gain = covariance[0, 1] / covariance[1, 1]
    wanted = (mean_v + gain * (np.ravel(x_t[i]) - mean_x)).ravel()
    np.testing.assert_allclose(np.ravel(none[i]), wanted, atol=2e-4)
    deviation = np.sqrt(covariance[0, 0] - gain * covariance[0, 1])
    np.testing.assert_allclose(one[i] - none[i], deviation, atol=2e-4)
