"""Weights of one model as the start of another that knows more conditions.

So stage 2 of Composer begins with the weights of stage 1, or with imported ones. What
is new gives zeros at first, so that the new model begins where the old one stands.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx, traverse_util

from composer_jax.config import Config
from composer_jax.models.prior import PriorConfig
from composer_jax.models.scan import stack_layers, unstack_layers
from composer_jax.models.unet import UNet, UNetConfig, roll, unroll

Params = dict[Any, Any]

# Fields in which the two models may differ: what they change has no weights, or has
# weights whose shapes are compared.
_FREE = (
  'conditions',
  'context_tokens',
  'dropout',
  'dtype',
  'image_size',
  'level_embedding',
  'local_hidden',
  'local_width',
  'low_res_size',
  'palette_map',
  'scan',
)


class Start(NamedTuple):
  """What a model starts from.

  Attributes:
    params: of the old model, a nested dict of arrays.
    fresh: names of the conditions that only the new one knows.
  """

  params: Params
  fresh: tuple[str, ...] = ()


def start_from(old: Config, weights: nnx.State, new: Config) -> Start:
  """Makes weights the start of another model.

  Args:
    old: config of the model whose weights they are.
    weights: of it.
    new: config of the model to train.

  Raises:
    ValueError: the two are not of one kind, or differ in what the weights depend on;
      names the fields.
  """
  differing = _differences(old, new)
  if differing:
    raise ValueError(
      f'config.train.start_from holds another model: {"; ".join(differing)}. Set the'
      ' fields as they are there.'
    )
  params = nnx.to_pure_dict(weights)
  if not isinstance(new.model, UNetConfig) or not isinstance(old.model, UNetConfig):
    return Start(_with_layers(params, old.model, new.model))
  if old.model.scan != new.model.scan:
    params = (roll if new.model.scan else unroll)(params, new.model)
  known = old.model.conditions
  fresh = tuple(name for name in new.model.conditions if name not in known)
  return Start(params, fresh)


def _with_layers(params: Params, old: Any, new: Any) -> Params:
  """Layers of a prior stacked, or not, as the new one has them."""
  if not isinstance(new, PriorConfig) or old.scan == new.scan:
    return params
  return (stack_layers if new.scan else unstack_layers)(params, 'layers')


def _differences(old: Config, new: Config) -> list[str]:
  if old.stage != new.stage:
    return [f'stage {old.stage!r} there, {new.stage!r} here']
  names = [f.name for f in dataclasses.fields(new.model) if f.name not in _FREE]
  shaped = ('prediction', 'low_res_spread', 'low_res_details', 'given_spread')
  pairs = [
    (f'{part}.{name}', getattr(there, name), getattr(here, name))
    for part, there, here, own in (
      ('model', old.model, new.model, names),
      ('diffusion', old.diffusion, new.diffusion, shaped),
    )
    for name in own
  ]
  found = [f'{name} {a!r} there, {b!r} here' for name, a, b in pairs if a != b]
  if isinstance(old.model, UNetConfig) and isinstance(new.model, UNetConfig):
    lost = [name for name in old.model.conditions if name not in new.model.conditions]
    if lost:
      found.append(f'conditions {", ".join(lost)} there, not here')
    if bool(old.model.low_res_size) != bool(new.model.low_res_size):
      found.append('one is an upsampler, the other a base model')
  return found


def apply_start(model: nnx.Module, start: Start) -> None:
  """Puts the old weights into a new model, in place; traceable.

  Layers that bring new conditions in give zeros. An upsampler that is told the level
  for the first time hears nothing yet, and a palette map shows nothing.

  Args:
    model: as drawn.
    start: of `start_from`.

  Raises:
    ValueError: weights are missing, unknown or of another shape; names all of them.
  """
  if isinstance(model, UNet):
    model.conditions.silence(start.fresh)
  state = nnx.state(model)
  own = traverse_util.flatten_dict(nnx.to_pure_dict(state))
  given = traverse_util.flatten_dict(start.params)
  problems = []
  for path in [path for path in own if path not in given]:
    if path[0] in ('level_in', 'colours_in'):
      own[path] = jnp.zeros_like(own[path])
    elif not _is_fresh(path, start.fresh):
      problems.append(f'{_name(path)} is missing there')
  for path, value in given.items():
    if path not in own:
      problems.append(f'{_name(path)} is unknown here')
    elif own[path].shape != value.shape:
      problems.append(f'{_name(path)} {value.shape} there, {own[path].shape} here')
    else:
      own[path] = value.astype(own[path].dtype)
  if problems:
    raise ValueError(
      f'config.train.start_from holds another model: {"; ".join(problems)}.'
    )
  nnx.replace_by_pure_dict(state, traverse_util.unflatten_dict(own))
  nnx.update(model, state)


def _is_fresh(path: Sequence[Any], fresh: Sequence[str]) -> bool:
  """Whether a parameter only serves conditions that the old model did not know."""
  first, *rest = path
  if first == 'conditions':
    return len(rest) > 1 and rest[1] in fresh
  return first == 'maps_in' and bool(fresh)


def _name(path: Sequence[Any]) -> str:
  return '/'.join(map(str, path))
