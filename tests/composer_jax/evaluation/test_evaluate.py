from __future__ import annotations

import json
import re

import numpy as np
import pytest

from composer_jax import conditions
from composer_jax.evaluation.evaluate import evaluate, summary
from composer_jax.evaluation.fidelity import draw_records, hold_out, measure
from composer_jax.evaluation.published import COCO, Protocol, differences

OPTIONS = {
  'evaluators': ('fidelity', 'retrieval'),
  'count': 8,
  'shown': 3,
  'progress': False,
}
NAMES = [condition.name for condition in conditions.ALL]


@pytest.fixture(scope='module')
def composer(lookup_type, data):
  return lookup_type(data.records)


@pytest.fixture(scope='module')
def out(tmp_path_factory):
  return tmp_path_factory.mktemp('evaluation')


@pytest.fixture(scope='module')
def evaluation(composer, data, out):
  return evaluate({'mine': composer}, data, out, **OPTIONS)


def test_every_wish_is_judged_by_every_evaluator(evaluation, composer, data):
  assert list(evaluation['wishes']) == [*NAMES, 'all']
  _, records = draw_records(composer, data, 8, 0)
  held_out = hold_out(records, NAMES, encoder=composer.encoder)
  outcome = measure(held_out, composer.compose, NAMES)
  rows = {row['name']: row for row in evaluation['wishes']['all']}
  for name, fidelity in outcome.fidelities.items():
    (own,) = rows[f'{name} {fidelity.headline.name}']['models']
    assert own['mean'] == fidelity.headline.asked.mean
    assert own['beside']['mean'] == fidelity.headline.shuffled.mean
  assert any(name.startswith('caption among') for name in rows)
  assert evaluation['figures']['all/palette_cosine'] == rows['palette cosine'][
    'models'
  ][0]['mean']  # fmt: skip


def test_the_files_say_the_same(evaluation, out):
  assert json.loads((out / 'evaluation.json').read_text()) == evaluation
  assert {path.name for path in out.iterdir()} == {
    'index.html',
    'evaluation.json',
    'cache',
  }


def test_the_page_needs_no_other_file_and_shows_every_wish(evaluation, out, tree):
  page = tree((out / 'index.html').read_text('utf-8'))
  sources = []
  for element in page.iter():
    assert element.tag not in ('script', 'iframe', 'object', 'embed', 'base')
    for name, value in element.attrib.items():
      assert not name.startswith('on')
      if name == 'src':
        sources.append(value)
      elif name == 'href':
        assert value == 'data:,' or value.startswith('#')
  # Three originals and three composed ones of each wish.
  assert len(sources) == 6 * len(evaluation['wishes'])
  assert all(source.startswith('data:image/png;base64,') for source in sources)
  anchors = {element.get('id') for element in page.iter()}
  assert {*NAMES, 'all', 'protocol'} <= anchors
  text = ' '.join(''.join(page.itertext()).split())
  assert '<script>source()</script>' in text  # As text, not as an element.


def test_a_run_that_was_broken_off_makes_only_what_is_missing(
  evaluation, lookup_type, data, out
):
  page = (out / 'index.html').read_bytes()
  again = lookup_type(data.records)
  assert evaluate({'mine': again}, data, out, **OPTIONS) == evaluation
  assert again.calls == 0
  assert (out / 'index.html').read_bytes() == page
  missing = next(iter((out / 'cache').iterdir()))
  missing.unlink()
  assert evaluate({'mine': again}, data, out, **OPTIONS) == evaluation
  assert again.calls == 1


def test_a_model_is_as_good_as_itself(composer, data, tmp_path):
  both = {'a': composer, 'b': composer}
  evaluation = evaluate(both, data, tmp_path, **OPTIONS)
  for rows in evaluation['wishes'].values():
    for row in rows:
      assert len(row['models']) == 2
      assert row['difference'] == {'mean': 0, 'low': 0, 'high': 0, 'better': None}


def test_the_better_of_two_models_is_named(lookup_type, data, tmp_path, tree):
  class Worse(lookup_type):
    fingerprint = ('lookup', 'worse')

    def compose(self, *arguments, **more):
      return super().compose(*arguments, **more)[::-1]

  models = {'good': lookup_type(data.records), 'bad': Worse(data.records)}
  evaluation = evaluate(models, data, tmp_path, **OPTIONS)
  rows = {row['name']: row for row in evaluation['wishes']['all']}
  assert rows['palette cosine']['difference']['better'] == 'first'
  assert rows['palette earth_movers_lab']['difference']['better'] == 'first'
  assert rows['palette earth_movers_lab']['difference']['mean'] < 0
  assert 'first' in summary(evaluation)
  text = ''.join(tree((tmp_path / 'index.html').read_text('utf-8')).itertext())
  assert 'good against bad' in text


def test_two_models_are_asked_only_what_both_know(lookup_type, data, tmp_path):
  class Fewer(lookup_type):
    fingerprint, names = ('lookup', 'fewer'), ('palette', 'sketch')

  models = {'all': lookup_type(data.records), 'fewer': Fewer(data.records)}
  evaluation = evaluate(models, data, tmp_path, **OPTIONS)
  assert list(evaluation['wishes']) == ['palette', 'sketch', 'all']


def test_a_caption_goes_through_the_prior(lookup_type, data, tmp_path):
  class Imagining(lookup_type):
    fingerprint, prior = ('lookup', 'prior'), object()
    imagined = 0

    def imagine_all(self, captions, seeds):
      type(self).imagined += len(seeds)
      found = [np.abs(self._known['caption'] - one).sum((1, 2)) for one in captions]
      return self._known['semantics'][np.argmin(found, axis=1)]

  composer = Imagining(data.records)
  evaluation = evaluate({'mine': composer}, data, tmp_path, **OPTIONS)
  assert list(evaluation['wishes']) == [*NAMES, 'all', 'text']
  assert {row['name'] for row in evaluation['wishes']['text']} >= {'caption clip_score'}
  assert Imagining.imagined == 8
  evaluate({'mine': composer}, data, tmp_path, **OPTIONS)
  assert Imagining.imagined == 8


def test_the_summary_names_each_figure_with_its_interval(evaluation):
  text = summary(evaluation)
  assert re.search(r'palette cosine +\S+ \[\S+, \S+\] +shuffled \S+ \[', text)
  assert text.endswith('mine on 8 held-out images.')


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'evaluators': ('speed',)}, "Unknown evaluator 'speed'"),
    ({'tasks': ('painting',)}, "Unknown task 'painting'; expected text-to-image"),
    ({'count': 1}, '1 images to measure'),
    (
      {'with_published': True},
      r'compare .* data is folder:.*images is 8, there',
    ),
    ({'tasks': ('variation',)}, 'have a caption; expected at least 32'),
  ],
)
def test_what_makes_no_sense_is_refused(composer, data, tmp_path, change, message):
  with pytest.raises(ValueError, match=message):
    evaluate({'mine': composer}, data, tmp_path, **OPTIONS | change)


def test_published_figures_compare_only_under_their_protocol():
  own = Protocol('COCO 2014 val', 30_000, 256, 'Inception v3', 'text')
  assert differences(own) == []
  other = Protocol('COCO 2014 val', 5_000, 128, 'Inception v3', 'text')
  assert differences(other) == ['images is 5000, there 30000', 'size is 128, there 256']
  assert differences(COCO) == []
