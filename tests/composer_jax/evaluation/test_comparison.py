from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest
from PIL import Image

from composer_jax.evaluation.comparison import read_rows, table, write_comparison

LEVELS = {'000-a': 3.0, '001-b': 1.0, '002-c': 2.0}


@pytest.fixture
def out(tmp_path):
  """Three runs whose loss falls to a level, and one that has not begun."""
  for name, level in LEVELS.items():
    (tmp_path / name).mkdir()
    lines = [
      {'step': step, 'time': 1.0 * step, 'loss': level * (1 + math.exp(-step / 5))}
      for step in range(1, 101)
    ]
    text = '\n'.join(map(json.dumps, lines)) + '\n'
    (tmp_path / name / 'metrics.jsonl').write_text(text)
  return tmp_path


def rows(out, goal='min', metric='loss'):
  names = [*LEVELS, '003-d']
  states = dict.fromkeys(LEVELS, 'finished') | {'003-d': 'missing'}
  values = {name: {'train.seed': index} for index, name in enumerate(names)}
  return read_rows(out, states, values, metric, goal)


def test_the_best_is_first_and_what_is_not_known_is_last(out):
  found = rows(out)
  assert [row.name for row in found] == ['001-b', '002-c', '000-a', '003-d']
  assert [row.steps for row in found] == [100, 100, 100, None]
  assert [row.last for row in found[:3]] == pytest.approx([1, 2, 3], rel=1e-3)
  assert [row.name for row in rows(out, goal='max')][:2] == ['000-a', '002-c']


def test_runs_are_ranked_by_what_evaluate_found(out):
  for name, level in LEVELS.items():
    folder = out / name / 'evaluation'
    folder.mkdir()
    figures = {'all/palette_cosine': level / 4}
    (folder / 'evaluation.json').write_text(json.dumps({'figures': figures}))
  found = rows(out, goal='max', metric='all/palette_cosine')
  assert [row.name for row in found] == ['000-a', '002-c', '001-b', '003-d']
  assert [row.last for row in found] == [0.75, 0.5, 0.25, None]


def test_the_table_lines_up(out):
  lines = table(rows(out), 'loss').splitlines()
  assert lines[0].split() == ['run', 'train.seed', 'state', 'steps', 'loss']
  assert lines[1].split() == ['001', '1', 'finished', '100', '1']
  assert lines[4].split() == ['003', '3', 'missing']
  assert (
    len(
      {
        line.index(word)
        for line, word in zip(lines, ['state', *['finished'] * 3], strict=False)
      }
    )
    == 1
  )


def test_files_hold_the_same(out):
  write_comparison(out, rows(out), 'loss')
  with (out / 'comparison.csv').open() as file:
    lines = list(csv.DictReader(file))
  listed = json.loads((out / 'comparison.json').read_text())
  assert [line['run'] for line in lines] == [one['run'] for one in listed]
  assert float(lines[0]['loss']) == pytest.approx(listed[0]['loss'], rel=1e-3)
  assert lines[3]['loss'] == '' and listed[3]['loss'] is None


def test_the_plot_shows_each_run_in_a_colour_of_its_own(out):
  write_comparison(out, rows(out), 'loss')
  pixels = np.asarray(Image.open(out / 'comparison.png').convert('RGB')).reshape(-1, 3)
  # The ends and the middle of viridis, as matplotlib's documentation has it.
  for colour in ((68, 1, 84), (253, 231, 37)):
    assert (np.abs(pixels.astype(int) - colour).max(axis=1) < 6).sum() > 200


def test_a_metric_that_nobody_has_makes_no_plot(out):
  found = rows(out, metric='accuracy')
  assert all(row.last is None for row in found)
  write_comparison(out, found, 'accuracy')
  assert not (out / 'comparison.png').exists()
