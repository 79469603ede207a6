from __future__ import annotations

import json

import numpy as np
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from composer_jax.training import metrics
from composer_jax.training.metrics import MetricsWriter


def lines(workdir):
  return [json.loads(line) for line in (workdir / 'metrics.jsonl').open()]


def events(workdir):
  """Scalars and tags of the event files: length, CRC, payload, CRC each."""
  found = []
  for path in sorted((workdir / 'tensorboard').glob('events*')):
    data, place = path.read_bytes(), 0
    while place < len(data):
      size = int.from_bytes(data[place : place + 8], 'little')
      event = Event.FromString(data[place + 12 : place + 12 + size])
      found += [(event.step, value.tag, value) for value in event.summary.value]
      place += 16 + size
  return found


def test_numbers_go_to_lines_and_to_event_files(tmp_path):
  writer = MetricsWriter(tmp_path, 0)
  writer.write(1, {'loss': 0.5, 'rate': 2.0})
  writer.write(2, {'loss': 0.25, 'rate': 2.0})
  writer.close()
  rows = lines(tmp_path)
  assert rows[0].pop('time') <= rows[1].pop('time')
  assert rows == [
    {'step': 1, 'loss': 0.5, 'rate': 2.0},
    {'step': 2, 'loss': 0.25, 'rate': 2.0},
  ]
  scalars = {(step, tag): value.simple_value for step, tag, value in events(tmp_path)}
  assert scalars[1, 'loss'] == 0.5
  assert scalars[2, 'loss'] == 0.25


def test_what_a_dead_run_wrote_after_its_checkpoint_is_dropped(tmp_path):
  writer = MetricsWriter(tmp_path, 0)
  for step in range(1, 5):
    writer.write(step, {'loss': float(step)})
  writer.close()
  with (tmp_path / 'metrics.jsonl').open('a') as file:
    file.write('{"step": 5, "lo')  # Killed in the middle of a line.
  writer = MetricsWriter(tmp_path, 3)
  writer.write(4, {'loss': 40.0})
  writer.close()
  assert [(line['step'], line['loss']) for line in lines(tmp_path)] == [
    (1, 1.0),
    (2, 2.0),
    (3, 3.0),
    (4, 40.0),
  ]


def test_pictures_are_files_that_can_be_looked_at(tmp_path):
  pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
  writer = MetricsWriter(tmp_path, 0)
  writer.image(7, 'samples', pixels)
  writer.close()
  with Image.open(tmp_path / 'samples' / '00000007.png') as image:
    np.testing.assert_array_equal(np.asarray(image), pixels)
  ((step, tag, value),) = [e for e in events(tmp_path) if e[2].HasField('image')]
  assert (step, tag) == (7, 'samples')
  assert (value.image.height, value.image.width) == (6, 9)


def test_the_peak_is_the_operations_of_a_matrix_product_over_its_best_time(monkeypatch):
  clock = iter([0.0, 4.0, 10.0, 12.0, 20.0, 25.0])
  monkeypatch.setattr(metrics.time, 'perf_counter', lambda: next(clock))
  assert metrics.peak_flops(64) == 2 * 64**3 / 2.0
