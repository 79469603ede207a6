from __future__ import annotations

import diffusers
import numpy as np
import pytest

from composer_jax.diffusion.schedule import make_schedule

BETAS = {'cosine': 'squaredcos_cap_v2', 'linear': 'linear'}


@pytest.mark.parametrize('num_steps', [1000, 100])
@pytest.mark.parametrize('kind', BETAS)
def test_equals_that_of_diffusers(kind, num_steps):
  scale = 1000 / num_steps
  theirs = diffusers.DDPMScheduler(
    num_steps,
    beta_start=scale * 1e-4,
    beta_end=scale * 0.02,
    beta_schedule=BETAS[kind],
  )
  ours = make_schedule(kind, num_steps)
  np.testing.assert_allclose(ours.betas, theirs.betas.numpy(), rtol=2e-6)
  # Theirs is a float32 product of up to 1000 factors.
  wanted = theirs.alphas_cumprod.numpy()
  np.testing.assert_allclose(ours.alphas_cumprod, wanted, rtol=5e-5)
  assert ours.betas.dtype == ours.alphas_cumprod.dtype == np.float64
  assert len(ours.betas) == len(ours.alphas_cumprod) == num_steps


def test_cosine_follows_its_closed_form_until_the_cap():
  t = np.arange(1001) / 1000
  f = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2
  wanted = f[1:] / f[0]
  ours = make_schedule('cosine')
  np.testing.assert_allclose(ours.alphas_cumprod[:-1], wanted[:-1], rtol=1e-9)
  assert ours.betas[-1] == 0.999
  assert ours.alphas_cumprod[-1] > wanted[-1]


@pytest.mark.parametrize('kind', BETAS)
@pytest.mark.parametrize('num_steps', [1000, 250, 21])
def test_goes_from_an_image_to_noise(kind, num_steps):
  ours = make_schedule(kind, num_steps)
  assert (np.diff(ours.alphas_cumprod) < 0).all()
  assert (ours.betas > 0).all()
  assert (ours.betas < 1).all()
  assert ours.alphas_cumprod[0] > 0.99
  assert 0 < ours.alphas_cumprod[-1] < 1e-4


def test_bad_arguments_are_refused():
  with pytest.raises(ValueError, match=r"'quadratic'.*cosine.*linear"):
    make_schedule('quadratic')
  with pytest.raises(ValueError, match=r'num_steps is 1;.*at least 2'):
    make_schedule('cosine', 1)
  with pytest.raises(ValueError, match=r'num_steps is 20;.*more than 20'):
    make_schedule('linear', 20)
