from __future__ import annotations

import jax
import numpy as np
import pytest
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import (
  rescale_noise_cfg,
)
from jax import numpy as jnp

from composer_jax.diffusion.process import coefficients, to_eps_and_x0
from composer_jax.diffusion.schedule import make_schedule
from composer_jax.sampling.guidance import Branch, Guidance, Wish, follow, guide
from tests.compiling import AS_USERS

STEPS = 1000
ALPHAS = jnp.asarray(make_schedule('cosine').alphas_cumprod, jnp.float32)
RNG = np.random.default_rng(0)
X_T = RNG.normal(size=(3, 4, 4, 2)).astype(np.float32)


def branch(hue_kept=(1, 1, 0), shade_kept=(1, 0, 0), seed=1, **windows):
  rng = np.random.default_rng(seed)
  stored = {
    'hue': rng.normal(size=(3, 2)).astype(np.float32),
    'shade': rng.integers(0, 256, 3).astype(np.uint8),
  }
  kept = {'hue': np.float32(hue_kept), 'shade': np.float32(shade_kept)}
  return Branch(stored, kept, windows)


ONE, TWO, THREE = branch(), branch((1, 1, 1), (0, 1, 0), 2), branch(seed=3)
ONES = np.ones((1, 3), np.float32)


def model(x_t, t, conditions, kept):
  """A stand-in for a network: dropped conditions have no say."""
  t = jnp.reshape(t, (-1, 1, 1, 1))
  hue = (conditions['hue'] * kept['hue'][:, None])[:, None, None, :]
  shade = (conditions['shade'] / 255 * kept['shade'])[:, None, None, None]
  return jnp.tanh(x_t[..., ::-1] * (1 + shade)) + hue * jnp.cos(x_t + t / 300)


def alone(conditions, t):
  """One pass of its own for each image; float64."""
  rows = []
  for i in range(len(X_T)):
    stored, kept = (
      {name: value[i : i + 1] for name, value in part.items()}
      for part in (conditions.stored, conditions.kept)
    )
    rows.append(model(X_T[i : i + 1], jnp.full(1, t), stored, kept)[0])
  return np.stack(rows).astype(np.float64)


def nothing(conditions):
  return Branch(
    conditions.stored, {name: np.zeros(3, np.float32) for name in conditions.kept}
  )


@pytest.mark.parametrize('scale', [0.0, 1.0, 3.0, np.float32([0.5, 2, 7])])
@pytest.mark.parametrize('t', [5, 500, 990])
def test_one_term_is_classifier_free_guidance(t, scale):
  predict = guide(model, Wish((ONE,), ONES), Guidance(scale), STEPS)
  without = alone(nothing(ONE), t)
  w = np.broadcast_to(scale, 3)[:, None, None, None]
  wanted = without + w * (alone(ONE, t) - without)
  np.testing.assert_allclose(predict(X_T, jnp.int32(t)), wanted, atol=2e-5)


def test_a_base_of_its_own_is_bidirectional_guidance():
  predict = guide(model, Wish((TWO,), ONES, ONE), Guidance(4.0), STEPS)
  wanted = 4.0 * alone(TWO, 300) - 3.0 * alone(ONE, 300)
  np.testing.assert_allclose(predict(X_T, jnp.int32(300)), wanted, atol=2e-5)


def test_several_terms_add_up_their_weighted_directions():
  weights = RNG.normal(size=(3, 3)).astype(np.float32)
  predict = guide(model, Wish((ONE, TWO, THREE), weights), Guidance(2.0), STEPS)
  wanted = without = alone(nothing(ONE), 300)
  for weight, term in zip(weights, (ONE, TWO, THREE), strict=True):
    direction = alone(term, 300) - without
    wanted = wanted + 2.0 * weight[:, None, None, None] * direction
  np.testing.assert_allclose(predict(X_T, jnp.int32(300)), wanted, atol=5e-5)


@pytest.mark.parametrize('prediction', ['eps', 'v', 'x0'])
def test_whatever_is_predicted_guiding_it_guides_eps_and_x_0_alike(prediction):
  t = 400
  c = coefficients(ALPHAS, jnp.int32(t), 4)
  predict = guide(model, Wish((ONE,), ONES), Guidance(3.0), STEPS)
  ours = to_eps_and_x0(prediction, predict(X_T, jnp.int32(t)), X_T, c)
  pair = [
    to_eps_and_x0(prediction, jnp.asarray(alone(b, t), jnp.float32), X_T, c)
    for b in (nothing(ONE), ONE)
  ]
  for made, without, followed in zip(ours, *pair, strict=True):
    np.testing.assert_allclose(made, without + 3 * (followed - without), atol=1e-4)


def test_all_predictions_come_from_one_pass():
  seen = []

  def observed(x_t, t, stored, kept):
    seen.append((x_t, t, stored, kept))
    return x_t

  guide(observed, Wish((ONE, TWO), np.ones((2, 3))), Guidance(2.0), STEPS)(
    X_T, jnp.int32(7)
  )
  ((x_t, t, stored, kept),) = seen
  np.testing.assert_array_equal(x_t, np.concatenate([X_T] * 3))
  np.testing.assert_array_equal(t, [7] * 9)
  for name in ('hue', 'shade'):
    assert stored[name].dtype == ONE.stored[name].dtype
    both = [ONE.kept[name], TWO.kept[name]]
    np.testing.assert_array_equal(kept[name], np.concatenate([np.zeros(3), *both]))


def test_without_guidance_is_guidance_1_in_one_pass():
  seen = []

  def observed(x_t, *rest):
    seen.append(len(x_t))
    return model(x_t, *rest)

  plain = follow(observed, ONE, STEPS)(X_T, jnp.int32(300))
  guided = guide(observed, Wish((ONE,), ONES), Guidance(1.0), STEPS)(
    X_T, jnp.int32(300)
  )
  np.testing.assert_allclose(plain, guided, atol=1e-6)
  assert seen == [3, 6]


def test_an_image_that_keeps_nothing_is_not_moved_by_guidance():
  one, nine = (
    guide(model, Wish((ONE,), ONES), Guidance(w), STEPS)(X_T, jnp.int32(300))
    for w in (1.0, 9.0)
  )
  np.testing.assert_allclose(one[2], nine[2], atol=1e-6)
  assert np.abs(one - nine)[:2].max(axis=(1, 2, 3)).min() > 0.1


@pytest.mark.parametrize(
  ('t', 'inside'), [(999, False), (800, False), (700, True), (251, True), (249, False)]
)
def test_outside_its_interval_the_scale_is_1(t, inside):
  guidance = Guidance(3.0, (0.25, 0.75))
  made = guide(model, Wish((ONE,), ONES), guidance, STEPS)(X_T, jnp.int32(t))
  scale = 3.0 if inside else 1.0
  wanted = guide(model, Wish((ONE,), ONES), Guidance(scale), STEPS)(X_T, jnp.int32(t))
  np.testing.assert_allclose(made, wanted, atol=1e-6)


@pytest.mark.parametrize('t', [999, 500, 499, 0])
def test_a_condition_outside_its_window_is_a_dropped_one(t):
  window = np.float32([[0, 0.5], [0.5, 1], [0, 1]])
  predict = follow(model, branch((1, 1, 1), (1, 1, 1), hue=window), STEPS)
  early = t >= 500
  wanted = alone(branch((early, not early, 1), (1, 1, 1)), t)
  np.testing.assert_allclose(predict(X_T, jnp.int32(t)), wanted, atol=1e-5)


@pytest.mark.parametrize('num_steps', [3, 500, 1000, 4000])
def test_compiled_with_optimisation_the_first_step_is_within_its_window(num_steps):
  # Rounded to just below 0, it would lose every condition and all guidance.
  kept = {'a': np.ones(2, np.float32)}
  branch = Branch({'a': np.ones(2)}, kept, {'a': np.array([[0, 1], [0, 1]], 'f4')})
  predict = follow(lambda x, t, stored, kept: kept['a'], branch, num_steps)
  program = jax.jit(predict).lower(jnp.zeros(2), jnp.int32(0))
  made = program.compile(compiler_options=AS_USERS)(
    jnp.zeros(2), jnp.int32(num_steps - 1)
  )
  np.testing.assert_array_equal(made, 1)


@pytest.mark.parametrize('rescale', [0.0, 0.3, 1.0])
def test_rescaling_is_that_of_diffusers(rescale):
  import torch

  guidance = Guidance(5.0, rescale=rescale)
  made = guide(model, Wish((TWO,), ONES), guidance, STEPS)(X_T, jnp.int32(300))
  plain = guide(model, Wish((TWO,), ONES), Guidance(5.0), STEPS)(X_T, jnp.int32(300))
  wanted = rescale_noise_cfg(
    torch.from_numpy(np.array(plain, np.float64)),
    torch.from_numpy(alone(TWO, 300)),
    guidance_rescale=rescale,
  )
  # torch counts the spread of N values with N - 1, in both of the two.
  np.testing.assert_allclose(made, wanted, atol=2e-5)


def test_guidance_of_the_wrong_length_is_refused():
  predict = guide(model, Wish((ONE,), ONES), Guidance(jnp.ones(2)), STEPS)
  with pytest.raises(ValueError, match=r'\(2,\).*3 images'):
    predict(X_T, jnp.int32(3))


def test_new_values_compile_nothing():
  traces = []

  @jax.jit
  def compiled(wish, guidance, t):
    traces.append(None)
    return guide(model, wish, guidance, STEPS)(X_T, t)

  window = np.float32([[0, 1]] * 3)
  for k in range(3):
    hue = np.roll(window, k, axis=1)
    wish = Wish((branch((k, 0.5, 1), hue=hue), branch(hue=hue)), np.ones((2, 3)) * k)
    guidance = Guidance(1.0 + k, (0.1 * k, 0.9), 0.2 * k)
    assert np.isfinite(compiled(wish, guidance, jnp.int32(300 + k))).all()
  assert len(traces) == 1
