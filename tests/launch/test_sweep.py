from __future__ import annotations

import pathlib
import textwrap

import pytest

from launch import sweep as sweep_lib

ROOT = pathlib.Path(__file__).parents[2]


def read(tmp_path, text, extra=()):
  path = tmp_path / 'sweep.py'
  path.write_text(f'def get_config():\n  return {textwrap.dedent(text).strip()}\n')
  return sweep_lib.read(path, extra)


def test_a_grid_is_all_combinations(tmp_path):
  sweep = read(
    tmp_path,
    """{
      'config': 'configs/demo/base.py',
      'overrides': {'train.steps': 5, 'data.path': 'a b'},
      'grid': {'optimizer.learning_rate': [1e-3, 0.01], 'data.flip': [True, False]},
    }""",
    extra=['train.seed=3'],
  )
  assert (sweep.metric, sweep.goal) == ('loss', 'min')
  assert [unit.name for unit in sweep.units] == [
    '000-learning_rate-0.001-flip-True',
    '001-learning_rate-0.001-flip-False',
    '002-learning_rate-0.01-flip-True',
    '003-learning_rate-0.01-flip-False',
  ]
  assert sweep.units[1].values == {'optimizer.learning_rate': 1e-3, 'data.flip': False}
  assert sweep.units[1].overrides == (
    'train.steps=5',
    'data.path=a b',
    'train.seed=3',
    'optimizer.learning_rate=0.001',
    'data.flip=False',
  )


def test_draws_are_in_their_ranges_and_always_the_same(tmp_path):
  text = """{
    'config': 'c.py',
    'random': {'count': 200, 'seed': 7, 'fields': {
      'a': ('uniform', -1.0, 1.0),
      'b': ('log_uniform', 1e-5, 1e-1),
      'c': ('choice', 'x', 'y'),
      'd': ('uniform', 1, 3),
    }},
  }"""
  units = read(tmp_path, text).units
  assert units == read(tmp_path, text).units
  assert units != read(tmp_path, text.replace("'seed': 7", "'seed': 8")).units
  values = {name: [unit.values[name] for unit in units] for name in 'abcd'}
  assert -1 <= min(values['a']) < -0.9 and 0.9 < max(values['a']) <= 1
  # Half of them lie below the geometric mean, which few of uniform draws would.
  assert 70 < sum(value < 1e-3 for value in values['b']) < 130
  assert set(values['c']) == {'x', 'y'}
  assert set(values['d']) == {1, 2, 3}
  # As it is typed is as it was drawn.
  assert all(float(f'{value:.4g}') == value for value in values['a'] + values['b'])


def test_spaces_can_be_had_together(tmp_path):
  sweep = read(
    tmp_path,
    """{
      'config': 'c.py',
      'metric': 'mse',
      'goal': 'max',
      'explicit': [{'train.seed': 0}, {'model.conditions': ('mask', 'depth')}],
      'grid': {'train.seed': [5]},
      'random': {'count': 1, 'seed': 0, 'fields': {'train.seed': ('choice', 9)}},
    }""",
  )
  assert (sweep.metric, sweep.goal) == ('mse', 'max')
  assert [unit.overrides for unit in sweep.units] == [
    ('train.seed=0',),
    ("model.conditions=('mask', 'depth')",),
    ('train.seed=5',),
    ('train.seed=9',),
  ]
  assert sweep.units[1].name == '001-conditions-mask-depth'


@pytest.mark.parametrize(
  ('text', 'why'),
  [
    ("{'grid': {'a': [1]}}", 'config is None'),
    ("{'config': 'c.py'}", 'has no runs'),
    ("{'config': 'c.py', 'grids': {}}", "'grids' is no field"),
    ("{'config': 'c.py', 'goal': 'low', 'grid': {'a': [1]}}", "goal is 'low'"),
    ("{'config': 'c.py', 'grid': {'a': 1}}", r"grid\['a'\] is 1"),
    ("{'config': 'c.py', 'grid': {'a': []}}", r"grid\['a'\] is \[\]"),
    ("{'config': 'c.py', 'explicit': [3]}", r'explicit\[0\] is 3'),
    ("{'config': 'c.py', 'random': {'count': 3, 'seed': 0}}", 'look at fields'),
    ("['config']", r"returns \['config'\]; expected a dict"),
    ('None', 'returns None; expected a dict'),
    ('{}[1]', 'KeyError: 1'),
    ('(', 'SyntaxError'),
    ("__import__('absent_module')", 'ModuleNotFoundError.*absent_module'),
    ("{'config': 'c.py', 'grid': [{'a': [1]}]}", r"grid is \[\{'a': \[1\]\}\]"),
    ("{'config': 'c.py', 'grid': {1: [1]}}", 'grid has the field 1'),
    ("{'config': 'c.py', 'grid': {'a': [{2}]}}", r"grid\['a'\]\[0\] is \{2\}"),
    ("{'config': 'c.py', 'grid': {'a': [1, True, 1]}}", r"grid\['a'\] has 1 twice"),
    ("{'config': 'c.py', 'explicit': {'a': 1}}", r"explicit is \{'a': 1\}"),
    (
      "{'config': 'c.py', 'explicit': [{'a': 1}, {'a': 2}, {'a': 1}]}",
      r"explicit\[0\] and explicit\[2\] are both \{'a': 1\}",
    ),
    (
      "{'config': 'c.py', 'explicit': [{}], 'overrides': ['a=1']}",
      r"overrides is \['a=1'\]; expected a dict",
    ),
    ("{'config': 'c.py', 'explicit': [{}], 'metric': None}", 'metric is None'),
    ("{'config': 'c.py', 'random': [3]}", r'random is \[3\]'),
    (
      "{'config': 'c.py', 'random': {'count': 1, 'seed': 0,"
      " 'fields': {'a': ('log_uniform', 0, 1)}}}",
      'LOW above 0',
    ),
    (
      "{'config': 'c.py', 'random': {'count': 1, 'seed': 0,"
      " 'fields': {'a': ('normal', 0, 1)}}}",
      "'normal', 0, 1",
    ),
  ],
)
def test_what_is_no_sweep_is_refused_with_its_file(tmp_path, text, why):
  with pytest.raises(ValueError, match=why) as refusal:
    read(tmp_path, text)
  assert 'sweep.py' in str(refusal.value)


@pytest.mark.parametrize(
  ('random', 'why'),
  [
    ("'count': '3', 'seed': 0, 'fields': {}", "random.count is '3'"),
    ("'count': -1, 'seed': 0, 'fields': {}", 'random.count is -1'),
    ("'count': 1, 'seed': None, 'fields': {}", 'random.seed is None'),
    ("'count': 1, 'seed': 0, 'fields': ['a']", r"random.fields is \['a'\]"),
    ("'count': 1, 'seed': 0, 'fields': {'a': ()}", r"fields\['a'\] is \(\)"),
    ("'count': 1, 'seed': 0, 'fields': {'a': 2}", r"fields\['a'\] is 2"),
    (
      "'count': 1, 'seed': 0, 'fields': {'a': ('uniform', '1', '2')}",
      r"fields\['a'\] is \('uniform', '1', '2'\)",
    ),
  ],
)
def test_draws_that_cannot_be_made_are_refused(tmp_path, random, why):
  with pytest.raises(ValueError, match=f'sweep.py: .*{why}; expected'):
    read(tmp_path, f"{{'config': 'c.py', 'random': {{{random}}}}}")


def test_a_field_that_the_sweep_varies_is_refused_as_an_override(tmp_path):
  text = "{'config': 'c.py', 'explicit': [{}], 'grid': {'a.b': [1, 2]}}"
  with pytest.raises(ValueError, match=r'--config.a.b=3 is given.* varies a.b'):
    read(tmp_path, text, ['a=1', 'a.b=3'])


def test_numbers_of_numpy_are_as_those_of_python(tmp_path):
  sweep = read(
    tmp_path,
    """(lambda np: {
      'config': 'c.py',
      'overrides': {'d': np.int64(4)},
      'explicit': [{'a': (np.float32(0.5), np.True_)}],
      'grid': {'a': list(np.logspace(-3, -1, 3))},
      'random': {'count': np.int64(1), 'seed': np.int64(0), 'fields': {
        'a': ('uniform', np.int64(1), np.int64(3)),
      }},
    })(__import__('numpy'))""",
  )
  assert [unit.overrides for unit in sweep.units[:4]] == [
    ('d=4', 'a=(0.5, True)'),
    ('d=4', 'a=0.001'),
    ('d=4', 'a=0.01'),
    ('d=4', 'a=0.1'),
  ]
  assert type(sweep.units[4].values['a']) is int
  assert sweep_lib.as_json(sweep)['units'][1]['values'] == {'a': 0.001}


def test_a_folder_holds_one_sweep_that_may_grow(tmp_path):
  text = "{'config': 'c.py', 'grid': {'a': [1, 2]}}"
  before = sweep_lib.as_json(read(tmp_path, text))
  out = pathlib.Path('out')
  sweep_lib.check_same(read(tmp_path, text), before, out)
  sweep_lib.check_same(read(tmp_path, text.replace('2]', '2, 3]')), before, out)
  for other in ('1]', '1, 5]'):
    with pytest.raises(ValueError, match=r"run 1 has \['a=2'\]"):
      sweep_lib.check_same(read(tmp_path, text.replace('1, 2]', other)), before, out)
  with pytest.raises(ValueError, match='a sweep of c.py'):
    sweep_lib.check_same(read(tmp_path, text.replace('c.py', 'd.py')), before, out)


@pytest.mark.parametrize(
  'path', [p for p in sorted(ROOT.glob('configs/sweeps/*.py')) if p.stem != '__init__']
)
def test_sweeps_that_come_along_ask_only_for_valid_configs(path):
  from composer_jax import config_files

  sweep = sweep_lib.read(path)
  assert len({unit.overrides for unit in sweep.units}) == len(sweep.units)
  for unit in sweep.units:
    given = [f'--config.{override}' for override in unit.overrides]
    config_files.parse([f'--config={sweep.config}', *given])
