from __future__ import annotations

import sys

import numpy as np
import pytest

from data_pipelines.extractors import KINDS, MissingExtra, open_extractor
from data_pipelines.extractors.extractor import to_size


@pytest.mark.parametrize(
  ('field', 'kind', 'packages'),
  [
    ('depth', 'dpt', ['torch', 'transformers']),
    ('instances', 'detr', ['transformers']),
    ('text', 'blip', ['torch']),
    ('sketch', 'onnx', ['onnxruntime']),
  ],
)
def test_a_missing_package_is_an_error_that_names_the_extra(
  monkeypatch, field, kind, packages
):
  for package in packages:
    monkeypatch.setitem(sys.modules, package, None)  # As if it were not installed.
  said = f"'{kind}' needs {' and '.join(packages)}, .*'composer_jax\\[extractors\\]'"
  with pytest.raises(MissingExtra, match=said):
    open_extractor(field, f'{kind}:.')


@pytest.mark.parametrize('spec', ['blip:.', 'dpt:', 'dpt', ':x', 'DPT:.'])
def test_an_unknown_kind_is_refused_with_those_that_there_are(spec):
  with pytest.raises(ValueError, match='cannot extract depth.*depth_anything:PATH'):
    open_extractor('depth', spec)


def test_a_field_that_nothing_extracts_is_refused():
  with pytest.raises(
    ValueError, match=f"'palette', expected any of {', '.join(KINDS)}"
  ):
    open_extractor('palette', 'dpt:.')


@pytest.mark.parametrize(
  ('field', 'spec'), [('depth', 'dpt:Intel/dpt-large'), ('sketch', 'onnx:no.onnx')]
)
def test_what_is_not_on_this_machine_is_never_fetched(field, spec):
  with pytest.raises(FileNotFoundError, match='never downloaded'):
    open_extractor(field, spec)


def test_shrinking_is_the_mean_over_areas():
  values = np.random.default_rng(0).normal(size=(12, 12)).astype(np.float32)
  expected = values.reshape(4, 3, 4, 3).mean((1, 3))
  np.testing.assert_allclose(to_size(values, 4), expected, atol=1e-5)


def test_enlarging_keeps_to_the_range():
  values = np.random.default_rng(0).normal(size=(5, 5)).astype(np.float32)
  larger = to_size(values, 12)
  assert larger.shape == (12, 12)
  assert values.min() <= larger.min() < larger.max() <= values.max()
