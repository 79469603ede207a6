"""Reading prepared images on one core, beside a PyTorch DataLoader over the same files.

Both read the same ArrayRecord shards, shuffle over the whole set, mirror half of the
images with their maps, draw intensity and mask anew, and give batches of stacked
arrays. The DataLoader's data set decodes records the public way, by TensorFlow
Datasets; with `--own-decoder` by this project's `PreparedDataset`, so that only the
loaders differ.

Run:  python benchmarks/loader.py --data demo/data
"""

from __future__ import annotations

import argparse
import itertools
import pathlib

from timing import alternate, machine, one_core, show

one_core()

import numpy as np  # noqa: E402 - after the number of threads is set
import tensorflow_datasets as tfds  # noqa: E402
import torch  # noqa: E402

from composer_jax import conditions  # noqa: E402
from composer_jax.images import Picture  # noqa: E402
from data_pipelines.loader import batches, load_dataset  # noqa: E402


class Prepared(torch.utils.data.Dataset):
  """The prepared folder, opened with its TensorFlow Datasets metadata."""

  def __init__(self, directory: pathlib.Path, own_decoder: bool):
    if own_decoder:
      stored = [c.name for c in conditions.ALL if c.stored and not c.embedded]
      self._source = load_dataset(directory, conditions=stored)
    else:
      builder = tfds.builder_from_directory(str(directory))
      self._source = builder.as_data_source('train')
    self._stored = [c for c in conditions.ALL if c.stored and c.name in self._source[0]]
    self._drawn = [c for c in conditions.ALL if not c.stored]
    self._rng = np.random.default_rng(0)

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    record = self._source[index]
    found = {c.name: record[c.name] for c in self._stored}
    found['image'] = record['image']
    if self._rng.random() < 0.5:
      maps = ['image', *(c.name for c in self._stored if c.local)]
      found |= {name: found[name][:, ::-1].copy() for name in maps}
    for condition in self._drawn:
      picture = Picture(found['image'])
      found[condition.name] = condition.extract(picture, self._rng)
    return found


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--data', type=pathlib.Path, required=True, metavar='DIR')
  parser.add_argument('--batch', type=int, default=64)
  parser.add_argument('--batches', type=int, default=100)
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--own-decoder', action='store_true')
  flags = parser.parse_args()
  print(machine())
  torch.set_num_threads(1)
  # Without the embeddings, which TensorFlow Datasets does not know of.
  stored = [c.name for c in conditions.ALL if not c.embedded]
  mine = batches(
    load_dataset(flags.data), batch_size=flags.batch, seed=0, conditions=stored
  )
  loader = torch.utils.data.DataLoader(
    Prepared(flags.data, flags.own_decoder),
    batch_size=flags.batch,
    shuffle=True,
    drop_last=True,
  )
  theirs = itertools.chain.from_iterable(itertools.repeat(loader))

  def take(source) -> int:
    return sum(len(next(source)['image']) for _ in range(flags.batches))

  speeds = alternate(lambda: take(mine), lambda: take(theirs), rounds=flags.rounds)
  show('Loader', 'images a second a core', speeds[0], 'PyTorch DataLoader', speeds[1])


if __name__ == '__main__':
  main()
