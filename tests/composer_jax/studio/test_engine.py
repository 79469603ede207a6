from __future__ import annotations

import dataclasses
import threading

import numpy as np
import pytest
import skimage.data

from composer_jax.images import Picture
from composer_jax.recipe import make
from composer_jax.studio.engine import Cancelled, Engine, Look, Made
from composer_jax.studio.limits import Limits
from composer_jax.studio.panel import Panel
from tests.composer_jax.tiny import SIZE, composer_of

STEPS = 3


@pytest.fixture(scope='module')
def engine():
  return Engine(composer_of(steps=STEPS), Limits(count=3))


def panel(**more):
  palette = np.full(180, 1 / 180, np.float32)
  return Panel(**({'values': {'palette': palette}} | more))


def test_warming_up_makes_it_ready():
  engine = Engine(composer_of(steps=STEPS), Limits())
  assert not engine.ready.is_set()
  engine.warm_up()
  assert engine.ready.is_set() and engine.failure is None


def test_what_goes_wrong_in_warming_up_is_kept():
  engine = Engine(composer_of(steps=STEPS), Limits())
  engine.composer.stages = ()
  engine.warm_up()
  assert engine.ready.is_set() and engine.failure is not None


def test_images_are_shown_on_their_way_and_are_what_their_recipes_make(engine):
  news = [*engine.make(panel(count=2, seed=5), threading.Event())]
  made = [each for each in news if isinstance(each, Made)]
  looks = [each for each in news if isinstance(each, Look)]
  assert [each.number for each in made] == [0, 1]
  assert [each.recipe.seed for each in made] == [5, 6]
  assert {each.number for each in looks} <= {0, 1} and looks
  assert all(
    0 < look.done <= 1 and look.image.shape == (SIZE, SIZE, 3) for look in looks
  )
  for each in made:
    np.testing.assert_array_equal(each.image, make(engine.composer, each.recipe))


def test_other_values_compile_nothing(engine):
  def compiled():
    return [stage._sample._cache_size() for stage in engine.composer.stages]

  def run(**more):
    for _ in engine.make(panel(**more), threading.Event()):
      pass

  run()
  before = compiled()
  sketch = np.full((SIZE, SIZE, 1), 255, np.uint8)
  run(values={'sketch': sketch}, seed=9, count=3)
  run(strengths={'palette': 0.5}, windows={'palette': (0.2, 0.8)})
  run(sampling={'guidance': 7.5, 'eta': 0.3, 'rescale': 0.5})
  run(values={})
  assert compiled() == before


def test_it_can_be_cancelled_before_and_in_between(engine):
  cancelled = threading.Event()
  cancelled.set()
  with pytest.raises(Cancelled):
    next(engine.make(panel(), cancelled))
  cancelled, seen = threading.Event(), []
  making = engine.make(panel(count=3), cancelled)
  seen.append(next(making))
  cancelled.set()
  with pytest.raises(Cancelled):
    seen.extend(making)
  assert sum(isinstance(each, Made) for each in seen) < 3


def test_closing_the_iterator_stops_it_and_the_next_one_is_served(engine):
  making = engine.make(panel(count=3), threading.Event())
  next(making)
  making.close()
  assert [*engine.make(panel(), threading.Event())][-1].number == 0


def test_a_bad_panel_is_refused_at_once(engine):
  with pytest.raises(ValueError, match='The number of images is 4; expected 1 to 3'):
    next(engine.make(panel(count=4), threading.Event()))


def test_what_goes_wrong_in_the_model_comes_out(engine):
  bad = dataclasses.replace(panel(), sampling={'sampler': 'none'})
  with pytest.raises(ValueError, match='sampler'):
    next(engine.make(bad, threading.Event()))


def test_two_visitors_take_turns(engine):
  made = {}

  def visit(seed):
    made[seed] = [*engine.make(panel(seed=seed), threading.Event())][-1]

  threads = [threading.Thread(target=visit, args=[seed]) for seed in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert {seed: each.recipe.seed for seed, each in made.items()} == {
    seed: seed for seed in range(4)
  }


def test_a_picture_is_taken_apart_into_what_the_model_knows(engine):
  found = engine.decompose(Picture(skimage.data.astronaut()))
  assert found.keys() == {
    'palette',
    'sketch',
    'instances',
    'depth',
    'intensity',
    'mask',
  }
  assert not engine.speaks and engine.steps == STEPS
