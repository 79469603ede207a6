"""The losses: dual encoder, prior, and diffusion for base models and upsamplers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from composer_jax.conditions import by_name
from composer_jax.conditions.dropout import DROP_ALL, draw_kept
from composer_jax.conditions.given import first_guess
from composer_jax.conditions.statistics import EmbeddingStatistics
from composer_jax.config import Config
from composer_jax.diffusion import losses
from composer_jax.diffusion.degradation import DEGRADATIONS
from composer_jax.diffusion.process import (
  coefficients,
  q_sample,
  target,
  to_eps_and_x0,
  velocity_around,
)
from composer_jax.diffusion.resolution import (
  LEVELS,
  enlarge,
  random_crops,
  to_float,
)
from composer_jax.diffusion.schedule import make_schedule
from composer_jax.models.clip import Clip, contrastive_loss, normalise, unit_length
from composer_jax.models.prior import Prior
from composer_jax.models.unet import UNet
from composer_jax.training.step import Batch, Metrics, Stage


def abstract_inputs(config: Config) -> tuple[Stage, dict[str, jax.ShapeDtypeStruct]]:
  """A stage and a global batch of what it trains on, as prepared, without any data.

  Conditions have the shapes that they are prepared in for the model's image size.
  """
  size = config.data.batch_size

  def array(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((size, *shape), dtype)

  if config.stage == 'dual_encoder':
    clip = config.clip
    image = array((clip.image_size, clip.image_size, 3), np.uint8)
    tokens = array((clip.context_length,), np.int32)
    return DualEncoder(config), {
      'image': image, 'tokens': tokens, 'has_text': array((), bool)
    }  # fmt: skip
  if config.stage == 'prior':
    prior = config.prior
    caption = array((prior.num_tokens + 1, prior.embed_width), np.float16)
    semantics = array((prior.embed_width,), np.float16)
    return PriorDiffusion(config), {'caption': caption, 'semantics': semantics}
  side = config.unet.image_size
  specs = {c.name: c.spec(side) for c in by_name(config.unet.conditions)}
  stage = Diffusion(config, {name: spec.shape for name, spec in specs.items()})
  stored = {name: array(spec.shape, spec.dtype) for name, spec in specs.items()}
  return stage, {'image': array((side, side, 3), np.uint8), **stored}


@dataclasses.dataclass(frozen=True)
class Diffusion:
  """Denoising under joint condition dropout.

  Attributes:
    config: of the run.
    condition_shapes: stored shape of each condition, without the batch axis.
  """

  config: Config
  condition_shapes: Mapping[str, tuple[int, ...]]

  def init(self, key: jax.Array) -> UNet:
    return UNet(self.config.unet, self.condition_shapes, rngs=nnx.Rngs(key))

  def _inputs(
    self, image: jax.Array, stored: Mapping[str, jax.Array], key: jax.Array
  ) -> tuple[jax.Array, jax.Array | None, jax.Array | None, dict[str, jax.Array]]:
    """The images at the model's size, cut out where it trains on crops.

    Returns:
      x_0; the enlarged low-resolution images and their noise level, for an upsampler;
      and the stored conditions.
    """
    config, shape = self.config.unet, self.config.diffusion
    level_key, low_key, crop_key = jax.random.split(key, 3)
    whole = {
      c.name: stored[c.name]
      for c in by_name(config.conditions)
      if c.local and c.name in stored
    }
    whole['image'] = to_float(image, config.image_size)
    level = None
    if config.low_res_size:
      small = to_float(image, config.low_res_size)
      level = jax.random.randint(level_key, (len(small),), 0, shape.low_res_level + 1)
      keys = jax.random.split(low_key, len(small))
      small = DEGRADATIONS[shape.low_res_degradation](keys, small, level / LEVELS)
      whole['low_res'] = enlarge(small, config.image_size)
    if shape.crop:
      whole = random_crops(crop_key, config.image_size, shape.crop, whole)
    x_0, low_res = whole.pop('image'), whole.pop('low_res', None)
    return x_0, low_res, level, {**stored, **whole}

  def loss(
    self, model: UNet, batch: Batch, key: jax.Array
  ) -> tuple[jax.Array, Metrics]:
    """Noises a batch and compares the prediction.

    Args:
      model: the U-Net.
      batch: `image`, uint8 (B, S, S, 3), and stored conditions by name.
      key: random key of this step.
    """
    config, shape = self.config.unet, self.config.diffusion
    keys = iter(jax.random.split(key, 6))
    conditions = by_name(config.conditions)
    stored = {c.name: batch[c.name] for c in conditions if c.name in batch}
    present = {c.name: c.present(batch[c.name]) for c in conditions if c.name in batch}
    x_0, low_res, level, stored = self._inputs(batch['image'], stored, next(keys))
    size = x_0.shape[0]
    schedule = make_schedule(shape.schedule, shape.num_steps)
    alphas_cumprod = jnp.asarray(schedule.alphas_cumprod, jnp.float32)
    t = jax.random.randint(next(keys), (size,), 0, shape.num_steps)
    noise = jax.random.normal(next(keys), x_0.shape)
    c = coefficients(alphas_cumprod, t, x_0.ndim)
    x_t = q_sample(x_0, noise, c)
    kept = draw_kept(next(keys), conditions, present)

    output = model(
      x_t,
      t,
      stored,
      kept,
      c=c,
      low_res=low_res,
      level=level,
      dropout_key=next(keys) if config.dropout else None,
    )
    values = None
    if config.learned_variance:
      output, values = jnp.split(output, 2, axis=-1)
    guess = first_guess(
      x_t,
      conditions,
      stored,
      kept,
      given_spread=shape.given_spread,
      low_res=low_res,
      low_res_spread=shape.low_res_spread,
      details=config.enlargement if shape.low_res_details else 0,
    )
    if guess is not None:
      output = velocity_around(guess.image, guess.spread, output, x_t, c)
    error = losses.mse(output, target(shape.prediction, x_0, noise, c))
    metrics = {'mse': error.mean()}
    if shape.weighting == 'min_snr':
      error = error * losses.min_snr_weight(shape.prediction, c)
    if values is not None:
      _, model_x_0 = to_eps_and_x0(shape.prediction, output, x_t, c)
      bound = losses.variational_bound(
        x_0,
        x_t,
        t,
        jax.lax.stop_gradient(model_x_0),
        values,
        jnp.asarray(schedule.betas, jnp.float32),
        alphas_cumprod,
      )
      metrics['variational_bound'] = bound.mean()
      error = error + 0.001 * shape.num_steps * bound
    return error.mean(), metrics


@dataclasses.dataclass(frozen=True)
class PriorDiffusion:
  """Denoising image embeddings that a caption may describe (Ramesh et al. 2022, 2.2).

  Attributes:
    config: of the run.
    statistics: of the embeddings of the training data; 0 and 1 if None.
  """

  config: Config
  statistics: EmbeddingStatistics | None = None

  def init(self, key: jax.Array) -> Prior:
    return Prior(self.config.prior, self.statistics, rngs=nnx.Rngs(key))

  def loss(
    self, model: Prior, batch: Batch, key: jax.Array
  ) -> tuple[jax.Array, Metrics]:
    """Noises the embeddings of a batch and compares the prediction with them.

    Args:
      model: the prior.
      batch: `semantics` (B, D) and `caption` (B, T + 1, D), as stored.
      key: random key of this step.
    """
    shape = self.config.diffusion
    time_key, noise_key, drop_key, dropout_key = jax.random.split(key, 4)
    caption, semantics = by_name(['caption', 'semantics'])
    stored = batch[caption.name].astype(jnp.float32)
    x_0 = model.normalise_embedding(batch[semantics.name])
    schedule = make_schedule(shape.schedule, shape.num_steps)
    alphas_cumprod = jnp.asarray(schedule.alphas_cumprod, jnp.float32)
    t = jax.random.randint(time_key, (len(x_0),), 0, shape.num_steps)
    noise = jax.random.normal(noise_key, x_0.shape)
    c = coefficients(alphas_cumprod, t, x_0.ndim)
    x_t = q_sample(x_0, noise, c)
    # Dropped now and then, for classifier-free guidance.
    kept = jax.random.uniform(drop_key, (len(x_0),)) >= DROP_ALL
    kept &= caption.present(stored)
    dropout = self.config.prior.dropout
    output = model(
      x_t,
      t,
      stored[:, :-1],
      stored[:, -1],
      None,
      kept,
      dropout_key if dropout else None,
    )
    error = losses.mse(output, x_0)
    found, wanted = model.denormalise(output), model.denormalise(x_0)
    cosine = jnp.sum(unit_length(found) * unit_length(wanted), axis=-1)
    # Where an image has no embedding there is nothing to learn from.
    there = semantics.present(batch[semantics.name])
    count = jnp.maximum(there.sum(), 1)
    return jnp.where(there, error, 0).sum() / count, {
      'cosine': jnp.where(there, cosine, 0).sum() / count
    }


@dataclasses.dataclass(frozen=True)
class DualEncoder:
  """Contrastive training of images and captions (Radford et al. 2021)."""

  config: Config

  def init(self, key: jax.Array) -> Clip:
    return Clip(self.config.clip, rngs=nnx.Rngs(key))

  def loss(
    self, model: Clip, batch: Batch, key: jax.Array
  ) -> tuple[jax.Array, Metrics]:
    """InfoNCE of a batch.

    Args:
      model: the dual encoder.
      batch: `image`, uint8 (B, S, S, 3); `tokens`, int32 (B, T); `has_text`,
        bool (B,).
      key: unused; nothing is drawn.
    """
    size = self.config.clip.image_size
    images = model.image_embedding(normalise(batch['image'], size))
    _, sentences = model.text_embedding(batch['tokens'])
    weights = batch['has_text'].astype(jnp.float32)
    scale = model.logit_scale[...]
    loss = contrastive_loss(images, sentences, scale, weights)
    return loss, {'logit_scale': scale}
