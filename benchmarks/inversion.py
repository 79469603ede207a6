"""How well DDIM inversion finds the way back, on held-out images.

python benchmarks/inversion.py --data demo/data [--model demo] [--n 64]

Each image is inverted under all of its conditions, and drawn again under the same ones
from the noise that was found. Printed is the PSNR, mean and 95 % interval, between what
comes out and the image as the base model sees it.
"""

from __future__ import annotations

import argparse

import numpy as np

from composer_jax.composer import Composer
from composer_jax.evaluation.bootstrap import estimate
from composer_jax.evaluation.fidelity import hold_out
from composer_jax.images import resize_squares
from data_pipelines.loader import load_dataset

PLAIN = {'guidance': 1.0, 'eta': 0.0, 'sampler': 'ddim'}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--model', default='demo', metavar='DIR')
  parser.add_argument('--data', required=True, metavar='DIR')
  parser.add_argument('--n', type=int, default=64)
  parser.add_argument('--steps', type=int, nargs='+', default=[25, 100])
  flags = parser.parse_args()
  composer = Composer.load(flags.model)
  dataset = load_dataset(flags.data, 'test')
  order = np.random.default_rng(0).permutation(len(dataset))[: flags.n]
  records = [dataset[int(index)] for index in order]
  held_out = hold_out(records, composer.names, encoder=composer.encoder)
  size = composer.sizes[0]
  seen = resize_squares(held_out.images, size)
  print(f'{len(seen)} images of {size} x {size}, all conditions, guidance 1')
  for steps in flags.steps:
    sampling = {**PLAIN, 'steps': steps}
    noise = composer.invert(
      held_out.images, held_out.asked, held_out.present, sampling=sampling
    )
    made = composer.compose(
      held_out.asked,
      held_out.present,
      seeds=held_out.seeds,
      sampling=sampling,
      start=noise,
      size=size,
    )
    error = (made.astype(float) - seen) ** 2
    psnr = 10 * np.log10(255**2 / np.maximum(error.mean((1, 2, 3)), 1e-9))
    print(
      f'{steps} steps: PSNR {estimate(psnr)} dB, least {psnr.min():.1f}', flush=True
    )


if __name__ == '__main__':
  main()
