from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from composer_jax.config import EvaluateConfig
from composer_jax.evaluation.in_training import StageEvaluator
from composer_jax.training.stages import Diffusion
from composer_jax.training.step import initial_state
from tests.composer_jax.test_grids import NAMES, records
from tests.composer_jax.tiny import denoising, shapes_of


def evaluator_of(names=NAMES, model=(), **evaluate):
  config = denoising(names=names, model=model, maps=16).config
  config = dataclasses.replace(config, evaluate=EvaluateConfig(every=1, **evaluate))
  stage = Diffusion(config, shapes_of(names, 16))
  return StageEvaluator(stage, records(5)), initial_state(stage, config)[1]


def other(state):
  """A state whose average is another one."""
  rng = np.random.default_rng(0)

  def draw(leaf):
    return jax.numpy.asarray(0.3 * rng.normal(size=leaf.shape), leaf.dtype)

  return dataclasses.replace(state, ema=jax.tree.map(draw, state.ema))


def test_each_condition_alone_and_all_together_are_measured():
  evaluator, state = evaluator_of()
  figures = evaluator(state, 1)
  assert {name.split('/')[0] for name in figures} == {*NAMES, 'all'}
  assert {'palette/palette_cosine', 'all/mask_psnr'} <= figures.keys()
  assert np.isfinite(list(figures.values())).all()
  assert evaluator(state, 2) == figures
  assert evaluator(other(state), 2) != figures


def test_an_upsampler_starts_from_the_originals():
  evaluator, state = evaluator_of(model={'low_res_size': 4})
  assert 'all/palette_cosine' in evaluator(state, 1)


def test_what_needs_an_encoder_is_judged_where_one_is_given():
  names = ('palette', 'semantics')
  evaluator, state = evaluator_of(names)
  figures = evaluator(state, 1)
  assert not any('semantics' in name for name in figures)
  with pytest.raises(ValueError, match='needs a model with an encoder'):
    evaluator_of(names, evaluators=('retrieval',))
  with pytest.raises(ValueError, match='5 images to measure; expected at least 20'):
    evaluator_of(names, evaluators=('distances',))
