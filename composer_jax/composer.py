"""The model a user holds: load it, decompose images, compose new ones."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from composer_jax import config as config_lib
from composer_jax.conditions import ALL, by_name
from composer_jax.diffusion.resolution import to_float
from composer_jax.images import Picture, composite, resize_square
from composer_jax.models.clip_images import clip_square
from composer_jax.sampling.cascade import Denoising, run_cascade
from composer_jax.sampling.expression import Term
from composer_jax.sampling.guidance import Branch, Wish
from composer_jax.sampling.prior import Imagining
from composer_jax.sampling.watching import Watch
from composer_jax.seeds import generator
from composer_jax.shipped import model_folder
from composer_jax.trained import (
  TrainedEncoder,
  check_encoder,
  digest_of_weights,
  load_diffusion,
  load_encoder,
  load_prior,
  upsampler_folders,
)

BATCHES = (1, 4, 8, 32)
"""Images that one compiled program samples; other numbers are padded to these."""

TILING = ('tile', 'overlap')
"""Settings of the sampling that are for the upsamplers, all others for the base."""


REVERSIBLE = {'sampler': 'ddim', 'eta': 0.0, 'guidance': 1.0, 'percentile': 0.0}
"""Settings of the sampling under which `compose` goes back the way of `invert`."""


def _check_fit(base: Denoising, previous: Denoising, stage: Denoising) -> None:
  """Refuses an upsampler that was not trained for the stages before it."""
  size, given = stage.config.unet.low_res_size, previous.config.unet.image_size
  if size != given:
    raise ValueError(
      f'An upsampler starts from {size} pixels, the stage before it gives {given}; set'
      ' model.low_res_size to that.'
    )
  if extra := set(stage.config.unet.conditions) - set(base.config.unet.conditions):
    raise ValueError(
      f'An upsampler knows {", ".join(sorted(extra))}, which the base model does not;'
      ' train both with the same conditions.'
    )
  for name, shape in stage.condition_shapes.items():
    if shape != base.condition_shapes[name]:
      raise ValueError(
        f'An upsampler takes {name} as {shape}, the base model as'
        f' {base.condition_shapes[name]}; train both on the same data.'
      )


class Composer:
  """A cascade of trained models.

  Attributes:
    stages: base model and upsamplers, in order.
    names: the conditions that the base model knows.
    condition_shapes: stored shape of each.
    image_size: side of the finished images, in pixels.
    sizes: sides of the images that each stage gives, the last of which is that.
    condition_size: side of the maps of local conditions, in pixels.
    encoder: the dual encoder, or None.
    prior: makes semantics from a caption; or None.
  """

  def __init__(
    self,
    stages: list[Denoising],
    encoder: TrainedEncoder | None,
    prior: Imagining | None = None,
  ):
    self.stages, self.encoder, self.prior = tuple(stages), encoder, prior
    base = stages[0]
    for previous, stage in itertools.pairwise(stages):
      _check_fit(base, previous, stage)
    self.names = base.config.unet.conditions
    self.condition_shapes = base.condition_shapes
    self.sizes = tuple(stage.config.unet.image_size for stage in stages)
    self.image_size = self.sizes[-1]
    sides = [s[0] for s in base.condition_shapes.values() if len(s) == 3]
    self.condition_size = sides[0] if sides else self.image_size

  @functools.cached_property
  def fingerprint(self) -> str:
    """Tells from others what turns conditions into images: settings and weights."""
    parts: list[Any] = []
    for stage in self.stages:
      config = stage.config
      settings = (config.model, config.diffusion, config.sample)
      parts += [dataclasses.asdict(one) for one in settings]
      parts.append(digest_of_weights(stage.weights))
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

  @classmethod
  def load(
    cls, directory: str | os.PathLike[str], *, spatial: int | None = None
  ) -> Composer:
    """Opens a model folder: `base/`, and what else there is of it.

    That may be upsamplers, in folders whose names begin with `upsampler`, `encoder/`
    and, with an encoder, `prior/`.

    Args:
      directory: the model folder, or `demo` for the one that comes with the package.
      spatial: devices that share the rows of each image of an upsampler, instead of
        those that its `config.mesh.spatial` says.

    Raises:
      FileNotFoundError: there is no base model in it.
      ValueError: its parts do not fit together.
    """
    directory = model_folder(directory)
    if not (directory / 'base').is_dir():
      raise FileNotFoundError(
        f'{directory} holds no base/ folder; expected a model folder with base/ and,'
        ' if trained, upsampler/ and encoder/.'
      )
    stages = [load_diffusion(directory / 'base')]
    upsamplers = [
      load_diffusion(path, spatial) for path in upsampler_folders(directory)
    ]
    # In the order in which one takes what another gives.
    stages += sorted(upsamplers, key=lambda stage: stage.config.unet.image_size)
    encoder = prior = None
    if (directory / 'encoder').is_dir():
      encoder = load_encoder(directory / 'encoder')
      check_encoder(directory, encoder, 'base')
      if (directory / 'prior').is_dir():
        prior = load_prior(directory / 'prior')
        check_encoder(directory, encoder, 'prior')
    return cls(stages, encoder, prior)

  def decompose(
    self,
    picture: Picture,
    *,
    seed: int = 0,
    caption: str = '',
    names: Iterable[str] | None = None,
  ) -> dict[str, np.ndarray]:
    """Extracts conditions of a picture; see `decompose`."""
    return decompose(
      picture,
      self.condition_size,
      seed=seed,
      caption=caption,
      encoder=self.encoder,
      names=names,
    )

  def embed_caption(self, caption: str) -> dict[str, np.ndarray]:
    """The conditions that a text alone gives, without a batch axis.

    Raises:
      ValueError: the model has no dual encoder, or was trained without captions.
    """
    if self.encoder is None:
      raise ValueError('A caption needs a model with a dual encoder, in encoder/.')
    if not any(c.from_text for c in by_name(self.names)):
      raise ValueError(
        f'This model was trained without captions; it knows {", ".join(self.names)}.'
      )
    blank = np.zeros((1, self.condition_size, self.condition_size, 3), np.uint8)
    return {
      c.name: c.embed(self.encoder, blank, [caption])[0]
      for c in ALL
      if c.from_text and c.name in self.names
    }

  def imagine(
    self, values: Mapping[str, np.ndarray], seed: int = 0
  ) -> dict[str, np.ndarray]:
    """Completes a caption by semantics that it may describe, as the prior sees it.

    Args:
      values: conditions by name, without a batch axis.
      seed: another one gives another image that the caption describes.

    Returns:
      `values`, with `semantics` where there is a caption without them, a prior, and a
      base model that knows both.
    """
    caption, semantics = (c.name for c in by_name(['caption', 'semantics']))
    wanted = caption in values and semantics not in values and semantics in self.names
    if self.prior is None or not wanted:
      return dict(values)
    made = self.imagine_all(np.asarray(values[caption])[None], np.array([seed]))
    return {**values, semantics: made[0]}

  def imagine_all(self, captions: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """Semantics that captions may describe, as stored: (B, D).

    Args:
      captions: as stored, (B, T + 1, D).
      seeds: integers (B,).

    Raises:
      ValueError: the model has no prior.
    """
    if self.prior is None:
      raise ValueError('This model has no prior/ that would imagine semantics.')
    away = self._blank if self.prior.config.sample.empty_caption else None
    return self.prior(captions, seeds, away)

  def compose(
    self,
    stored: Mapping[str, np.ndarray],
    kept: Mapping[str, np.ndarray] | None = None,
    *,
    seeds: np.ndarray,
    windows: Mapping[str, tuple[float, float]] | None = None,
    base: Mapping[str, np.ndarray] | None = None,
    sampling: Mapping[str, Any] | None = None,
    start: np.ndarray | None = None,
    size: int | None = None,
    watch: Watch | None = None,
  ) -> np.ndarray:
    """Makes images.

    Args:
      stored: conditions by name, (B, *shape) each, as `decompose` gives them.
      kept: by name, (B,): the strength of the condition in each sample; True or 1 is
        as trained, False or 0 drops it; all as trained if None.
      seeds: integers (B,); the same seed and conditions give the same image,
        whatever else is in the batch.
      windows: by name, start and end of the part of the sampling in which a condition
        is kept, from 0, noise, to 1, the image; throughout if it is not there.
      base: conditions (B, *shape) that guidance leads away from, as Composer's
        bidirectional guidance does; none if None.
      sampling: fields of `config.SampleConfig` for the base model, such as `steps`,
        `guidance`, `eta` or `sampler`; its own if missing. `tile` and `overlap` are
        for the upsamplers.
      start: x_T of the base model, as `invert` gives it; drawn from the seeds if None.
      size: S, one of `sizes`: the stages after the one that gives it are left out; all
        are run if None.
      watch: is called after each step with the number of the stage, from 0, of the
        steps done and of all steps of it, and the images as they are predicted, uint8
        (b, s, s, 3), s the side of that stage; the run ends where it returns False.
        The images are the same to the bit. The first watched run compiles programs
        of its own, later ones none, and each step waits for the answer. More than 32
        images are made, and watched, 32 by 32.

    Returns:
      uint8 sRGB (B, S, S, 3).

    Raises:
      Cancelled: `watch` returned False.
      ValueError: a condition is unknown to the model or of the wrong shape, no stage
        gives that size, or a setting is not within its range.
    """
    count = len(seeds)
    term = self._branch(stored, kept, windows or {}, count)
    origin = self._origin(base, count)
    wish = Wish((term,), np.ones((1, count), np.float32), origin)
    return self._run(wish, np.asarray(seeds), sampling or {}, start, size, watch)

  def invert(
    self,
    images: np.ndarray,
    stored: Mapping[str, np.ndarray],
    kept: Mapping[str, np.ndarray] | None = None,
    *,
    sampling: Mapping[str, Any] | None = None,
  ) -> np.ndarray:
    """DDIM inversion: the noise that images come from under conditions.

    `compose` with it as `start`, the same conditions and eta 0 gives the images back
    as the base model sees them; with others, the images as these would have them
    (Composer, section 2.3).

    Args:
      images: uint8 (B, S, S, 3), S a multiple of the base model's size.
      stored: conditions (B, *shape) by name.
      kept: as in `compose`.
      sampling: as in `compose`, of which `steps`, `spacing` and `guidance` count. At
        guidance 1 the way back is nearest.

    Returns:
      float32 (B, s, s, 3), s the base model's size.
    """
    count, base = len(images), self.stages[0]
    settings = config_lib.settings_from(base.config.sample, sampling or {})
    term = self._branch(stored, kept, {}, count)
    wish = Wish((term,), np.ones((1, count), np.float32))
    x_0 = to_float(jnp.asarray(images), base.config.unet.image_size)
    keys = jax.random.split(jax.random.key(0), count)  # Nothing is drawn.
    return np.asarray(base.invert(wish, x_0, keys, settings=settings))

  def compose_terms(
    self,
    terms: Sequence[Sequence[Term]],
    *,
    seeds: np.ndarray,
    strengths: Mapping[str, float] | None = None,
    windows: Mapping[str, tuple[float, float]] | None = None,
    base: Mapping[str, np.ndarray] | None = None,
    sampling: Mapping[str, Any] | None = None,
    start: np.ndarray | None = None,
    watch: Watch | None = None,
  ) -> np.ndarray:
    """Makes images that each follow a sum of terms; see `sampling.expression`.

    Args:
      terms: for each of B images, as `expression.terms` gives them; the values are
        stored ones, without a batch axis.
      seeds: integers (B,).
      strengths: of conditions by name, 1 if missing.
      windows: as in `compose`.
      base: as in `compose`, but without a batch axis.
      sampling: as in `compose`.
      start: as in `compose`.
      watch: as in `compose`.

    Returns:
      uint8 sRGB (B, S, S, 3).

    Raises:
      Cancelled: `watch` returned False.
    """
    count, most = len(seeds), max(len(own) for own in terms)
    # All images of a batch have as many terms; what is missing has no weight.
    padded = [[*own, *[Term(0.0, {})] * (most - len(own))] for own in terms]
    branches = []
    for column in zip(*padded, strict=True):
      names = {name for term in column for name in term.values}
      stored, kept = {}, {}
      for name in self._known(names):
        absent = np.zeros(self.condition_shapes[name])
        values = [np.asarray(term.values.get(name, absent)) for term in column]
        for value in values:
          self._check_shape(name, value.shape, absent.shape)
        stored[name] = np.stack(values)
        strength = (strengths or {}).get(name, 1.0)
        kept[name] = np.array([(name in term.values) * strength for term in column])
      branches.append(self._branch(stored, kept, windows or {}, count))
    repeated = None
    if base is not None:
      repeated = {name: np.stack([value] * count) for name, value in base.items()}
    origin = self._origin(repeated, count)
    weights = np.array([[term.weight for term in own] for own in padded], np.float32)
    wish = Wish(tuple(branches), weights.T, origin)
    return self._run(wish, np.asarray(seeds), sampling or {}, start, watch=watch)

  @functools.cached_property
  def _blank(self) -> np.ndarray | None:
    """The empty caption as stored, (T + 1, D), where there is an encoder."""
    if self.encoder is None:
      return None
    words, sentences = self.encoder.embed_captions([''])
    return np.concatenate([words[0], sentences]).astype(np.float16)

  @property
  def empty_caption(self) -> np.ndarray | None:
    """What a missing caption is, (T + 1, D); None where it is dropped instead."""
    asked = self.stages[0].config.sample.empty_caption
    return self._blank if asked and 'caption' in self.names else None

  def _origin(self, base: Mapping[str, np.ndarray] | None, count: int) -> Branch | None:
    """What guidance leads away from; None where that is no conditions at all."""
    if base is None and self.empty_caption is None:
      return None
    return self._branch(base or {}, None, {}, count)

  def _known(self, names: Iterable[str]) -> list[str]:
    names = list(names)
    unknown = [name for name in names if name not in self.condition_shapes]
    if unknown:
      raise ValueError(
        f'This model has no condition {unknown[0]!r}; it knows'
        f' {", ".join(self.condition_shapes)}.'
      )
    return names

  @staticmethod
  def _check_shape(name: str, shape: Sequence[int], expected: Sequence[int]) -> None:
    if tuple(shape) != tuple(expected):
      raise ValueError(f'{name} has shape {tuple(shape)}; expected {tuple(expected)}.')

  def _branch(
    self,
    stored: Mapping[str, np.ndarray],
    kept: Mapping[str, np.ndarray] | None,
    windows: Mapping[str, tuple[float, float]],
    count: int,
  ) -> Branch:
    """One set of conditions, complete: absent ones are dropped ones.

    One compiled program so serves every choice of conditions, strengths and windows.
    """
    self._known([*stored, *windows])
    if self.empty_caption is not None:
      stored = {'caption': np.stack([self.empty_caption] * count), **stored}
    full, keep, during = {}, {}, {}
    for condition in by_name(self.condition_shapes):
      name, shape = condition.name, self.condition_shapes[condition.name]
      dtype = condition.spec(self.condition_size).dtype
      during[name] = np.tile(np.array(windows.get(name, (0, 1)), 'f4'), (count, 1))
      if name not in stored:
        full[name] = np.zeros((count, *shape), dtype)
        keep[name] = np.zeros(count, np.float32)
        continue
      full[name] = np.asarray(stored[name], dtype)
      self._check_shape(name, full[name].shape, (count, *shape))
      present = np.asarray(condition.present(jnp.asarray(full[name])))
      asked = np.ones(count) if kept is None else kept.get(name, present)
      keep[name] = np.asarray(asked, np.float32) * present
    return Branch(full, keep, during)

  def _run(
    self,
    wish: Wish,
    seeds: np.ndarray,
    sampling: Mapping[str, Any],
    start: np.ndarray | None = None,
    size: int | None = None,
    watch: Watch | None = None,
  ) -> np.ndarray:
    """Samples in batches of one number, so that few programs are compiled."""
    if size is not None and size not in self.sizes:
      raise ValueError(
        f'size is {size}; expected one of {", ".join(map(str, self.sizes))}, the sizes'
        ' of the stages.'
      )
    stages = self.stages
    if size is not None:
      stages = stages[: self.sizes.index(size) + 1]
    asked = dict(sampling)
    base, *others = (stage.config.sample for stage in stages)
    # Without upsamplers they stay with the base, which refuses them.
    tiles = {name: asked.pop(name) for name in TILING if others and name in asked}
    settings = [config_lib.settings_from(base, asked)]
    settings += [config_lib.settings_from(one, tiles) for one in others]
    count, images = len(seeds), []
    batch = next((size for size in BATCHES if size >= count), BATCHES[-1])
    for begin in range(0, count, batch):
      rows = np.minimum(np.arange(begin, begin + batch), count - 1)
      part = Wish(
        jax.tree.map(lambda x, rows=rows: x[rows], wish.terms),
        wish.weights[:, rows],
        jax.tree.map(lambda x, rows=rows: x[rows], wish.base),
      )
      begun = None if start is None else start[rows]
      watched = _without_padding(watch, count - begin) if watch else None
      made = run_cascade(stages, part, seeds[rows], settings, begun, watched)
      images.append(made[: count - begin])
    return np.concatenate(images)


def _without_padding(watch: Watch, count: int) -> Watch:
  """Shows a watcher the first images of a batch only."""
  return lambda stage, step, steps, images: watch(stage, step, steps, images[:count])


def square_of(picture: Picture, size: int) -> Picture:
  """The middle of a picture at a size, transparent parts over white."""
  square = resize_square(picture, size)
  return square if square.alpha is None else composite(square, np.full(3, 255, 'u1'))


def seen_by(encoder: TrainedEncoder, picture: Picture, square: Picture) -> np.ndarray:
  """What an encoder sees of a picture, uint8 (S, S, 3); `square` is that of the maps.

  One that sees more than the maps hold looks at the picture itself.
  """
  if encoder.image_size > len(square.pixels):
    return clip_square(picture, encoder.image_size)
  return square.pixels


def decompose(
  picture: Picture,
  size: int,
  *,
  seed: int = 0,
  caption: str = '',
  encoder: TrainedEncoder | None = None,
  names: Iterable[str] | None = None,
) -> dict[str, np.ndarray]:
  """Extracts conditions of a picture.

  Args:
    picture: any size; it is cut to a square in the middle.
    size: side of the maps, in pixels.
    seed: of what is drawn at random: the mask, and the channel weights of intensity.
    caption: '' for none.
    encoder: without one, the conditions that need it are left out.
    names: of the conditions wanted; all if None.

  Returns:
    One array for each condition under its name, without a batch axis.
  """
  square = square_of(picture, size)
  found = {}
  for condition in ALL if names is None else by_name(names):
    if not condition.embedded:
      rng = generator(seed, condition.name)
      found[condition.name] = condition.extract(square, rng)
    elif encoder is not None:
      images = seen_by(encoder, picture, square)[None]
      found[condition.name] = condition.embed(encoder, images, [caption])[0]
  return found
