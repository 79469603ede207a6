from __future__ import annotations

import diffusers
import jax
import numpy as np
import pytest
import torch
from jax import numpy as jnp

from composer_jax.sampling.threshold import dynamic, static

RNG = np.random.default_rng(0)
# Images of several spreads: one within [-1, 1], one far beyond any ceiling.
SPREADS = np.array([0.2, 1.0, 2.0, 30.0]).reshape(4, 1, 1, 1)
X_0 = (SPREADS * RNG.standard_t(3, size=(4, 5, 6, 3))).astype(np.float32)
X_0[0] = np.clip(X_0[0], -0.9, 0.9)


@pytest.mark.parametrize('ceiling', [1.0, 1.7, 1e6])
@pytest.mark.parametrize('percentile', [0.0, 0.5, 0.917, 0.995, 1.0])
def test_dynamic_thresholding_equals_that_of_diffusers(percentile, ceiling):
  scheduler = diffusers.DDPMScheduler(
    thresholding=True, dynamic_thresholding_ratio=percentile, sample_max_value=ceiling
  )
  wanted = scheduler._threshold_sample(torch.from_numpy(X_0)).numpy()
  got = dynamic(percentile, ceiling)(X_0)
  np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)
  assert np.abs(got).max() <= 1
  np.testing.assert_array_equal(got[0], X_0[0])


def test_static_thresholding_clips_to_its_limit():
  np.testing.assert_array_equal(static()(X_0), np.clip(X_0, -1, 1))
  np.testing.assert_array_equal(static(2.5)(X_0), np.clip(X_0, -2.5, 2.5))


def test_without_a_ceiling_the_whole_percentile_is_kept():
  got = dynamic(1.0)(X_0)
  largest = np.abs(X_0).max(axis=(1, 2, 3), keepdims=True)
  np.testing.assert_allclose(got, X_0 / np.maximum(largest, 1), rtol=1e-6)


def test_each_image_has_its_own_limit():
  together = dynamic(0.9)(X_0)
  for i in range(len(X_0)):
    np.testing.assert_array_equal(dynamic(0.9)(X_0[i : i + 1])[0], together[i])


def test_new_percentiles_and_ceilings_compile_nothing():
  traces = []

  @jax.jit
  def compiled(percentile, ceiling, limit):
    traces.append(None)
    return dynamic(percentile, ceiling)(jnp.asarray(X_0)), static(limit)(X_0)

  for percentile, ceiling, limit in [(0.5, 2.0, 1.0), (0.9, 1.5, 0.5)]:
    soft, hard = compiled(percentile, ceiling, limit)
    np.testing.assert_allclose(soft, dynamic(percentile, ceiling)(X_0), rtol=1e-6)
    np.testing.assert_array_equal(hard, np.clip(X_0, -limit, limit))
  assert len(traces) == 1
