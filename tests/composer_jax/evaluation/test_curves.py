from __future__ import annotations

import json
import os
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from composer_jax.evaluation.curves import Curve, draw_svg, read_curves, smooth
from composer_jax.training.metrics import MetricsWriter


def write(model_dir, stage, rows, tail=''):
  folder = model_dir / stage
  folder.mkdir(parents=True)
  path = folder / 'metrics.jsonl'
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows) + tail)
  return path


def curve(values, steps=None, **names):
  values = np.array(values, np.float64)
  steps = np.arange(1, len(values) + 1) if steps is None else np.array(steps)
  return Curve(**{'stage': 'base', 'name': 'loss'} | names, steps=steps, values=values)


class Drawing:
  """What a person reads off a drawn curve."""

  def __init__(self, svg):
    self.root = ElementTree.fromstring(svg)
    _, _, self.width, self.height = map(float, self.root.get('viewBox').split())
    self.raw, self.bold = (
      np.array([pair.split(',') for pair in path.get('d')[1:].split('L')], float)
      for path in self.root.iter('path')
    )
    texts = list(self.root.iter('text'))
    lines = [float(line.get('y1')) for line in self.root.iter('line')]
    self.ys = {
      number(text.text): y for text, y in zip(texts[: len(lines)], lines, strict=True)
    }
    self.xs = {number(text.text): float(text.get('x')) for text in texts[len(lines) :]}


def number(label):
  return float(label.removesuffix('k')) * (1000 if label.endswith('k') else 1)


def test_each_changing_number_is_a_curve_with_losses_first(tmp_path):
  rows = [
    {'step': i, 'rate': 0.1 * i, 'loss': 5 - i, 'still': 1, 'aux_loss': i}
    for i in (1, 2)
  ]
  write(tmp_path, 'base', rows)
  curves = read_curves(tmp_path)
  assert [c.name for c in curves] == ['aux_loss', 'loss', 'rate']
  loss = curves[1]
  assert loss.stage == 'base'
  np.testing.assert_array_equal(loss.steps, [1, 2])
  np.testing.assert_array_equal(loss.values, [4, 3])
  assert loss.values.dtype == np.float64


def test_what_is_no_number_is_no_curve(tmp_path):
  rows = [
    {
      'step': i,
      'loss': float(i),
      'name': f'n{i}',
      'done': i > 1,
      'more': [i],
      'no': None,
    }
    for i in (1, 2)
  ]
  write(tmp_path, 'base', rows)
  assert [c.name for c in read_curves(tmp_path)] == ['loss']


def test_values_that_are_not_finite_are_passed_over(tmp_path):
  losses = [4.0, float('nan'), 2.0, float('inf'), 1.0]
  write(tmp_path, 'base', [{'step': i, 'loss': x} for i, x in enumerate(losses)])
  (loss,) = read_curves(tmp_path)
  np.testing.assert_array_equal(loss.steps, [0, 2, 4])
  np.testing.assert_array_equal(loss.values, [4, 2, 1])


def test_a_resumed_run_counts_once_and_with_its_later_lines(tmp_path):
  steps, losses = [1, 2, 3, 2, 3, 4], [9, 8, 7, 6, 5, 4]
  rows = [{'step': s, 'loss': x} for s, x in zip(steps, losses, strict=True)]
  write(tmp_path, 'base', rows)
  (loss,) = read_curves(tmp_path)
  np.testing.assert_array_equal(loss.steps, [1, 2, 3, 4])
  np.testing.assert_array_equal(loss.values, [9, 6, 5, 4])


@pytest.mark.parametrize(
  'tail', ['{"step": 3, "lo', '\x00\x00', '3\n', '[1]\n', '{"loss": 1}\n', '\n']
)
def test_a_broken_line_spoils_no_other(tmp_path, tail):
  write(tmp_path, 'base', [{'step': i, 'loss': 3 - i} for i in (1, 2)], tail)
  (loss,) = read_curves(tmp_path)
  np.testing.assert_array_equal(loss.steps, [1, 2])


def test_one_point_is_no_curve(tmp_path):
  write(tmp_path, 'base', [{'step': 1, 'loss': 2.0}])
  assert read_curves(tmp_path) == []


def test_a_model_without_metrics_has_no_curves(tmp_path):
  (tmp_path / 'base').mkdir()
  (tmp_path / 'metrics.jsonl').write_text('{"step": 1, "loss": 2}\n')
  assert read_curves(tmp_path) == []
  assert read_curves(tmp_path / 'absent') == []


def test_stages_come_in_the_order_in_which_they_say_they_began(tmp_path):
  for stage, began in (('base', 200.0), ('upsampler', 300.0), ('encoder', 100.0)):
    rows = [{'step': i, 'time': began + i, 'loss': i} for i in (1, 2)]
    path = write(tmp_path, stage, rows)
    os.utime(path, (1000 - began, 1000 - began))
  assert [c.stage for c in read_curves(tmp_path)] == ['encoder', 'base', 'upsampler']
  assert {c.name for c in read_curves(tmp_path)} == {'loss'}


def test_stages_that_do_not_say_come_in_the_order_in_which_they_last_wrote(tmp_path):
  for stage, wrote in (('base', 200), ('encoder', 100)):
    path = write(tmp_path, stage, [{'step': i, 'loss': i} for i in (1, 2)])
    os.utime(path, (wrote, wrote))
  assert [c.stage for c in read_curves(tmp_path)] == ['encoder', 'base']


def test_what_training_writes_tells_when_a_stage_began(tmp_path):
  # The first stage goes on after the second one has begun.
  for stage, steps in (('encoder', (1, 2)), ('base', (1, 2)), ('encoder', (3,))):
    (tmp_path / stage).mkdir(exist_ok=True)
    writer = MetricsWriter(tmp_path / stage, steps[0] - 1)
    for step in steps:
      writer.write(step, {'loss': 1 / step})
    writer.close()
  assert [c.stage for c in read_curves(tmp_path)] == ['encoder', 'base']


@pytest.mark.parametrize(
  ('values', 'logarithmic'),
  [([1, 4], False), ([1, 4.1], True), ([0, 9], False), ([-1, 9], False)],
)
def test_positive_values_of_a_wide_span_are_logarithmic(values, logarithmic):
  assert curve(values).logarithmic is logarithmic


def test_smoothing_weighs_by_how_long_ago():
  values = np.random.default_rng(0).normal(size=200)
  keep = 0.5 ** (1 / 4)  # Half in the last 2%, which is four values.
  for end in (1, 2, 57, 200):
    weights = keep ** np.arange(end)[::-1]
    expected = (weights * values[:end]).sum() / weights.sum()
    assert smooth(values)[end - 1] == pytest.approx(expected)


def test_half_of_the_weight_lies_in_the_last_fiftieth():
  values = np.repeat([0.0, 1.0], [980, 20])
  assert smooth(values)[-1] == pytest.approx(0.5, abs=1e-4)


def test_points_lie_where_the_axes_say():
  steps, values = [100, 300, 900, 1100], [-2.0, 1.5, 0.3, 6.0]
  drawn = Drawing(draw_svg(curve(values, steps)))
  assert len(drawn.ys) >= 2
  assert len(drawn.xs) >= 2
  for axis, data, column in ((drawn.ys, values, 1), (drawn.xs, steps, 0)):
    labels = sorted(axis)
    expected = np.polyval(
      np.polyfit(labels, [axis[label] for label in labels], 1), data
    )
    np.testing.assert_allclose(drawn.raw[:, column], expected, atol=0.15)


def test_points_lie_where_a_logarithmic_axis_says():
  values = [3000.0, 0.5, 20.0, 1.0]
  drawn = Drawing(draw_svg(curve(values)))
  labels = sorted(drawn.ys)
  assert {1, 10, 100, 1000} <= set(labels)
  line = np.polyfit(np.log10(labels), [drawn.ys[label] for label in labels], 1)
  expected = np.polyval(line, np.log10(values))
  np.testing.assert_allclose(drawn.raw[:, 1], expected, atol=0.15)


def test_the_bold_line_is_the_smoothed_one():
  values = np.random.default_rng(1).uniform(1, 3, 300)
  drawn = Drawing(draw_svg(curve(values)))
  labels = sorted(drawn.ys)
  line = np.polyfit(labels, [drawn.ys[label] for label in labels], 1)
  expected = np.polyval(line, smooth(values))
  np.testing.assert_allclose(drawn.bold[:, 1], expected, atol=0.15)
  assert drawn.bold[:, 1].std() < drawn.raw[:, 1].std()


@pytest.mark.parametrize(
  'values',
  [
    [1, 2],
    [-1e-9, 1e-9],
    [0, 1e6],
    [1e-7, 1],
    [12345, 12346],
    np.geomspace(1e-3, 1e5, 3000),
    [1000.0, *np.sin(np.arange(2000))],
    [5.0] * 2000 + [6.0],
  ],
)
def test_nothing_is_drawn_outside_and_ticks_differ(values):
  drawn = Drawing(draw_svg(curve(values)))
  for path in (drawn.raw, drawn.bold):
    assert np.isfinite(path).all()
    assert (path >= 0).all()
    assert (path <= [drawn.width, drawn.height]).all()
    assert len(path) <= 400
  texts = list(drawn.root.iter('text'))
  assert len(drawn.ys) + len(drawn.xs) == len(texts)  # No label comes twice.
  assert all(0 <= y <= drawn.height for y in drawn.ys.values())
  assert all(0 <= x <= drawn.width for x in drawn.xs.values())
  assert len(drawn.ys) >= 2
  assert len(drawn.xs) >= 2


def test_one_wild_step_leaves_the_axis_readable():
  values = [50.0, *np.linspace(1.45, 1.25, 2000)]
  assert curve(values).logarithmic
  drawn = Drawing(draw_svg(curve(values)))
  assert len(drawn.ys) >= 2
  # The rest still fills most of the height.
  assert np.ptp(drawn.raw[10:, 1]) > 0.6 * drawn.height


def test_a_drawing_says_what_it_shows_and_escapes_names():
  name = 'a<b>&"c"'
  svg = draw_svg(curve([4.0, 2.5], [10, 20], stage=name))
  label = ElementTree.fromstring(svg).get('aria-label')
  assert label == f'{name}, loss by step: from 4 at step 10 to 2.5 at step 20.'


def test_a_drawing_takes_its_colours_from_the_page():
  svg = draw_svg(curve([4.0, 2.5, 1.0]))
  strokes = set(re.findall(r'(?:stroke|fill)="([^"]+)"', svg))
  assert strokes <= {'none', 'var(--accent)', 'var(--rule)', 'currentColor'}
  assert 'var(--accent)' in strokes
