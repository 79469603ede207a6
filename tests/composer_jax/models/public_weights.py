"""Moves weights of PyTorch and diffusers modules into ours, and images back and forth.

Each function takes one of our modules, abstract or not, and the public module whose
weights it gets.
"""

from __future__ import annotations

import jax
import numpy as np
import torch
from flax import nnx
from jax import numpy as jnp


def randomised(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
  """Makes every weight random: biases, norms and zero-initialised ones too."""
  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for name, value in module.named_parameters():
      noise = torch.randn(value.shape, generator=generator)
      if value.ndim > 1:
        fan_in = value[0].numel()
        value.copy_(noise / fan_in**0.5)
      else:
        centre = 1.0 if 'norm' in name and name.endswith('weight') else 0.0
        value.copy_(centre + 0.2 * noise)
  return module.eval().requires_grad_(False)


def to_torch(x: np.ndarray) -> torch.Tensor:
  """Images (B, H, W, C) to (B, C, H, W); other arrays as they are."""
  tensor = torch.from_numpy(np.array(x))
  return tensor.permute(0, 3, 1, 2) if tensor.ndim == 4 else tensor


def to_numpy(x: torch.Tensor) -> np.ndarray:
  """The inverse of `to_torch`."""
  return (x.permute(0, 2, 3, 1) if x.ndim == 4 else x).numpy()


def put(module: nnx.Module, name: str, value: torch.Tensor) -> None:
  assert getattr(module, name).shape == tuple(value.shape)
  setattr(module, name, nnx.Param(jnp.asarray(value.numpy())))


def copy_dense(ours: nnx.Module, *theirs: torch.nn.Module) -> None:
  """A linear map, or several side by side; 1 x 1 convolutions count as linear."""
  weights = [module.weight.flatten(1).T for module in theirs]
  put(ours, 'kernel', torch.cat(weights, dim=1))
  put(ours, 'bias', torch.cat([module.bias for module in theirs]))


def copy_conv(ours: nnx.Module, theirs: torch.nn.Conv2d) -> None:
  put(ours, 'kernel', theirs.weight.permute(2, 3, 1, 0))
  put(ours, 'bias', theirs.bias)


def copy_norm(ours: nnx.Module, theirs: torch.nn.GroupNorm) -> None:
  assert (ours.groups, ours.eps) == (theirs.num_groups, theirs.eps)
  put(ours, 'scale', theirs.weight)
  put(ours, 'bias', theirs.bias)


def copy_resnet(ours: nnx.Module, theirs: torch.nn.Module) -> None:
  """A `ResnetBlock2D`."""
  copy_norm(ours.norm_in, theirs.norm1)
  copy_conv(ours.conv_in, theirs.conv1)
  copy_dense(ours.modulation, theirs.time_emb_proj)
  copy_norm(ours.norm_out, theirs.norm2)
  copy_conv(ours.conv_out, theirs.conv2)
  assert (ours.skip is None) == (theirs.conv_shortcut is None)
  if ours.skip is not None:
    copy_dense(ours.skip, theirs.conv_shortcut)


def copy_attention(ours: nnx.Module, theirs: torch.nn.Module) -> None:
  """An `Attention`, with or without added keys and values."""
  assert ours.heads == theirs.heads
  copy_norm(ours.norm, theirs.group_norm)
  copy_dense(ours.qkv, theirs.to_q, theirs.to_k, theirs.to_v)
  copy_dense(ours.out, theirs.to_out[0])
  if ours.context_kv is not None:
    copy_dense(ours.context_kv, theirs.add_k_proj, theirs.add_v_proj)


def assert_filled(module: nnx.Module) -> None:
  """Whether no parameter of a module made abstract was forgotten."""
  for leaf in jax.tree.leaves(nnx.state(module, nnx.Param)):
    assert isinstance(leaf, jax.Array), leaf


def with_random_weights(make, seed: int = 0) -> nnx.Module:
  """Our module that `make` makes, with every weight random."""
  module = nnx.eval_shape(make)
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    noise = rng.normal(size=leaf.shape).astype(np.float32)
    if leaf.ndim > 1:
      return jnp.asarray(noise / np.prod(leaf.shape[:-1]) ** 0.5)
    is_scale = any(getattr(key, 'key', None) == 'scale' for key in path)
    return jnp.asarray(is_scale + 0.2 * noise)

  params = nnx.to_pure_dict(nnx.state(module, nnx.Param))
  nnx.update(module, jax.tree_util.tree_map_with_path(draw, params))
  assert_filled(module)
  return module


def assert_near(ours, theirs, tolerance: float = 1e-5) -> None:
  """Equal to a share of the largest value."""
  ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
  assert ours.shape == theirs.shape
  assert np.isfinite(theirs).all()
  assert np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max()
