"""What a training run is made from: frozen dataclasses that check their fields."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

from composer_jax.diffusion.resolution import LEVELS
from composer_jax.models.clip import ClipConfig
from composer_jax.models.prior import PriorConfig
from composer_jax.models.unet import UNetConfig
from composer_jax.sharding.mesh import MeshConfig


def _check(part: str, config: Any, **ranges: tuple[float, float]) -> None:
  """Refuses a field of `config.PART` that is not within its range, ends included."""
  for name, (low, high) in ranges.items():
    value = getattr(config, name)
    if not low <= value <= high:
      upper = '' if high == math.inf else f' and at most {high:g}'
      raise ValueError(
        f'config.{part}.{name} is {value}; expected at least {low:g}{upper}.'
      )


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """What to train on.

  Attributes:
    path: folder written by `composer-jax prepare`.
    batch_size: images a step, over all devices.
    flip: whether to mirror half of the images.
    workers: processes that read; 0 reads in threads of the training process.
  """

  path: str = ''
  batch_size: int = 64
  flip: bool = True
  workers: int = 0

  def __post_init__(self):
    _check('data', self, batch_size=(1, math.inf), workers=(0, math.inf))

  def require_path(self) -> None:
    """Refuses a config that names no data, as those of models and sweeps may.

    Raises:
      ValueError: `path` is empty.
    """
    if not self.path:
      raise ValueError('config.data.path is empty; give --config.data.path=DIR.')


@dataclasses.dataclass(frozen=True)
class DiffusionConfig:
  """The noise, what is predicted, and how errors are weighed.

  Attributes:
    schedule: `cosine` or `linear`.
    num_steps: diffusion steps in training.
    prediction: `eps`, `v` or `x0`.
    weighting: `none`, or `min_snr` (Hang et al. 2023).
    low_res_degradation: what spoils an upsampler's input in training: `noise` (Ho et
      al. 2022), or `blur` or `bsr` (Ramesh et al. 2022).
    low_res_level: largest level of that, under 1000; 0 for none.
    low_res_spread: standard deviation of images around the enlarged input of an
      upsampler. Above 0 it predicts only what that leaves open of v; 0 for all of it.
    low_res_details: whether what the intensity shows is added to the enlarged input
      first, as far as it is too fine for that; needs `low_res_spread`.
    given_spread: the same around the pixels that a condition gives outright, such as
      the visible part of a mask.
    crop: side of the random squares that training cuts out of each image, in pixels
      of the model; 0 for whole images. For upsamplers (Ramesh et al. 2022, 2.3).
  """

  schedule: Literal['cosine', 'linear'] = 'cosine'
  num_steps: int = 1000
  prediction: Literal['eps', 'v', 'x0'] = 'eps'
  weighting: Literal['none', 'min_snr'] = 'none'
  low_res_degradation: Literal['noise', 'blur', 'bsr'] = 'noise'
  low_res_level: int = 0
  low_res_spread: float = 0.0
  low_res_details: bool = False
  given_spread: float = 0.0
  crop: int = 0

  def __post_init__(self):
    _check(
      'diffusion',
      self,
      num_steps=(2, math.inf),
      low_res_level=(0, LEVELS - 1),
      low_res_spread=(0, sys.float_info.max),
      given_spread=(0, sys.float_info.max),
      crop=(0, math.inf),
    )
    for name in ('low_res_spread', 'given_spread'):
      if getattr(self, name) and self.prediction != 'v':
        raise ValueError(
          f'diffusion.{name} is {getattr(self, name)} and diffusion.prediction'
          f' {self.prediction!r}; expected "v", or a spread of 0.'
        )
    if self.low_res_details and not self.low_res_spread:
      raise ValueError(
        'diffusion.low_res_details is True and diffusion.low_res_spread 0; expected a'
        ' spread above 0, as details are added to what the prediction starts from.'
      )


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """Warm-up, clipping, the update, and an average of the weights.

  Attributes:
    name: `adamw`, or `muon`: the kernels of convolutions by Muon (Jordan et al. 2024),
      all else by AdamW. It learns more from each step and takes longer for it.
    learning_rate: the highest.
    warmup_steps: steps of linear warm-up.
    cooldown: share of the training at whose end the rate falls linearly to zero; 0
      keeps it constant, as the published models do.
    beta1: first-moment decay.
    beta2: second-moment decay.
    weight_decay: decoupled weight decay.
    muon_rms: root mean square of Muon's updates, as a share of the learning rate.
    muon_iterations: of Newton and Schulz, by which Muon makes a momentum orthogonal.
    clip_norm: largest global norm of the gradient.
    ema: decay of the average of the weights.
    accumulate: micro-batches whose gradients are averaged in a step; divides the
      batch.
  """

  name: Literal['adamw', 'muon'] = 'adamw'
  learning_rate: float = 1.2e-4
  warmup_steps: int = 1000
  cooldown: float = 0.0
  beta1: float = 0.9
  beta2: float = 0.999
  weight_decay: float = 0.0
  muon_rms: float = 0.2
  muon_iterations: int = 4
  clip_norm: float = 1.0
  ema: float = 0.9999
  accumulate: int = 1

  def __post_init__(self):
    _check(
      'optimizer',
      self,
      learning_rate=(0, sys.float_info.max),
      warmup_steps=(0, math.inf),
      cooldown=(0, 1),
      beta1=(0, 1),
      beta2=(0, 1),
      weight_decay=(0, sys.float_info.max),
      muon_rms=(0, sys.float_info.max),
      muon_iterations=(1, math.inf),
      clip_norm=(0, math.inf),
      ema=(0, 1),
      accumulate=(1, math.inf),
    )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """How long, and what is written on the way.

  Attributes:
    start_from: folder of a trained or imported model whose weights a new run takes;
      '' draws them at random. It may know fewer conditions.
    steps: steps in all, unless `minutes` is given.
    minutes: minutes of training, which are made into a number of steps by what steps
      take, until the learning rate begins to fall.
    log_every: steps after which their metrics are written, one line a step.
    save_every: steps between checkpoints.
    keep: checkpoints that are kept.
    sample_every: steps between grids of samples in the event files; 0 for none.
    on_spike: what is done with a step whose loss or gradient is not finite, or whose
      gradient is a spike: `stop` the run; `skip` the update; or `rollback` to the last
      checkpoint, and go on from there with other data.
    spike: how many times its running mean the norm of a gradient must exceed to be a
      spike; 0 for any size.
    hang_seconds: without a next step, after which the run ends with a message that
      names the process that hangs; 0 for never.
    seed: of the weights, the data order, and all noise.
  """

  start_from: str = ''
  steps: int = 1000
  minutes: float = 0.0
  log_every: int = 20
  save_every: int = 500
  keep: int = 3
  sample_every: int = 0
  on_spike: Literal['stop', 'skip', 'rollback'] = 'stop'
  spike: float = 0.0
  hang_seconds: float = 1800.0
  seed: int = 0

  def __post_init__(self):
    _check(
      'train',
      self,
      steps=(1, math.inf),
      minutes=(0, sys.float_info.max),
      log_every=(1, math.inf),
      save_every=(1, math.inf),
      keep=(1, math.inf),
      sample_every=(0, math.inf),
      spike=(0, sys.float_info.max),
      hang_seconds=(0, sys.float_info.max),
      seed=(0, 2**32 - 1),
    )


@dataclasses.dataclass(frozen=True)
class SampleConfig:
  """Defaults of sampling; all but the last two can be changed from image to image.

  Attributes:
    sampler: `ddim`, `ddpm` or `dpm_solver`.
    steps: of the sampler.
    spacing: of the timesteps among those of training: `leading`, `trailing` or
      `linspace`.
    eta: of DDIM: 0 is deterministic, 1 is as random as DDPM.
    guidance: classifier-free guidance scale; 1 is none.
    interval: start and end of the part of the sampling that is guided, from 0, noise,
      to 1, the image.
    rescale: from 0 to 1, how far the spread of a guided prediction is brought back.
    percentile: share of the values of a predicted image that dynamic thresholding
      leaves unclipped; 0 clips all to [-1, 1].
    tile: side of the square tiles, in pixels, in which an upsampler denoises an image
      that is too large for the device; 0 for the whole image at once.
    overlap: pixels by which neighbouring tiles overlap at least, and are blended.
    low_res_level: level at which an upsampler's input is degraded, as in training.
    empty_caption: whether a caption that is not given is the empty one, rather than
      dropped, as imported models have learned it.
  """

  sampler: Literal['ddim', 'ddpm', 'dpm_solver'] = 'ddim'
  steps: int = 25
  spacing: Literal['leading', 'trailing', 'linspace'] = 'trailing'
  eta: float = 0.0
  guidance: float = 2.0
  interval: tuple[float, ...] = (0.0, 1.0)
  rescale: float = 0.0
  percentile: float = 0.0
  tile: int = 0
  overlap: int = 64
  low_res_level: int = 0
  empty_caption: bool = False

  def __post_init__(self):
    limit = sys.float_info.max
    _check(
      'sample',
      self,
      steps=(1, math.inf),
      eta=(0, 1),
      guidance=(-limit, limit),
      rescale=(0, 1),
      percentile=(0, 1),
      tile=(0, math.inf),
      overlap=(0, math.inf),
      low_res_level=(0, LEVELS - 1),
    )
    if len(self.interval) != 2 or not 0 <= self.interval[0] <= self.interval[1] <= 1:
      raise ValueError(
        f'config.sample.interval is {self.interval}; expected two shares of the'
        ' sampling, such as (0.1, 0.8).'
      )
    if self.tile and self.overlap >= self.tile:
      raise ValueError(
        f'config.sample.overlap is {self.overlap}; expected less than'
        f' config.sample.tile, {self.tile}.'
      )


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
  """What is measured while a base model or an upsampler trains; see docs/evaluation.md.

  Attributes:
    every: steps between evaluations, and one at the end; 0 for none.
    images: held-out images of each, as many as there are at most.
    evaluators: by name, or as `module:function`.
    encoder: folder of the dual encoder that judges captions, semantics and distances;
      '' to leave them out.
    inception: safetensors file of Inception v3; '' for distances on the encoder.
    clip: folder of a CLIP model; '' for none.
  """

  every: int = 0
  images: int = 64
  evaluators: tuple[str, ...] = ('fidelity',)
  encoder: str = ''
  inception: str = ''
  clip: str = ''

  def __post_init__(self):
    _check('evaluate', self, every=(0, math.inf), images=(2, math.inf))


def settings_from(default: SampleConfig, asked: Mapping[str, Any]) -> SampleConfig:
  """The settings of one sampling.

  Args:
    default: those of the model.
    asked: fields by name that are to be others.

  Raises:
    ValueError: a field is unknown, of the wrong type, or out of its range.
  """
  fixed = ('low_res_level', 'empty_caption')  # As the model has learned it.
  known = [f.name for f in dataclasses.fields(SampleConfig) if f.name not in fixed]
  if unknown := [name for name in asked if name not in known]:
    raise ValueError(
      f'{unknown[0]!r} is no setting of the sampling; expected any of'
      f' {", ".join(known)}.'
    )
  values = {name: getattr(default, name) for name in known} | dict(asked)
  made = _build(SampleConfig, values, 'sampling')
  return dataclasses.replace(made, **{n: getattr(default, n) for n in fixed})


@dataclasses.dataclass(frozen=True)
class Config:
  """Everything that a training run is made from.

  Attributes:
    stage: `dual_encoder`, `prior` or `diffusion`.
    model: `ClipConfig` for the dual encoder, `PriorConfig` for the prior, `UNetConfig`
      for diffusion of images.
  """

  stage: Literal['dual_encoder', 'prior', 'diffusion']
  model: ClipConfig | PriorConfig | UNetConfig
  data: DataConfig = DataConfig()
  diffusion: DiffusionConfig = DiffusionConfig()
  optimizer: OptimizerConfig = OptimizerConfig()
  train: TrainConfig = TrainConfig()
  mesh: MeshConfig = MeshConfig()
  sample: SampleConfig = SampleConfig()
  evaluate: EvaluateConfig = EvaluateConfig()

  def __post_init__(self):
    if self.evaluate.every and not isinstance(self.model, UNetConfig):
      raise ValueError(
        f'config.evaluate.every is {self.evaluate.every}; expected 0 for a {self.stage}'
        ' stage, which composes no images.'
      )
    if isinstance(self.model, PriorConfig):
      self._check_prior(self.model)
    if not isinstance(self.model, UNetConfig):
      return
    crop, model = self.diffusion.crop, self.model
    if crop > model.image_size or crop % model.smallest:
      raise ValueError(
        f'diffusion.crop is {crop}; expected a multiple of {model.smallest} (as for'
        f' model.image_size) up to model.image_size, {model.image_size}.'
      )
    if self.diffusion.low_res_spread and not model.low_res_size:
      raise ValueError(
        f'diffusion.low_res_spread is {self.diffusion.low_res_spread} and'
        ' model.low_res_size 0; expected a spread of 0, as a base model has no'
        ' low-resolution input.'
      )
    if self.diffusion.low_res_details:
      if model.image_size % model.low_res_size:
        raise ValueError(
          f'model.image_size is {model.image_size} and diffusion.low_res_details True;'
          f' expected a multiple of model.low_res_size, {model.low_res_size}.'
        )
      if crop % model.enlargement:
        raise ValueError(
          f'diffusion.crop is {crop} and diffusion.low_res_details True; expected a'
          f' multiple of {model.enlargement}, the times that an image becomes larger.'
        )
    self._check_parts(model)

  def _check_parts(self, model: UNetConfig) -> None:
    """Refuses to cut images where a level of the U-Net could not be cut."""
    spatial, sample = self.mesh.spatial, self.sample
    rows = model.image_size // model.smallest
    if rows % spatial:
      raise ValueError(
        f'mesh.spatial is {spatial}; expected a divisor of {rows}, the rows of the'
        ' last level of the U-Net.'
      )
    if not sample.tile:
      return
    if spatial > 1 or not model.low_res_size:
      raise ValueError(
        f'sample.tile is {sample.tile}, mesh.spatial {spatial} and model.low_res_size'
        f' {model.low_res_size}; expected tile 0 with images that are split over'
        ' devices, and for a base model, which composes the image as a whole.'
      )
    for name in ('tile', 'overlap'):
      if getattr(sample, name) % model.smallest:
        raise ValueError(
          f'sample.{name} is {getattr(sample, name)}; expected a multiple of'
          f' {model.smallest}, the least image that the U-Net takes.'
        )

  def _check_prior(self, model: PriorConfig) -> None:
    for name, value, expected in (
      ('prediction', self.diffusion.prediction, 'x0'),
      ('num_steps', self.diffusion.num_steps, model.num_steps),
    ):
      if value != expected:
        raise ValueError(
          f'config.diffusion.{name} is {value!r}; expected {expected!r} for this prior.'
        )

  @property
  def prior(self) -> PriorConfig:
    """The model of a prior stage."""
    if not isinstance(self.model, PriorConfig):
      raise TypeError(f'A {self.stage} stage has no prior.')
    return self.model

  @property
  def unet(self) -> UNetConfig:
    """The model of a diffusion stage."""
    if not isinstance(self.model, UNetConfig):
      raise TypeError(f'A {self.stage} stage has no U-Net.')
    return self.model

  @property
  def clip(self) -> ClipConfig:
    """The model of the dual encoder."""
    if not isinstance(self.model, ClipConfig):
      raise TypeError(f'A {self.stage} stage has no dual encoder.')
    return self.model

  def to_json(self) -> str:
    """All fields, as `config_files.load` reads them back."""
    return json.dumps(dataclasses.asdict(self), indent=2) + '\n'


MODELS = {'dual_encoder': ClipConfig, 'prior': PriorConfig, 'diffusion': UNetConfig}


def _convert(value: Any, kind: Any, path: str) -> Any:
  """Checks one value against its annotation."""
  origin, arguments = typing.get_origin(kind), typing.get_args(kind)
  if dataclasses.is_dataclass(kind):
    return _build(kind, value, path)
  if origin is Literal:
    if value not in arguments:
      raise ValueError(
        f'{path} is {value!r}; expected one of {", ".join(map(repr, arguments))}.'
      )
    return value
  if origin is tuple:
    if not isinstance(value, list | tuple):
      raise ValueError(f'{path} is {value!r}; expected a sequence.')
    return tuple(_convert(v, arguments[0], f'{path}[{i}]') for i, v in enumerate(value))
  if origin is types.UnionType:
    if value is None and type(None) in arguments:
      return None
    inner = next(a for a in arguments if a is not type(None))
    return _convert(value, inner, path)
  if kind is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
    raise ValueError(
      f'{path} is {value!r} of type {type(value).__name__}; expected {kind.__name__}.'
    )
  return value


def _build(kind: Any, values: Any, path: str) -> Any:
  fields = [field.name for field in dataclasses.fields(kind)]
  unknown = [name for name in values if name not in fields]
  if unknown:
    raise ValueError(
      f'{path}.{unknown[0]} is not a field; expected any of {", ".join(fields)}.'
    )
  hints = typing.get_type_hints(kind)
  return kind(
    **{
      name: _convert(value, hints[name], f'{path}.{name}')
      for name, value in values.items()
    }
  )


def from_dict(values: dict[str, Any]) -> Config:
  """Builds a checked config.

  Raises:
    ValueError: a field is unknown, missing, or of the wrong type; names the field.
  """
  values = dict(values)
  stage = values.pop('stage', None)
  if stage not in MODELS:
    raise ValueError(f'config.stage is {stage!r}; expected one of {list(MODELS)}.')
  try:
    model = _build(MODELS[stage], values.pop('model', {}), 'config.model')
    rest = {
      name: _convert(value, hint, f'config.{name}')
      for name, value in values.items()
      if (hint := typing.get_type_hints(Config).get(name, Any)) is not Any
    }
    unknown = [name for name in values if name not in rest]
    if unknown:
      raise ValueError(f'config.{unknown[0]} is not a field of a training config.')
    return Config(stage=stage, model=model, **rest)
  except TypeError as error:
    raise ValueError(f'config.model is incomplete: {error}.') from error
