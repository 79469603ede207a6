from __future__ import annotations

import sys
import types

import numpy as np
import pytest
import safetensors.torch

from composer_jax.evaluation import distances, evaluators
from composer_jax.evaluation.evaluators import Samples, Tools, build, judged
from composer_jax.evaluation.fidelity import HeldOut, hold_out, measure
from composer_jax.images import resize_squares
from tests.composer_jax.models.inception_reference import ReferenceInception


@pytest.fixture(scope='module')
def held_out(lookup_type, records):
  return hold_out(
    records, ('palette', 'caption', 'semantics'), encoder=lookup_type.encoder
  )


@pytest.fixture(scope='module')
def many():
  """Forty images and forty others, at random around colours of their own."""
  rng = np.random.default_rng(0)
  colours = rng.integers(60, 196, (80, 1, 1, 3))
  images = (colours + rng.integers(-60, 60, (80, 32, 32, 3))).astype(np.uint8)
  return images[:40], images[40:]


def of(images, generated, others=None, captions=None):
  captions = tuple(captions or [''] * len(images))
  return Samples(
    'all', (), HeldOut(images, captions, {}, {}, None, 0), generated, others
  )


def test_fidelity_is_that_of_the_report(held_out, lookup_type, records):
  composer = lookup_type(records)
  outcome = measure(held_out, composer.compose, ['palette', 'semantics'])
  samples = Samples('all', outcome.given, held_out, outcome.images)
  figures = {f.name: f for f in build(['fidelity'], Tools())['fidelity'](samples)}
  expected = {
    f'{name} {metric.name}': metric
    for name, fidelity in outcome.fidelities.items()
    for metric in fidelity.metrics
  }
  assert figures.keys() == expected.keys() > {'palette cosine', 'semantics cosine'}
  for name, metric in expected.items():
    for found, wanted in (('value', 'asked'), ('beside', 'shuffled')):
      here, there = getattr(figures[name], found), getattr(metric, wanted)
      assert (here.mean, here.low, here.high) == (there.mean, there.low, there.high)
    assert figures[name].apart == metric.apart


def test_distances_by_the_models_encoder_are_named_for_it(many, lookup_type):
  images, others = many
  encoder = lookup_type.encoder
  evaluate = build(['distances'], Tools(encoder, count=40))['distances']
  shifted = (images // 2).astype(np.uint8)
  figures = {f.name: f for f in evaluate(of(images, shifted, others))}
  assert list(figures) == [
    f"{name} (model's encoder)" for name in ('FD', 'KD', 'precision', 'recall')
  ]
  fd = figures["FD (model's encoder)"]
  a, b, c = (encoder.embed_images(x) for x in (images, shifted, others))
  assert fd.value.mean == distances.frechet(a, b)
  assert fd.beside.mean == distances.frechet(a, c)
  assert fd.value.low < fd.value.mean < fd.value.high
  assert fd.apart is None  # Real images are not to be beaten.
  same = {f.name: f for f in evaluate(of(images, images))}
  assert same["FD (model's encoder)"].value.mean == pytest.approx(0, abs=1e-6)
  assert same["recall (model's encoder)"].value.mean == 1
  assert same["recall (model's encoder)"].beside is None


def test_distances_by_inception_have_their_usual_names(many, tmp_path):
  images, _ = many
  path = tmp_path / 'inception.safetensors'
  safetensors.torch.save_file(ReferenceInception().state_dict(), path)
  evaluate = build(['distances'], Tools(inception=path, count=20))['distances']
  names = [f.name for f in evaluate(of(images[:20], images[20:]))]
  assert names == ['FID', 'KID', 'precision', 'recall']


def test_retrieval_finds_captions_that_are_told_apart(lookup_type):
  texts = [letter * 9 for letter in 'abcdefghijkl']

  class Reader(lookup_type.encoder.__class__):
    """Sees what is written in the first row of an image; letters are its features."""

    def embed_images(self, images):
      texts = [bytes(image[0, :9, 0]).decode() for image in images]
      return self.embed_captions(texts)[1]

    def embed_captions(self, captions):
      rows = [np.bincount([*text.encode()], minlength=128) for text in captions]
      return None, self._unit(np.array(rows, np.float64))

  images = np.zeros((12, 32, 32, 3), np.uint8)
  images[:, 0, :9, 0] = [[*text.encode()] for text in texts]
  evaluate = build(['retrieval'], Tools(Reader()))['retrieval']
  (figure,) = evaluate(of(images, images, captions=texts))
  assert figure.name == "caption among 12 (model's encoder)"
  assert figure.value.mean == 1
  assert figure.beside.mean == pytest.approx(1 / 12)
  (lost,) = evaluate(of(images, images[::-1], captions=texts))
  assert lost.value.mean == 0
  assert evaluate(of(images, images)) == []  # No captions.


def test_clip_judges_by_its_own_embeddings(many):
  from composer_jax.trained import load_encoder

  images, others = many
  evaluate = build(['clip'], Tools(clip='demo', count=40))['clip']
  captions = ['red apple'] * 30 + [''] * 10
  cmmd, score = evaluate(of(images, others, others, captions))
  assert (cmmd.name, score.name) == ('CMMD', 'CLIP score')
  encoder = load_encoder('demo')
  real, made = encoder.embed_images(images), encoder.embed_images(others)
  assert cmmd.value.mean == pytest.approx(distances.cmmd(real, made))
  assert cmmd.beside.mean == cmmd.value.mean
  _, texts = encoder.embed_captions(captions[:30])
  assert score.value.mean == pytest.approx(distances.clip_score(made[:30], texts))
  assert score.beside.mean == pytest.approx(distances.clip_score(real[:30], texts))
  assert score.count == 30


def test_your_own_evaluator_is_named_by_where_it_is(monkeypatch, many):
  module = types.ModuleType('my_metrics')
  module.brightness = lambda tools: (
    lambda samples: [
      evaluators.of_images('brightness', samples.generated.mean((1, 2, 3)))
    ]
  )
  monkeypatch.setitem(sys.modules, 'my_metrics', module)
  judges = build(['my_metrics:brightness'], Tools())
  images, others = many
  (figure,) = judged(judges, of(images, others))
  assert figure.value.mean == pytest.approx(others.mean())


@pytest.mark.parametrize(
  ('name', 'tools', 'message'),
  [
    ('speed', {}, r"Unknown evaluator 'speed'; expected fidelity, .*module:function"),
    ('no_such:thing', {}, "'no_such:thing' cannot be imported"),
    ('json:thing', {}, "'json:thing' cannot be imported"),
    ('distances', {}, 'Distances need features'),
    ('distances', {'count': 19}, '19 images to measure; expected at least 20'),
    ('clip', {}, 'need --clip DIR'),
    ('retrieval', {}, 'needs a model with an encoder'),
  ],
)
def test_what_cannot_be_judged_is_refused_at_once(name, tools, message):
  with pytest.raises(ValueError, match=message):
    build([name], Tools(**tools))


def test_larger_images_are_seen_at_the_size_of_the_maps(held_out, lookup_type, records):
  large = resize_squares(held_out.images, 64)
  samples = Samples('palette', ('palette',), held_out, large)
  (cosine, *_) = build(['fidelity'], Tools())['fidelity'](samples)
  assert cosine.value.mean > 0.9
