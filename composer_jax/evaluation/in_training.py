"""Evaluates a stage while it trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from composer_jax import conditions as conditions_lib
from composer_jax.diffusion.resolution import to_uint8
from composer_jax.evaluation import evaluators
from composer_jax.evaluation.evaluators import ALL, Samples, Tools, judged
from composer_jax.evaluation.fidelity import hold_out
from composer_jax.evaluation.figures import key
from composer_jax.grids import StageSampler
from composer_jax.trained import load_encoder
from composer_jax.training.stages import Diffusion
from composer_jax.training.step import TrainState


class StageEvaluator:
  """Measures what a stage makes of each condition alone and of all together.

  Args:
    stage: of the run, whose config says what is measured.
    records: held-out records, as the data set gives them.

  Raises:
    ValueError: an evaluator is unknown or lacks what it needs, or there are too few
      records.
  """

  def __init__(self, stage: Diffusion, records: Sequence[Mapping[str, Any]]):
    wanted = stage.config.evaluate
    encoder = load_encoder(wanted.encoder) if wanted.encoder else None
    inception, clip = wanted.inception or None, wanted.clip or None
    tools = Tools(encoder, inception, clip, len(records))
    self._judges = evaluators.build(wanted.evaluators, tools)
    self._known = conditions_lib.by_name(stage.config.unet.conditions)
    names = conditions_lib.obtainable(stage.config.unet.conditions, encoder)
    self._held_out = hold_out(records, names, encoder=encoder, seed=0)
    self._shapes = stage.condition_shapes
    self._sample = StageSampler(stage)

  def __call__(self, state: TrainState, step: int) -> dict[str, float]:
    """Figures of the averaged weights by `figures.key`."""
    del step
    names = list(self._held_out.asked)
    figures = {}
    for wish in (*((name,) for name in names), tuple(names)):
      name = wish[0] if len(wish) == 1 else ALL
      images = to_uint8(self._composed(state, wish))
      samples = Samples(name, wish, self._held_out, images)
      for figure in judged(self._judges, samples):
        figures[key(name, figure.name)] = figure.value.mean
    return figures

  def _composed(self, state: TrainState, wish: tuple[str, ...]) -> np.ndarray:
    held_out, stored, kept = self._held_out, {}, {}
    for condition in self._known:
      name = condition.name
      asked = held_out.asked.get(name)
      if asked is None:
        dtype = condition.spec(held_out.images.shape[1]).dtype
        asked = np.zeros((len(held_out), *self._shapes[name]), dtype)
      stored[name] = asked
      present = held_out.present.get(name, np.zeros(len(held_out), bool))
      kept[name] = present & (name in wish)
    originals, seeds = held_out.images, held_out.seeds
    return self._sample(state.ema, originals, stored, kept, seeds)
