from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from composer_jax import conditions
from composer_jax.evaluation.fidelity import hold_out
from composer_jax.evaluation.page import figure

KINDS = ('asked', 'shuffled', 'ceiling')


def text_of(element):
  return ' '.join(''.join(element.itertext()).split())


def pixels_of(image):
  data = base64.b64decode(image.get('src').removeprefix('data:image/png;base64,'))
  return np.array(Image.open(io.BytesIO(data)))


def name_of(image):
  return image['text'] or image['key']


@pytest.fixture(scope='module')
def pictures(written):
  """Pixels by alternative text; a mixture may show the same picture again."""
  return {image.get('alt'): pixels_of(image) for image in written.page.iter('img')}


@pytest.fixture(scope='module')
def held_out(written):
  report = written.report
  records = [written.data[image['index']] for image in report['images']]
  composer = written.composer
  return hold_out(records, composer.names, encoder=composer.encoder, seed=2)


def rows_of(written):
  """Each row of figures with the metric it shows."""
  tables = [e for e in written.page.iter('div') if e.get('class') == 'card figures']
  for table, key in zip(tables, ('alone', 'together'), strict=True):
    rows = [row for row in table.iter('tr') if row.get('data-metric')]
    metrics = [(one, m) for one in written.report[key] for m in one['metrics']]
    assert len(rows) == len(metrics)
    for row, (one, metric) in zip(rows, metrics, strict=True):
      assert row.get('data-condition') == one['condition']
      assert row.get('data-metric') == metric['name']
      yield row, one, metric


@pytest.mark.parametrize(
  ('value', 'shown'),
  [(0.123, '0.12'), (-0.5, '-0.50'), (9.87, '9.87'), (10, '10.0'), (-31.26, '-31.3')],
)
def test_figures_have_three_digits_or_so(value, shown):
  assert figure(value) == shown


def test_the_tables_show_the_figures_of_the_report(written):
  count = 0
  for row, _, metric in rows_of(written):
    cells = {c.get('data-label'): text_of(c) for c in row if c.get('data-label')}
    shown = [float(x) for kind in KINDS for x in re.findall(r'-?[\d.]+', cells[kind])]
    ends = ('mean', 'low', 'high')
    exact = [metric[kind][end] for kind in ('asked', 'shuffled') for end in ends]
    exact.append(metric['ceiling']['mean'])
    tolerance = [0.0501 if abs(value) >= 9.99 else 0.00501 for value in exact]
    assert (np.abs(np.subtract(shown, exact)) <= tolerance).all()
    verdict = text_of(next(c for c in row if c.get('class') == 'badge-cell'))
    assert verdict == ('apart' if metric['apart'] else 'not apart')
    label = text_of(next(c for c in row if c.get('class') == 'metric'))
    assert ('↓' in label) is not metric['higher_is_better']
    count += 1
  assert count > 2 * len(conditions.ALL)


def test_the_left_out_images_are_counted_beside_their_condition(written):
  silent = sum(not image['text'] for image in written.report['images'])
  assert silent
  for row, one, _ in rows_of(written):
    label = text_of(next(c for c in row if c.get('class') == 'metric'))
    if one['condition'] == 'caption':
      assert one['left_out'] == silent
      assert f'({8 - silent} images, {silent} without)' in label
    else:
      assert 'without' not in label


def test_the_marks_lie_in_proportion_with_better_on_the_right(written):
  both = set()
  for row, _, metric in rows_of(written):
    at, bands = {}, {}
    for mark in row.iter('i'):
      place = dict(re.findall(r'(left|right):([-\d.]+)%', mark.get('style')))
      left, right = float(place['left']), 100 - float(place.get('right', 'nan'))
      match mark.get('class').split():
        case ['dot', kind]:
          at[kind] = left
        case ['ceiling']:
          at['ceiling'] = left
        case ['band', kind]:
          bands[kind] = left, right
    means = [metric[kind]['mean'] for kind in KINDS]
    values = [0, *means]
    values += [metric[k][end] for k in ('asked', 'shuffled') for end in ('low', 'high')]
    values += [metric['ceiling']['low'], metric['ceiling']['high']]
    low, high = min(values), max(values)
    sign = 1 if metric['higher_is_better'] else -1
    start = low if metric['higher_is_better'] else high

    def place_of(value, sign=sign, start=start, width=high - low):
      return 100 * sign * (value - start) / width

    for kind, mean in zip(KINDS, means, strict=True):
      assert at[kind] == pytest.approx(place_of(mean), abs=0.011)
    for kind, found in bands.items():
      ends = sorted(place_of(metric[kind][end]) for end in ('low', 'high'))
      assert found == pytest.approx(ends, abs=0.011)
    assert bands.keys() == {'asked', 'shuffled'}
    both.add(metric['higher_is_better'])
  assert both == {True, False}


def test_each_shown_image_stands_beside_what_was_made_of_it(
  written, held_out, pictures
):
  composer, report = written.composer, written.report
  for index, image in enumerate(report['images'][:4]):
    name = name_of(image)
    np.testing.assert_array_equal(
      pictures[f'Original: {name}'], written.data[image['index']]['image']
    )
    for condition in held_out.conditions:
      if not held_out.present[condition.name][index]:
        continue
      part = held_out.asked[condition.name][[index]]
      expected = composer.compose({condition.name: part}, seeds=[2 + index])[0]
      found = pictures[f'Recomposed from {condition.name} alone of: {name}']
      np.testing.assert_array_equal(found, expected)
      drawn = condition.draw(part[0])
      found = pictures[f'Condition {condition.name} of: {name}']
      np.testing.assert_array_equal(found, drawn)


def test_an_image_without_a_condition_says_so(written, pictures):
  names = [name_of(image) for image in written.report['images'][:4]]
  silent = [name for name in names if '.png' in name]
  assert 0 < len(silent) < 4
  for name in names:
    assert (f'Condition caption of: {name}' in pictures) is (name not in silent)
    note = f'Composed without conditions, as this image has no caption: {name}'
    assert (note in pictures) is (name in silent)
  absent = [e for e in written.page.iter('div') if e.get('class') == 'absent']
  assert [text_of(e) for e in absent] == ['none'] * len(silent)


def test_scores_are_of_the_image_they_stand_below(written):
  alone = {one['condition']: one for one in written.report['alone']}
  works = list(written.page.iter('article'))
  assert len(works) == 4
  for index, work in enumerate(works):
    captions = [text_of(c) for c in work.iter('figcaption')]
    for name, one in alone.items():
      shown = next(c for c in captions if c.split()[0] == name)
      if index not in one['indices']:
        assert shown == name
        continue
      value = one['metrics'][0]['asked']['values'][one['indices'].index(index)]
      tolerance = 0.0501 if abs(value) >= 9.99 else 0.00501
      assert float(shown.split()[1]) == pytest.approx(value, abs=tolerance)


def test_each_cell_of_a_mixture_has_its_two_lenders(written, held_out, pictures):
  tables = [e for e in written.page.iter('div') if e.get('class') == 'card mixture']
  local = [c.name for c in held_out.conditions if c.local]
  loose = [c.name for c in held_out.conditions if not c.local]
  titles = [next(table.iter('h3')).text for table in tables]
  assert titles == [f'{a} with {b}' for a in local for b in loose]
  names = [name_of(image) for image in written.report['images']]
  for table in tables:
    cells = [image for cell in table.iter('td') for image in cell.iter('img')]
    assert len(cells) in (2, 4)  # Two rows, of which a column may have no caption.
    for cell in cells:
      pattern = r'Composed from (\w+) of (.*) and (\w+) of (.*)'
      a, row, b, column = re.fullmatch(pattern, cell.get('alt')).groups()
      row, column = names.index(row), names.index(column)
      assert row != column
      stored = {a: held_out.asked[a][[row]], b: held_out.asked[b][[column]]}
      expected = written.composer.compose(stored, seeds=[2 + row])[0]
      np.testing.assert_array_equal(pixels_of(cell), expected)


def test_every_picture_is_described(written):
  described = [image.get('alt') for image in written.page.iter('img')]
  assert all(described)


def test_links_lead_to_sections_that_are_there(written):
  ids = [e.get('id') for e in written.page.iter() if e.get('id')]
  assert len(set(ids)) == len(ids)
  links = [a.get('href') for a in written.page.iter('a')]
  assert links
  assert {link.removeprefix('#') for link in links} == set(ids)


def test_training_curves_are_drawn_stage_by_stage(written):
  stages = [e for e in written.page.iter('h3') if e.get('class') == 'stage']
  assert sorted(map(text_of, stages)) == ['base', 'encoder']
  labels = [svg.get('aria-label') for svg in written.page.iter('svg')]
  assert len(labels) == 4
  assert 'base, loss by step: from 1 at step 1 to 0.125 at step 8.' in labels


def test_every_condition_is_explained_with_its_source(written):
  (section,) = [e for e in written.page.iter('section') if e.get('id') == 'conditions']
  rows = [row for row in section.iter('tr') if row.find('td') is not None]
  assert [row.find('th').text for row in rows] == list(written.composer.names)
  for row, condition in zip(rows, conditions.ALL, strict=True):
    _, source = row.findall('td')
    assert text_of(source) == condition.spec(32).source
