"""FID's Inception v3 in PyTorch, as its weights name it; random here.

Branch for branch as torchvision's `Inception3` without its auxiliary classifier, with
the changes of PyTorch-FID: averages leave the margin out, and the last block takes the
largest.
"""

from __future__ import annotations

import collections
import functools

import torch
from torch import nn
from torch.nn import functional as F

average = functools.partial(
  F.avg_pool2d, kernel_size=3, stride=1, padding=1, count_include_pad=False
)
largest = functools.partial(F.max_pool2d, kernel_size=3, stride=1, padding=1)
halve = functools.partial(F.max_pool2d, kernel_size=3, stride=2)


def unit(inputs, outputs, size=1, **options):
  """A convolution with the norm and activation after it."""
  return nn.Sequential(
    collections.OrderedDict(
      conv=nn.Conv2d(inputs, outputs, size, bias=False, **options),
      bn=nn.BatchNorm2d(outputs, eps=0.001),
      relu=nn.ReLU(),
    )
  )


def across(inputs, outputs, width=7):
  return unit(inputs, outputs, (1, width), padding=(0, width // 2))


def down(inputs, outputs, height=7):
  return unit(inputs, outputs, (height, 1), padding=(height // 2, 0))


class A(nn.Module):
  def __init__(self, inputs, pooled):
    super().__init__()
    self.branch1x1 = unit(inputs, 64)
    self.branch5x5_1 = unit(inputs, 48)
    self.branch5x5_2 = unit(48, 64, 5, padding=2)
    self.branch3x3dbl_1 = unit(inputs, 64)
    self.branch3x3dbl_2 = unit(64, 96, 3, padding=1)
    self.branch3x3dbl_3 = unit(96, 96, 3, padding=1)
    self.branch_pool = unit(inputs, pooled)

  def forward(self, x):
    five = self.branch5x5_2(self.branch5x5_1(x))
    three = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
    pooled = self.branch_pool(average(x))
    return torch.cat([self.branch1x1(x), five, three, pooled], 1)


class B(nn.Module):
  def __init__(self):
    super().__init__()
    self.branch3x3 = unit(288, 384, 3, stride=2)
    self.branch3x3dbl_1 = unit(288, 64)
    self.branch3x3dbl_2 = unit(64, 96, 3, padding=1)
    self.branch3x3dbl_3 = unit(96, 96, 3, stride=2)

  def forward(self, x):
    double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
    return torch.cat([self.branch3x3(x), double, halve(x)], 1)


class C(nn.Module):
  def __init__(self, width):
    super().__init__()
    self.branch1x1 = unit(768, 192)
    self.branch7x7_1 = unit(768, width)
    self.branch7x7_2 = across(width, width)
    self.branch7x7_3 = down(width, 192)
    self.branch7x7dbl_1 = unit(768, width)
    self.branch7x7dbl_2 = down(width, width)
    self.branch7x7dbl_3 = across(width, width)
    self.branch7x7dbl_4 = down(width, width)
    self.branch7x7dbl_5 = across(width, 192)
    self.branch_pool = unit(768, 192)

  def forward(self, x):
    seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
    double = x
    for i in range(1, 6):
      double = self.get_submodule(f'branch7x7dbl_{i}')(double)
    pooled = self.branch_pool(average(x))
    return torch.cat([self.branch1x1(x), seven, double, pooled], 1)


class D(nn.Module):
  def __init__(self):
    super().__init__()
    self.branch3x3_1 = unit(768, 192)
    self.branch3x3_2 = unit(192, 320, 3, stride=2)
    self.branch7x7x3_1 = unit(768, 192)
    self.branch7x7x3_2 = across(192, 192)
    self.branch7x7x3_3 = down(192, 192)
    self.branch7x7x3_4 = unit(192, 192, 3, stride=2)

  def forward(self, x):
    three = self.branch3x3_2(self.branch3x3_1(x))
    seven = x
    for i in range(1, 5):
      seven = self.get_submodule(f'branch7x7x3_{i}')(seven)
    return torch.cat([three, seven, halve(x)], 1)


class E(nn.Module):
  def __init__(self, inputs, pool):
    super().__init__()
    self.pool = pool
    self.branch1x1 = unit(inputs, 320)
    self.branch3x3_1 = unit(inputs, 384)
    self.branch3x3_2a = across(384, 384, 3)
    self.branch3x3_2b = down(384, 384, 3)
    self.branch3x3dbl_1 = unit(inputs, 448)
    self.branch3x3dbl_2 = unit(448, 384, 3, padding=1)
    self.branch3x3dbl_3a = across(384, 384, 3)
    self.branch3x3dbl_3b = down(384, 384, 3)
    self.branch_pool = unit(inputs, 192)

  def forward(self, x):
    three = self.branch3x3_1(x)
    double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
    outputs = [
      self.branch1x1(x),
      self.branch3x3_2a(three),
      self.branch3x3_2b(three),
      self.branch3x3dbl_3a(double),
      self.branch3x3dbl_3b(double),
      self.branch_pool(self.pool(x)),
    ]
    return torch.cat(outputs, 1)


class ReferenceInception(nn.Module):
  """Random weights and moments, under which features neither vanish nor explode."""

  def __init__(self, seed=0):
    super().__init__()
    self.Conv2d_1a_3x3 = unit(3, 32, 3, stride=2)
    self.Conv2d_2a_3x3 = unit(32, 32, 3)
    self.Conv2d_2b_3x3 = unit(32, 64, 3, padding=1)
    self.Conv2d_3b_1x1 = unit(64, 80)
    self.Conv2d_4a_3x3 = unit(80, 192, 3)
    self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = A(192, 32), A(256, 64), A(288, 64)
    self.Mixed_6a = B()
    self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = map(
      C, (128, 160, 160, 192)
    )
    self.Mixed_7a = D()
    self.Mixed_7b, self.Mixed_7c = E(1280, average), E(2048, largest)
    self.fc = nn.Linear(2048, 1008)
    self._draw(torch.Generator().manual_seed(seed))
    self.eval()

  @torch.no_grad()
  def _draw(self, generator):
    for module in self.modules():
      if isinstance(module, nn.Conv2d):
        std = (2 / module.weight[0].numel()) ** 0.5
        module.weight.normal_(0, std, generator=generator)
      elif isinstance(module, nn.BatchNorm2d):
        for scale in (module.weight, module.running_var):
          scale.uniform_(0.5, 1.5, generator=generator)
        for shift in (module.bias, module.running_mean):
          shift.normal_(0, 0.1, generator=generator)

  @torch.no_grad()
  def forward(self, x):
    """Float (B, 3, 299, 299) of 0 to 255 to features and logits."""
    x = (x - 128) / 128
    for name, module in self.named_children():
      if name == 'fc':
        break
      x = module(x)
      if name in ('Conv2d_2b_3x3', 'Conv2d_4a_3x3'):
        x = halve(x)
    features = x.mean((2, 3))
    return features, self.fc(features)
