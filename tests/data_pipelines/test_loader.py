from __future__ import annotations

import itertools
import json
from collections import Counter

import numpy as np
import pytest

from composer_jax import conditions
from data_pipelines.loader import batches, load_dataset

DRAWN = tuple(c.name for c in conditions.ALL if not c.stored)


@pytest.fixture(scope='module')
def dataset(prepared):
  return load_dataset(prepared)


def take(iterator, count):
  taken = list(itertools.islice(iterator, count))
  iterator.close()
  return taken


def assert_same(one, two):
  assert len(one) == len(two)
  for a, b in zip(one, two, strict=True):
    assert a.keys() == b.keys()
    for name in a:
      np.testing.assert_array_equal(a[name], b[name])


def test_a_batch_has_images_and_every_condition(dataset):
  (batch,) = take(batches(dataset, batch_size=6, seed=0), 1)
  assert set(batch) == {'image', *dataset.conditions, *DRAWN}
  assert batch['image'].shape == (6, 32, 32, 3)
  assert batch['image'].dtype == np.uint8
  for condition in conditions.by_name([*dataset.conditions, *DRAWN]):
    spec = condition.spec(32)
    assert batch[condition.name].shape == (6, *spec.shape)
    assert batch[condition.name].dtype == spec.dtype


def test_an_epoch_has_each_image_once_and_the_next_in_another_order(dataset):
  total = len(dataset)
  plain = {'conditions': (), 'flip': False, 'with_text': True}
  stream = batches(dataset, batch_size=1, seed=0, epochs=2, **plain)
  rows = [batch['image'][0].tobytes() for batch in stream]
  stream.close()
  assert len(rows) == 2 * total
  everything = Counter(dataset[i]['image'].tobytes() for i in range(total))
  assert Counter(rows[:total]) == Counter(rows[total:]) == everything
  assert rows[:total] != rows[total:]


def test_captions_come_when_asked_for_and_belong_to_their_images(dataset):
  (batch,) = take(batches(dataset, batch_size=9, seed=1, flip=False, with_text=True), 1)
  records = [dataset[i] for i in range(len(dataset))]
  captions = {record['image'].tobytes(): record['text'] for record in records}
  assert batch['text'] == [captions[image.tobytes()] for image in batch['image']]


def test_the_seed_decides(dataset):
  first = take(batches(dataset, batch_size=5, seed=7), 4)
  assert_same(first, take(batches(dataset, batch_size=5, seed=7), 4))
  other = take(batches(dataset, batch_size=5, seed=8), 4)
  assert any(
    (a['image'] != b['image']).any() for a, b in zip(first, other, strict=True)
  )


@pytest.mark.parametrize('rows', [range(2), range(2, 6), [1, 4]])
def test_a_process_takes_its_rows_of_the_same_global_batches(dataset, rows):
  alone = take(batches(dataset, batch_size=6, seed=2), 12)
  part = take(batches(dataset, batch_size=6, seed=2, rows=rows), 12)
  for whole, own in zip(alone, part, strict=True):
    for name, array in own.items():
      np.testing.assert_array_equal(array, whole[name][list(rows)])


def test_all_processes_see_as_many_batches(dataset):
  counts = {
    len(
      list(batches(dataset, batch_size=4, seed=0, epochs=1, conditions=(), rows=[row]))
    )
    for row in range(4)
  }
  assert counts == {len(dataset) // 4}


def test_maps_are_mirrored_with_their_image(dataset):
  stored = {dataset[i]['image'].tobytes(): dataset[i] for i in range(len(dataset))}
  mirrored = 0
  for batch in take(batches(dataset, batch_size=6, seed=0), 10):
    for i, image in enumerate(batch['image']):
      record = stored.get(image.tobytes())
      if flipped := record is None:
        record = stored[image[:, ::-1].tobytes()]
      mirrored += flipped
      for condition in conditions.by_name(dataset.conditions):
        value = record[condition.name]
        if flipped and condition.local:
          value = value[:, ::-1]
        np.testing.assert_array_equal(batch[condition.name][i], value)
  assert 15 < mirrored < 45


def test_drawn_conditions_are_of_the_mirrored_image(dataset):
  # A drawn map with room for colours holds those of the image, where it is visible.
  wide = [c for c in conditions.by_name(DRAWN) if c.spec(32).shape[-1] > 3]
  assert wide
  for batch in take(batches(dataset, batch_size=6, seed=0), 6):
    for condition in wide:
      colours, visible = batch[condition.name][..., :3], batch[condition.name][..., 3:]
      np.testing.assert_array_equal(colours, np.where(visible, batch['image'], 0))


def test_drawn_conditions_differ_from_epoch_to_epoch(dataset):
  total = len(dataset)
  wanted = {'conditions': DRAWN, 'flip': False, 'epochs': 3}
  stream = batches(dataset, batch_size=1, seed=0, **wanted)
  seen: dict[bytes, set[bytes]] = {}
  for batch in stream:
    values = b''.join(batch[name].tobytes() for name in DRAWN)
    seen.setdefault(batch['image'].tobytes(), set()).add(values)
  stream.close()
  assert len(seen) == total
  assert np.mean([len(values) for values in seen.values()]) > 2.5


@pytest.mark.parametrize('before', [0, 1, 7, 20])
def test_a_saved_position_is_restored_exactly(dataset, before):
  stream = batches(dataset, batch_size=4, seed=3)
  take_before = list(itertools.islice(stream, before))
  state = json.loads(json.dumps(stream.get_state()))
  expected = take(stream, 5)
  resumed = batches(dataset, batch_size=4, seed=3)
  next(resumed)  # A stream that is already under way can be moved too.
  resumed.set_state(state)
  assert resumed.get_state() == state
  assert_same(take(resumed, 5), expected)
  assert len(take_before) == before


def test_a_position_holds_on_other_numbers_of_processes(dataset):
  stream = batches(dataset, batch_size=4, seed=3, with_text=True)
  list(itertools.islice(stream, 3))
  state = stream.get_state()
  expected = take(stream, 1)[0]
  rows = []
  for i in range(2):
    own = range(2 * i, 2 * i + 2)
    part = batches(dataset, batch_size=4, seed=3, rows=own, with_text=True)
    part.set_state(state)
    rows += [image.tobytes() for image in take(part, 1)[0]['image']]
  assert rows == [image.tobytes() for image in expected['image']]


def test_worker_processes_give_the_same_batches_and_positions(dataset):
  stream = batches(dataset, batch_size=4, seed=3)
  list(itertools.islice(stream, 3))
  state = stream.get_state()
  expected = take(stream, 5)
  by_workers = batches(dataset, batch_size=4, seed=3, workers=2)
  by_workers.set_state(state)
  given = list(itertools.islice(by_workers, 5))
  assert by_workers.get_state() == stream.get_state()
  by_workers.close()
  assert_same(given, expected)


@pytest.mark.parametrize('changes', [{'seed': 4}, {'batch_size': 5}])
def test_a_position_in_another_order_is_refused(dataset, changes):
  state = batches(dataset, batch_size=4, seed=3).get_state()
  arguments = {'batch_size': 4, 'seed': 3} | changes
  with pytest.raises(ValueError, match=f'position is for {next(iter(changes))}'):
    batches(dataset, **arguments).set_state(state)


def test_too_little_data_for_a_batch_is_refused(dataset):
  with pytest.raises(ValueError, match='do not fill one batch of 4000'):
    batches(dataset, batch_size=4000, seed=0, epochs=1)


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ({'batch_size': 0}, 'batch_size 0'),
    ({'batch_size': 4, 'rows': []}, 'batch_size 4, rows .*; expected at least one'),
    ({'batch_size': 4, 'rows': [3, 4]}, r'batch_size 4, rows \[3, 4\]; expected'),
    ({'batch_size': 4, 'conditions': ['no such']}, "'no such'"),
  ],
)
def test_senseless_arguments_are_refused(dataset, arguments, message):
  with pytest.raises(ValueError, match=message):
    batches(dataset, seed=0, **arguments)


def test_a_condition_that_was_not_added_is_refused(dataset):
  embedded = next(c.name for c in conditions.ALL if c.embedded)
  with pytest.raises(ValueError, match='added'):
    batches(dataset, batch_size=2, seed=0, conditions=[embedded])


def test_conditions_of_another_version_are_refused(prepared, monkeypatch):
  dataset = load_dataset(prepared)
  condition = conditions.by_name(dataset.conditions)[0]
  spec = condition.spec(33)
  monkeypatch.setattr(
      type(condition), 'spec', lambda self, size: type(spec)(
          (3,), 'uint8', 0, 1, 'x', 'a newer version'
      )
  )  # fmt: skip
  with pytest.raises(ValueError, match='Prepare the data again'):
    batches(dataset, batch_size=2, seed=0)
