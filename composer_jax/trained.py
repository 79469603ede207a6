"""What training leaves in a folder, opened again: encoder, prior, U-Nets."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from composer_jax import config as config_lib
from composer_jax import config_files
from composer_jax.checkpoints import FOLDER as CHECKPOINTS
from composer_jax.checkpoints import newest, read_average, read_state
from composer_jax.files import read_json
from composer_jax.models.clip import Clip, normalise
from composer_jax.models.tokenizer import Tokenizer
from composer_jax.safetensors_files import open_weights
from composer_jax.sampling.cascade import Denoising
from composer_jax.sampling.prior import Imagining
from composer_jax.sharding.mesh import make_mesh
from composer_jax.shipped import model_folder
from composer_jax.training.stages import Diffusion, DualEncoder, PriorDiffusion
from composer_jax.training.step import Stage, abstract_state

INPUTS = 'inputs.json'


class TrainedEncoder:
  """A dual encoder with its tokenizer; see `conditions.Encoder`.

  Attributes:
    width: of the embeddings.
    image_size: side of the images that it sees, in pixels.
    num_tokens: in a caption.
    step: the training step its weights are from.
  """

  def __init__(
    self,
    graph: nnx.GraphDef,
    weights: nnx.State,
    tokenizer: Tokenizer,
    step: int,
  ):
    self._weights, self._tokenizer, self.step = weights, tokenizer, step
    model = nnx.merge(graph, weights)
    self.width = model.config.embed_width
    self.num_tokens = tokenizer.context_length
    self.image_size = size = model.config.image_size

    @jax.jit
    def embed_images(weights: nnx.State, images: jax.Array) -> jax.Array:
      clip: Clip = nnx.merge(graph, weights)
      return clip.image_embedding(normalise(images, size))

    @jax.jit
    def embed_captions(
      weights: nnx.State, tokens: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
      clip: Clip = nnx.merge(graph, weights)
      words, sentence = clip.text_embedding(tokens)
      said = jnp.arange(tokens.shape[1]) <= clip.ends(tokens)[:, None]
      return jnp.where(said[:, :, None], words, 0), sentence

    self._embed_images, self._embed_captions = embed_images, embed_captions

  @functools.cached_property
  def fingerprint(self) -> str:
    """Tells its weights from others."""
    return digest_of_weights(self._weights)

  def embed_images(self, images: np.ndarray) -> np.ndarray:
    return in_batches(functools.partial(self._embed_images, self._weights), images)

  def embed_captions(self, captions: list[str]) -> tuple[np.ndarray, np.ndarray]:
    tokens = self._tokenizer.encode(captions)
    return in_batches(functools.partial(self._embed_captions, self._weights), tokens)


def digest_of_weights(weights: nnx.State) -> str:
  """SHA-256 of all weights in order, in hexadecimal digits."""
  digest = hashlib.sha256()
  for leaf in jax.tree.leaves(weights):
    digest.update(np.ascontiguousarray(jax.device_get(leaf)).tobytes())
  return digest.hexdigest()


def in_batches(
  function: Callable[[np.ndarray], Any], rows: np.ndarray, size: int = 64
) -> Any:
  """Applies a compiled function to rows, padded to one batch size."""
  results = []
  for begin in range(0, len(rows), size):
    part = rows[begin : begin + size]
    padded = np.concatenate([part, np.repeat(part[-1:], size - len(part), axis=0)])
    result = jax.device_get(function(padded))
    kept = len(part)
    results.append(jax.tree.map(lambda x, kept=kept: x[:kept], result))
  return jax.tree.map(lambda *parts: np.concatenate(parts), *results)


def load_encoder(directory: str | pathlib.Path) -> TrainedEncoder:
  """Opens a trained dual encoder.

  Args:
    directory: its folder, or that of a model with `encoder/` in it; `demo` for that of
      the model that comes with the package.

  Raises:
    FileNotFoundError: the folder holds no trained encoder.
    ValueError: it holds another kind of model.
  """
  directory = model_folder(directory)
  if (directory / 'encoder').is_dir():
    directory /= 'encoder'
  config = read_config(directory)
  if config.stage != 'dual_encoder':
    raise ValueError(f'{directory} holds a {config.stage} model, not a dual encoder.')
  graph, weights, step = _load_weights(
    directory, DualEncoder(config), config, _mesh(config)
  )
  tokenizer = Tokenizer.load(directory / 'tokenizer')
  return TrainedEncoder(graph, weights, tokenizer, step)


def read_config(directory: pathlib.Path) -> config_lib.Config:
  """The config of the model in a folder.

  Raises:
    FileNotFoundError: there is none.
  """
  path = directory / 'config.json'
  if not path.is_file():
    raise FileNotFoundError(
      f'{path} does not exist; expected the folder that `composer-jax train'
      ' --workdir` wrote.'
    )
  return config_files.load(path)


def read_inputs(directory: pathlib.Path) -> dict[str, Any]:
  """What the model in a folder was made from."""
  advice = f'Train again in {directory}; it goes on from its newest checkpoint.'
  return read_json(directory / INPUTS, ('condition_shapes',), advice)


def _mesh(config: config_lib.Config) -> Mesh:
  """All devices of this process: those that do not split images split the weights.

  In a job of several processes, each composes images of its own.
  """
  return make_mesh(config.mesh.for_sampling(), jax.local_devices())


def _condition_shapes(directory: pathlib.Path) -> dict[str, tuple[int, ...]]:
  shapes = read_inputs(directory)['condition_shapes']
  return {name: tuple(shape) for name, shape in shapes.items()}


def _load_weights(
  directory: pathlib.Path,
  stage: Stage,
  config: config_lib.Config,
  mesh: Mesh,
  ema: bool = True,
) -> tuple[nnx.GraphDef, nnx.State, int]:
  """Graph definition, weights, and the step they are from."""
  graph, shapes = abstract_state(stage, config, mesh)
  if not (directory / CHECKPOINTS).is_dir() and any(directory.glob('*.safetensors')):
    return graph, _read_tensors(directory, shapes.ema), read_inputs(directory)['step']
  step = newest(directory)
  if ema:
    return graph, read_average(directory, step, shapes.ema), step
  rest, _ = shapes.split()
  return graph, read_state(directory, step, rest)['params'], step


def tensor_name(path: Iterable[str | int]) -> str:
  """What the parameter at a path is called in files that are exported."""
  return '.'.join(map(str, path))


def upsampler_folders(directory: pathlib.Path) -> list[pathlib.Path]:
  """The folders of a model's upsamplers, by name."""
  return [path for path in sorted(directory.glob('upsampler*')) if path.is_dir()]


def _read_tensors(directory: pathlib.Path, shapes: nnx.State) -> nnx.State:
  """Exported weights, each put on the devices as `shapes` says."""
  files = open_weights(directory)
  flat: Any = dict(nnx.to_flat_state(shapes))
  names = {tensor_name(path): path for path in flat}
  wrong = [
    f'{name} {flat[path].shape}'
    for name, path in names.items()
    if name not in files.entries or files.entries[name].shape != flat[path].shape
  ]
  wrong += [f'{name} is unknown' for name in files.entries if name not in names]
  if wrong:
    raise ValueError(
      f'{directory} does not hold the weights that its config.json describes:'
      f' {", ".join(wrong)}. Export or copy it again.'
    )
  for name, path in names.items():
    shape = flat[path].get_value()
    value = np.asarray(files.read(name)).astype(shape.dtype)
    flat[path] = flat[path].replace(jax.device_put(value, shape.sharding))
  return nnx.from_flat_state(flat)


def load_weights(
  directory: str | pathlib.Path, *, ema: bool = True
) -> tuple[config_lib.Config, nnx.State, int]:
  """Config and weights of a model of any stage, and the step they are from.

  Args:
    directory: of a run, an import or an exported stage.
    ema: whether to read the averaged weights, rather than the last ones.

  Raises:
    FileNotFoundError: the folder holds no trained model, or not those weights.
  """
  directory = pathlib.Path(directory)
  config = read_config(directory)
  stage: Stage
  if config.stage == 'dual_encoder':
    stage = DualEncoder(config)
  elif config.stage == 'prior':
    stage = PriorDiffusion(config)
  else:
    stage = Diffusion(config, _condition_shapes(directory))
  everywhere = make_mesh(config.mesh.for_sampling())
  _, weights, step = _load_weights(directory, stage, config, everywhere, ema)
  return config, weights, step


def load_diffusion(directory: pathlib.Path, spatial: int | None = None) -> Denoising:
  """Opens a trained base model or upsampler.

  Args:
    directory: that it was trained in.
    spatial: devices that share the rows of each image, instead of those that its
      `config.mesh.spatial` says.

  Raises:
    FileNotFoundError: the folder holds no trained model.
    ValueError: its images or the devices here cannot be divided by `spatial`.
  """
  config = read_config(directory)
  if spatial is not None:
    split = dataclasses.replace(config.mesh, spatial=spatial)
    config = dataclasses.replace(config, mesh=split)
  shapes = _condition_shapes(directory)
  mesh = _mesh(config)
  graph, weights, _ = _load_weights(directory, Diffusion(config, shapes), config, mesh)
  return Denoising(config, shapes, graph, weights, mesh)


def load_prior(directory: pathlib.Path) -> Imagining:
  """Opens a trained prior.

  Raises:
    FileNotFoundError: the folder holds no trained model.
    ValueError: it holds another kind of model.
  """
  config = read_config(directory)
  if config.stage != 'prior':
    raise ValueError(f'{directory} holds a {config.stage} model, not a prior.')
  mesh = _mesh(config)
  graph, weights, _ = _load_weights(directory, PriorDiffusion(config), config, mesh)
  return Imagining(config, graph, weights, mesh)


def check_encoder(directory: pathlib.Path, encoder: TrainedEncoder, stage: str) -> None:
  """Refuses an encoder other than the one whose embeddings a stage was trained on."""
  inputs = read_inputs(directory / stage)
  for name, made_by in inputs.get('encoders', {}).items():
    if made_by.get('weights') != encoder.fingerprint:
      raise ValueError(
        f'{directory / stage} was trained with {name} of another encoder than the one'
        f' in {directory / "encoder"}. Add its embeddings to the data with'
        ' `composer-jax prepare --onto --overwrite`, and train on.'
      )
