"""From a prepared folder to batches for training.

`batches` is a Grain pipeline with random access all the way down: batch number k can
be computed without the k - 1 before it. So the position of a run is one number,
which holds on any number of hosts and workers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags

from composer_jax import conditions as conditions_lib
from composer_jax.conditions import Condition
from composer_jax.images import Picture
from data_pipelines.dataset import PreparedDataset, Record, load_dataset

__all__ = ['Batches', 'PreparedDataset', 'batches', 'load_dataset']


def batches(
  dataset: PreparedDataset,
  *,
  batch_size: int,
  seed: int,
  conditions: Iterable[str] | None = None,
  rows: Sequence[int] | None = None,
  flip: bool = True,
  workers: int = 0,
  epochs: int | None = None,
  with_text: bool = False,
) -> Batches:
  """Shuffled, augmented batches.

  The order is drawn over the whole split, anew in each epoch. It depends on `seed`
  alone; what is drawn for a sample, on `seed`, its place in that order and the
  conditions wanted. So batch k of all processes together is the same set of samples
  however many processes there are.

  Args:
    dataset: where to read.
    batch_size: samples in a batch of all processes together.
    seed: of everything drawn at random, 0 to 2**32 - 1.
    conditions: names of the conditions wanted; by default all in `dataset` and
      all that are drawn from the image each time.
    rows: places in each batch that this process takes; all if None.
    flip: whether to mirror half of the samples, images and maps alike.
    workers: processes that read ahead, or 0 for a thread.
    epochs: how often to go through the data; without end if None. What is left
      over after the last full batch is dropped.
    with_text: whether to give the captions too.

  Returns:
    An iterator over dicts of arrays with a row for each of `rows`: `image`, uint8
    (B, S, S, 3), and each condition as its spec says. With `with_text`, also `text`, a
    list of str.

  Raises:
    ValueError: there are fewer samples than one batch takes, an argument is out of
      range, or a condition is not there or was stored by another version.
  """
  rows = range(batch_size) if rows is None else rows
  if batch_size < 1 or not rows or not 0 <= min(rows) <= max(rows) < batch_size:
    raise ValueError(
      f'batch_size {batch_size}, rows {list(rows)}; expected at least one row, and all'
      ' of them under the size of the batch.'
    )
  total = len(dataset) * (1 if epochs is None else epochs)
  # Without end, even a single image fills a batch, again and again.
  if not len(dataset) or (epochs is not None and total < batch_size):
    raise ValueError(
      f'{dataset.directory}, {dataset.split}: {len(dataset)} images'
      f' (epochs: {epochs}) do not fill one batch of {batch_size}. Use a smaller'
      ' batch or more images.'
    )
  if conditions is None:
    drawn = (c.name for c in conditions_lib.ALL if not c.stored)
    conditions = (*dataset.conditions, *drawn)
  chosen = conditions_lib.by_name(conditions)
  dataset = PreparedDataset(
    dataset.directory, dataset.split, [c.name for c in chosen if c.stored]
  )
  _check_specs(dataset, chosen)
  samples = (
    grain.MapDataset.source(dataset)
    .shuffle(seed=seed)
    .repeat(epochs)
    # Before the slice, so that what is drawn for a sample depends on its place in
    # the order of all processes.
    .random_map(_Augment(chosen, flip), seed=seed)
  )
  if epochs is not None:  # Every process must see the same number of batches.
    samples = samples[: total // batch_size * batch_size]
  pipeline = _Rows(samples, batch_size, rows).batch(
    len(rows),
    drop_remainder=True,
    batch_fn=_Stack(('image', *(c.name for c in chosen)), with_text),
  )
  identity = {
    'data': dataset.info['digest'],
    'split': dataset.split,
    'seed': seed,
    'batch_size': batch_size,
    'conditions': [c.name for c in chosen],
    'flip': flip,
  }
  return Batches(pipeline, identity, workers)


class Batches(Iterator[dict[str, Any]]):
  """A Grain pipeline and a position in it.

  The position is the number of the next batch, not the state of some workers, so
  it can be restored with another number of processes or workers.
  """

  def __init__(self, pipeline: grain.MapDataset, identity: Record, workers: int):
    self._pipeline, self._identity, self._workers = pipeline, identity, workers
    self._next = 0
    self._iterator: grain.DatasetIterator | None = None

  def __next__(self) -> dict[str, Any]:
    if self._iterator is None:  # Late, so that restoring first starts nothing twice.
      self._iterator = self._start()
    batch = next(self._iterator)
    self._next += 1
    return batch

  def _start(self) -> grain.DatasetIterator:
    # One thread reads ahead while the device works; more only compete for
    # Python's lock. Few batches are held, as each may be large.
    ahead = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
    rest = self._pipeline[self._next :].to_iter_dataset(ahead)
    if self._workers:
      if not flags.FLAGS.is_parsed():  # Grain reads flags of its own there.
        flags.FLAGS.mark_as_parsed()
      rest = rest.mp_prefetch(
        grain.MultiprocessingOptions(
          num_workers=self._workers, per_worker_buffer_size=2
        )
      )
    return iter(rest)

  def get_state(self) -> dict[str, Any]:
    """The position, as JSON has it."""
    return {'next_batch': self._next, **self._identity}

  def set_state(self, state: dict[str, Any]) -> None:
    """Goes to a position that `get_state` gave.

    Raises:
      ValueError: it is a position in other data, or in another order.
    """
    for name, value in self._identity.items():
      if state.get(name) != value:
        raise ValueError(
          f'The saved position is for {name} {state.get(name)!r}, but this input'
          f' has {value!r}. Resume with the same, or start anew.'
        )
    self.close()
    self._next = state['next_batch']

  def close(self) -> None:
    """Stops threads and workers; the position stays."""
    if self._iterator is not None:
      self._iterator.close()
      self._iterator = None


class _Rows(grain.MapDataset[Record]):
  """Of every batch of samples, only some: what one process takes."""

  def __init__(
    self, samples: grain.MapDataset[Record], batch_size: int, rows: Sequence[int]
  ):
    super().__init__(samples)
    self._batch_size, self._rows = batch_size, rows

  def __len__(self) -> int:
    return len(self._parent) // self._batch_size * len(self._rows)

  def __getitem__(self, index: Any) -> Any:
    if isinstance(index, slice):
      return self.slice(index)
    batch, row = divmod(index, len(self._rows))
    return self._parent[batch * self._batch_size + self._rows[row]]


class _Augment:
  """Mirrors a sample, then draws the conditions that are not stored."""

  def __init__(self, conditions: Sequence[Condition], flip: bool):
    self._flip = flip
    self._maps = ('image', *(c.name for c in conditions if c.stored and c.local))
    self._drawn = [c for c in conditions if not c.stored]

  def __call__(self, record: Record, rng: np.random.Generator) -> Record:
    if self._flip and rng.random() < 0.5:
      for name in self._maps:
        record[name] = np.ascontiguousarray(record[name][:, ::-1])
    picture = Picture(record['image'])
    for condition in self._drawn:
      record[condition.name] = condition.extract(picture, rng)
    return record


class _Stack:
  """Records to a batch, with only the fields that are wanted."""

  def __init__(self, names: Sequence[str], with_text: bool):
    self._names, self._with_text = names, with_text

  def __call__(self, records: Sequence[Record]) -> dict[str, Any]:
    batch: dict[str, Any] = {
      name: np.stack([r[name] for r in records]) for name in self._names
    }
    if self._with_text:
      batch['text'] = [record['text'] for record in records]
    return batch


def _check_specs(dataset: PreparedDataset, conditions: Sequence[Condition]) -> None:
  """A model must not read numbers that mean something else than it takes them for."""
  size = dataset.info['size']
  for condition in conditions:
    there = dataset.info['conditions'].get(condition.name)
    if there is None:
      continue
    here = condition.spec(size)
    if (tuple(there['shape']), there['dtype']) != (here.shape, here.dtype):
      raise ValueError(
        f'{dataset.directory}: {condition.name} is stored as {there["dtype"]}'
        f' {there["shape"]}, this version expects {here.dtype} {list(here.shape)}.'
        ' Prepare the data again.'
      )
