from __future__ import annotations

import base64
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

import composer_jax
from composer_jax import conditions
from composer_jax.evaluation.report import summary, write_report

FILES = ('index.html', 'report.json')


def text_of(element):
  return ' '.join(''.join(element.itertext()).split())


class Other:
  """A data set that differs from another in some respect."""

  def __init__(self, data, count=12, **info):
    self.info, self._data, self._count = data.info | info, data, count

  def __len__(self):
    return self._count

  def __getitem__(self, index):
    return self._data[index]


@pytest.fixture
def composer(written):
  """A composer that knows what that of the report knows, with its own count."""
  return type(written.composer)(written.data.records)


def test_the_page_needs_no_other_file(written):
  sources = []
  for element in written.page.iter():
    assert element.tag not in ('script', 'iframe', 'object', 'embed', 'base')
    for name, value in element.attrib.items():
      assert not name.startswith('on')
      if name == 'src':
        sources.append(value)
      elif name == 'href':
        assert value == 'data:,' or value.startswith('#')
      else:
        assert name not in ('srcset', 'data', 'action', 'poster', 'background')
        assert 'url(' not in value
  assert len(sources) > 100
  for source in sources:
    kind, data = source.split(',')
    assert kind == 'data:image/png;base64'
    with Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as image:
      assert image.format == 'PNG'
      image.load()
  (style,) = written.page.iter('style')
  assert not re.search(r'url\(|@import|https?:', style.text)


def test_only_the_two_files_and_the_cache_are_left(written):
  assert {path.name for path in written.out.iterdir()} == {*FILES, 'cache'}
  assert {path.suffix for path in (written.out / 'cache').iterdir()} == {'.npy'}


def test_captions_and_file_names_are_shown_as_they_are(written):
  titles = [text_of(h3) for h3 in written.page.iter('h3')]
  descriptions = [image.get('alt') for image in written.page.iter('img')]
  shown = written.report['images'][:4]
  assert {bool(image['text']) for image in shown} == {True, False}
  for image in shown:
    name = image['text'] or image['key']
    assert '<' in name and '"' in name
    assert name in titles
    assert f'Original: {name}' in descriptions
  assert len(descriptions) == len(list(written.page.iter('img')))


def test_the_rest_of_what_comes_from_outside_is_shown_as_it_is(written):
  info = written.data.info
  text = text_of(written.page)
  for name in ('source', 'licence', 'credit'):
    assert info[name] in text
  (code,) = [code for pre in written.page.iter('pre') for code in pre]
  assert code.text == written.options['commands'][0]
  (section,) = [e for e in written.page.iter('section') if e.get('id') == 'data']
  rows = [[text_of(cell) for cell in row] for row in section.iter('tr')]
  assert rows[1:] == [
    ['not an image', '3', 'a<i>.png: no image'],
    ['truncated', '2', ''],
  ]


def test_what_preparing_left_out_is_counted(written):
  (section,) = [e for e in written.page.iter('section') if e.get('id') == 'data']
  pairs = zip(section.iter('dt'), section.iter('dd'), strict=True)
  terms = {dt.text: text_of(dd) for dt, dd in pairs}
  assert terms['Left out'] == '5'
  assert terms['Kept'] == (
    '1,200 images of 32 × 32 pixels: 1,188 train, 12 test; 800 with a caption'
  )
  assert written.report['data']['reasons'][0] == {
    'reason': 'not_an_image',
    'count': 3,
    'key': 'a<i>.png',
    'message': 'a<i>.png: no image',
  }


def test_the_file_holds_what_was_returned(written):
  text = (written.out / 'report.json').read_text('utf-8')
  assert json.loads(text) == written.report
  assert written.report['version'] == composer_jax.__version__
  assert written.report['model'] == list(written.composer.fingerprint)
  assert written.report['settings'] == {
    'measured': 8,
    'shown': 4,
    'seed': 2,
    'image_size': 32,
    'condition_size': 32,
    'confidence': 0.95,
    'resamples': 10_000,
  }


def test_every_condition_is_judged_alone_and_together(written):
  names = [c.name for c in conditions.ALL]
  for key in ('alone', 'together'):
    assert [one['condition'] for one in written.report[key]] == names
    for one in written.report[key]:
      assert one['images'] == len(one['indices']) == 8 - one['left_out']
      for metric in one['metrics']:
        for kind in ('asked', 'shuffled', 'ceiling', 'gain'):
          figures = metric[kind]
          assert len(figures['values']) == one['images']
          assert figures['mean'] == pytest.approx(np.mean(figures['values']))
          assert figures['low'] <= figures['mean'] <= figures['high']


def test_the_means_of_the_file_are_those_of_the_page(written):
  found = {}
  for row in written.page.iter('tr'):
    if metric := row.get('data-metric'):
      cells = {c.get('data-label'): text_of(c) for c in row if c.get('data-label')}
      place = row.get('data-condition'), metric
      figures = [cells[kind].split()[0] for kind in ('asked', 'shuffled', 'ceiling')]
      found.setdefault(place, []).append([float(x) for x in figures])
  expected = {}
  for key in ('alone', 'together'):
    for one in written.report[key]:
      for metric in one['metrics']:
        means = [metric[k]['mean'] for k in ('asked', 'shuffled', 'ceiling')]
        expected.setdefault((one['condition'], metric['name']), []).append(means)
  assert found.keys() == expected.keys()
  for place, means in expected.items():
    # Numbers of ten or more are shown with one digit after the point.
    digits = np.where(np.abs(means) >= 9.99, 0.0501, 0.00501)
    assert (np.abs(np.subtract(found[place], means)) <= digits).all()


def test_the_page_says_how_many_conditions_steer(written):
  apart = [one['metrics'][0]['apart'] for one in written.report['alone']]
  assert 0 < sum(apart) < len(apart)  # Texts and colours have nothing in common.
  facts = next(e for e in written.page.iter('div') if e.get('class') == 'facts')
  number, what = facts[0]
  assert number.text == f'{sum(apart)} of 8'
  assert what.text.startswith('conditions steer')


def test_images_are_drawn_at_random_and_once(written, composer, data, tmp_path):
  chosen = [image['index'] for image in written.report['images']]
  assert len(set(chosen)) == 8
  assert chosen != sorted(chosen)
  for image in written.report['images']:
    assert image['key'] == data[image['index']]['key']
  options = {'num_shown': 2, 'num_measured': 8, 'progress': False}
  other = write_report(composer, data, tmp_path, seed=9, **options)
  assert [image['index'] for image in other['images']] != chosen


def test_the_same_data_model_and_seed_give_the_same_files(
  written, composer, data, tmp_path
):
  write_report(composer, data, tmp_path / 'new', **written.options)
  assert composer.calls > 0
  for name in FILES:
    assert (tmp_path / 'new' / name).read_bytes() == (written.out / name).read_bytes()


def test_a_second_run_composes_nothing(written, composer, data):
  before = {name: (written.out / name).read_bytes() for name in FILES}
  report = write_report(composer, data, written.out, **written.options)
  assert composer.calls == 0
  assert report == written.report
  assert {name: (written.out / name).read_bytes() for name in FILES} == before


def test_a_run_that_was_broken_off_goes_on_where_it_stopped(
  written, composer, data, tmp_path
):
  compose, done = composer.compose, 5

  def breaking(*args, **kwargs):
    if composer.calls == done:
      raise KeyboardInterrupt
    return compose(*args, **kwargs)

  composer.compose = breaking
  with pytest.raises(KeyboardInterrupt):
    write_report(composer, data, tmp_path, **written.options)
  assert not (tmp_path / 'index.html').exists()
  composer.compose = compose
  write_report(composer, data, tmp_path, **written.options)
  fresh = type(composer)(data.records)
  write_report(fresh, data, tmp_path / 'in one go', **written.options)
  assert composer.calls == fresh.calls > done
  for name in FILES:
    assert (tmp_path / name).read_bytes() == (written.out / name).read_bytes()


@pytest.mark.parametrize('change', ['model', 'seed', 'images'])
def test_what_was_made_otherwise_is_not_taken_from_the_cache(
  composer, data, tmp_path, change
):
  options = {'num_shown': 2, 'num_measured': 3, 'progress': False}
  write_report(composer, data, tmp_path, **options)
  first, composer.calls = composer.calls, 0
  if change == 'model':
    composer.fingerprint = ('lookup', 2)
  else:
    options |= {'seed': 4} if change == 'seed' else {'num_measured': 4}
  write_report(composer, data, tmp_path, **options)
  # The gallery is that of the same images even if more are measured.
  assert composer.calls == first if change != 'images' else 0 < composer.calls < first


class Same(Other):
  """As many images, all of them one and the same."""

  def __init__(self, data, index):
    super().__init__(data, 3)
    self._index = index

  def __getitem__(self, index):
    return self._data[self._index]


@pytest.mark.parametrize('change', ['noise', 'conditions'])
def test_the_cache_tells_noise_and_conditions_apart(composer, data, tmp_path, change):
  composer.names = ('palette',)
  options = {'num_shown': 2, 'num_measured': 3, 'progress': False}
  write_report(composer, Same(data, 1), tmp_path, seed=0, **options)
  first, composer.calls = composer.calls, 0
  write_report(composer, Same(data, 1), tmp_path, seed=0, **options)
  assert composer.calls == 0
  index, seed = (1, 1) if change == 'noise' else (7, 0)
  write_report(composer, Same(data, index), tmp_path, seed=seed, **options)
  assert composer.calls == first


def test_without_an_encoder_the_embedded_conditions_are_not_judged(
  composer, data, tree, tmp_path
):
  composer.encoder = None
  options = {'num_shown': 2, 'num_measured': 2, 'progress': False}
  report = write_report(composer, data, tmp_path, **options)
  judged = [one['condition'] for one in report['alone']]
  assert judged == [c.name for c in conditions.ALL if not c.embedded]
  page = tree((tmp_path / 'index.html').read_text('utf-8'))
  rows = [row for row in page.iter('tr') if 'no dual encoder' in text_of(row)]
  assert [row.find('th').text for row in rows] == ['caption', 'semantics']


def test_a_model_of_one_condition_has_nothing_to_put_together(
  composer, data, tree, tmp_path
):
  composer.names = ('palette',)
  options = {'num_shown': 2, 'num_measured': 3, 'progress': False}
  report = write_report(composer, Other(data, counts={}), tmp_path, **options)
  assert [one['condition'] for one in report['alone']] == ['palette']
  assert report['together'] == []
  assert report['data']['reasons'] == []
  page = tree((tmp_path / 'index.html').read_text('utf-8'))
  sections = [e.get('id') for e in page.iter('section')]
  assert sections == ['figures', 'images', 'conditions', 'data', 'again']
  assert 'all together' not in summary(report)


def test_a_data_set_that_says_nothing_of_itself_gives_a_page(
  composer, data, tree, tmp_path
):
  class Bare(Other):
    def __init__(self):
      super().__init__(data, 4)
      self.info = {'size': 32}

    def __getitem__(self, index):
      return {k: v for k, v in data[index].items() if k not in ('key', 'text')}

  options = {'num_shown': 2, 'num_measured': 4, 'progress': False}
  report = write_report(composer, Bare(), tmp_path, **options)
  assert all(one['condition'] != 'caption' for one in report['alone'])
  page = tree((tmp_path / 'index.html').read_text('utf-8'))
  titles = [text_of(h3) for h3 in page.iter('h3')]
  assert titles[:2] == ['image 1', 'image 2']
  assert 'None' not in text_of(page)


def test_there_are_as_many_images_as_there_are(composer, data, tmp_path):
  few = Other(data, 3)
  options = {'num_shown': 8, 'num_measured': 96, 'progress': False}
  settings = write_report(composer, few, tmp_path, **options)['settings']
  assert (settings['measured'], settings['shown']) == (3, 3)


@pytest.mark.parametrize(
  ('shown', 'measured', 'held_out'), [(1, 8, 12), (4, 1, 12), (4, 8, 1), (-3, 8, 12)]
)
def test_too_few_images_are_refused(
  composer, data, tmp_path, shown, measured, held_out
):
  with pytest.raises(ValueError, match='expected at least 2 of each'):
    write_report(
      composer,
      Other(data, held_out),
      tmp_path / 'out',
      num_shown=shown,
      num_measured=measured,
    )
  assert not (tmp_path / 'out').exists()


def test_images_of_another_size_are_refused(composer, data, tmp_path):
  with pytest.raises(ValueError, match='have 64 pixels a side, the model expects 32'):
    write_report(composer, Other(data, size=64), tmp_path / 'out')
  assert composer.calls == 0


def test_the_summary_has_a_line_for_each_condition(written):
  lines = summary(written.report).splitlines()
  for title, key in (('each alone:', 'alone'), ('all together:', 'together')):
    begin = lines.index(title) + 2
    for line, one in zip(lines[begin:], written.report[key], strict=False):
      headline = one['metrics'][0]
      name, metric, *figures = line.replace(' (v)', '').replace(' to ', ' ').split()
      assert (name, metric) == (one['condition'], headline['name'])
      ends = ('mean', 'low', 'high')
      exact = [headline[kind][end] for kind in ('asked', 'shuffled') for end in ends]
      exact.append(headline['ceiling']['mean'])
      shown, verdict = [float(figure) for figure in figures[:7]], figures[7:]
      assert shown == pytest.approx(exact, abs=0.0501)
      assert verdict == (['apart'] if headline['apart'] else ['not', 'apart'])
  assert lines[-1] == '8 held-out images. (v): lower is better.'
