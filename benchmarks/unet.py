"""Training and sampling steps of the demo's base model, beside diffusers in PyTorch.

The same U-Net on both sides, float32, on the same cores: caption tokens as context, no
local conditions, which diffusers' `UNet2DConditionModel` does not have. A training
step is forward, backward, clipping, AdamW and the average of the weights; a sampling
step is one guided DDIM step, a forward pass of twice the batch.

Run:  python benchmarks/unet.py [--batch 64]
"""

from __future__ import annotations

import argparse
import dataclasses

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import torch
from timing import alternate, machine, show

from composer_jax import config as config_lib
from composer_jax import config_files
from composer_jax.sampling.cascade import Denoising
from composer_jax.sampling.guidance import Branch, Wish
from composer_jax.sharding.mesh import batch_placer, make_mesh
from composer_jax.training.stages import Diffusion
from composer_jax.training.step import initial_state, make_step

TOKENS, WIDTH = 24, 64


class Ours:
  """The demo's base model with the caption as its only condition."""

  def __init__(self, config: config_lib.Config):
    size, batch = config.unet.image_size, config.data.batch_size
    rng = np.random.default_rng(0)
    shapes = {'caption': (TOKENS + 1, WIDTH)}
    stage, mesh = Diffusion(config, shapes), make_mesh(config.mesh)
    self._batch = batch_placer(mesh, config.mesh.rules, batch)(
      {
        'image': rng.integers(0, 256, (batch, size, size, 3), np.uint8),
        'caption': rng.normal(size=(batch, *shapes['caption'])).astype(np.float16),
      }
    )
    graph, self.state = initial_state(stage, config)
    self.parameters = sum(x.size for x in jax.tree.leaves(self.state.params))
    self._length = jnp.asarray(1000.0)
    self._step = make_step(stage, config, mesh)
    weights = jax.tree.map(jnp.copy, self.state.ema)
    self._denoising = Denoising(config, shapes, graph, weights)

  def train(self) -> int:
    self.state, metrics = self._step(self.state, self._batch, self._length)
    jax.block_until_ready(metrics)
    return len(self._batch['image'])

  def sample(self, steps: int) -> int:
    count = len(self._batch['image'])
    keys = jax.vmap(jax.random.key)(jnp.arange(count))
    branch = Branch(
      {'caption': self._batch['caption']}, {'caption': np.ones(count, np.float32)}
    )
    wish = Wish((branch,), np.ones((1, count), np.float32))
    settings = dataclasses.replace(self._denoising.config.sample, steps=steps)
    self._denoising(wish, keys, settings=settings).block_until_ready()
    return count * steps


class Theirs:
  """diffusers' U-Net of equal shape, and PyTorch's own optimiser."""

  def __init__(self, config: config_lib.Config):
    unet, batch = config.unet, config.data.batch_size
    pixels = 3 * unet.fold**2
    down = [
      'SimpleCrossAttnDownBlock2D' if attend else 'ResnetDownsampleBlock2D'
      for attend in unet.attention
    ]
    self.model = diffusers.UNet2DConditionModel(
      sample_size=unet.grid,
      in_channels=pixels,
      out_channels=pixels,
      down_block_types=down,
      mid_block_type='UNetMidBlock2DSimpleCrossAttn',
      up_block_types=[
        name.replace('Downsample', 'Upsample').replace('Down', 'Up')
        for name in reversed(down)
      ],
      block_out_channels=[unet.channels * m for m in unet.multipliers],
      layers_per_block=unet.blocks,
      attention_head_dim=unet.head_width,
      cross_attention_dim=unet.context_width,
      resnet_time_scale_shift='scale_shift',
    )
    self.parameters = sum(p.numel() for p in self.model.parameters())
    self._x = torch.randn(batch, pixels, unet.grid, unet.grid)
    self._context = torch.randn(batch, TOKENS, unet.context_width)
    self._alphas = torch.from_numpy(
      diffusers.DDIMScheduler(beta_schedule='squaredcos_cap_v2').alphas_cumprod.numpy()
    )
    self._optimizer = torch.optim.AdamW(self.model.parameters(), foreach=True)
    self._average = [p.detach().clone() for p in self.model.parameters()]

  def train(self) -> int:
    self.model.train()
    t = torch.randint(0, 1000, (len(self._x),))
    a = self._alphas[t].view(-1, 1, 1, 1)
    noise = torch.randn_like(self._x)
    x_t = a.sqrt() * self._x + (1 - a).sqrt() * noise
    wanted = a.sqrt() * noise - (1 - a).sqrt() * self._x
    output = self.model(x_t, t, self._context).sample
    loss = torch.nn.functional.mse_loss(output, wanted)
    self._optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0, foreach=True)
    self._optimizer.step()
    with torch.no_grad():
      torch._foreach_lerp_(self._average, list(self.model.parameters()), 0.005)
    return len(self._x)

  @torch.no_grad()
  def sample(self, steps: int) -> int:
    self.model.eval()
    scheduler = diffusers.DDIMScheduler(
      beta_schedule='squaredcos_cap_v2', prediction_type='v_prediction'
    )
    scheduler.set_timesteps(steps)
    x = torch.randn_like(self._x)
    context = torch.cat([self._context, torch.zeros_like(self._context)])
    for t in scheduler.timesteps:
      both = self.model(torch.cat([x, x]), t, context).sample
      with_all, without = both.chunk(2)
      guided = without + 2.0 * (with_all - without)
      x = scheduler.step(guided, t, x).prev_sample
    return len(x) * steps


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--batch', type=int, default=64)
  parser.add_argument('--rounds', type=int, default=8)
  parser.add_argument('--steps', type=int, default=10, help='of sampling, a round')
  flags = parser.parse_args()
  config = config_files.parse(
    [
      '--config=configs/demo/base.py',
      "--config.model.conditions=('caption',)",
      f'--config.data.batch_size={flags.batch}',
    ]
  )
  ours, theirs = Ours(config), Theirs(config)
  print(machine())
  print(
    f'{ours.parameters / 1e6:.2f}M parameters, conditions included; diffusers'
    f' {theirs.parameters / 1e6:.2f}M without them'
  )
  speeds = alternate(ours.train, theirs.train, rounds=flags.rounds)
  show('Training step', 'images a second', speeds[0], 'diffusers, PyTorch', speeds[1])
  speeds = alternate(
    lambda: ours.sample(flags.steps),
    lambda: theirs.sample(flags.steps),
    rounds=flags.rounds,
  )
  show(
    'Sampling step', 'image steps a second', speeds[0], 'diffusers, PyTorch', speeds[1]
  )


if __name__ == '__main__':
  main()
