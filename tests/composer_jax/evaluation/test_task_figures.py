"""Every task on the base of the shipped model: small images in few steps."""

from __future__ import annotations

import numpy as np
import pytest
import skimage.data

from composer_jax.composer import Composer
from composer_jax.evaluation import task_figures
from composer_jax.evaluation.fidelity import HeldOut
from composer_jax.evaluation.task_figures import TASKS, Cases, psnr
from composer_jax.images import Picture, resize_square
from composer_jax.tasks.style_transfer import style_transfer

COUNT = 6


@pytest.fixture(scope='module')
def cases():
  whole = Composer.load('demo')
  base = Composer([whole.stages[0]], whole.encoder, whole.prior)
  photograph = skimage.data.astronaut()
  images = np.stack(
    [
      resize_square(
        Picture(np.ascontiguousarray(photograph[40 * i :, 40 * i :][:200, :200])),
        base.condition_size,
      ).pixels
      for i in range(COUNT)
    ]
  )
  captions = tuple(f'part {i}' for i in range(COUNT))
  held_out = HeldOut(images, captions, {}, {}, base.encoder, 0)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(task_figures, 'CANDIDATES', COUNT)
    yield Cases(base, held_out, {'steps': 2})


@pytest.mark.parametrize('name', TASKS)
def test_a_task_is_measured_and_shown(cases, name):
  result = TASKS[name](cases)
  assert result.figures and result.pictures
  for figure in result.figures:
    assert np.isfinite([figure.value.low, figure.value.mean, figure.value.high]).all()
  for images in result.pictures.values():
    assert images.dtype == np.uint8
    assert len(images) == COUNT
  outside = [f for f in result.figures if f.name.startswith('largest change outside')]
  assert all(figure.value.high == 0 for figure in outside)
  assert bool(outside) == (name in ('region-editing', 'try-on'))


def test_colours_follow_their_palette(cases):
  figures = {figure.name: figure for figure in TASKS['colorization'](cases).figures}
  assert figures['intensity correlation'].value.mean > 0.5
  assert figures['palette earth_movers_lab'].value.mean < (
    figures['palette earth_movers_lab'].beside.mean
  )


def test_a_style_adds_no_noise_unless_asked_to(cases):
  strengths = np.full(COUNT, 0.5)

  def made(**sampling):
    return style_transfer(
      cases.composer,
      cases.images,
      cases.images[::-1],
      strengths,
      seeds=cases.seeds,
      sampling={**cases.sampling, **sampling},
    )

  np.testing.assert_array_equal(made(), made(eta=0.0))
  assert np.any(made() != made(eta=1.0))


def test_psnr_is_that_of_a_known_error():
  a = np.full((2, 4, 4, 3), 100, np.uint8)
  b = np.stack([a[0], a[0] + 10])
  assert psnr(a, b) == pytest.approx([108.13, 20 * np.log10(25.5)], abs=0.01)


def test_too_few_captions_are_refused(cases):
  held_out = HeldOut(cases.images, ('',) * COUNT, {}, {}, None, 0)
  with pytest.raises(ValueError, match='0 of 6 held-out images have a caption'):
    Cases(cases.composer, held_out, {})
