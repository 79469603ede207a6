"""Pretrained models that measure conditions. Each kind is one file in this folder.

None of the packages they run on is imported before one is used, and none is needed by
the rest: they are the extra `extractors`.
"""

from __future__ import annotations

from collections.abc import Callable

from composer_jax.extras import MissingExtra
from data_pipelines.extractors.caption import Caption
from data_pipelines.extractors.depth import Depth
from data_pipelines.extractors.edges import Edges
from data_pipelines.extractors.extractor import Extractor
from data_pipelines.extractors.instances import PANOPTIC, Instances

__all__ = ['KINDS', 'Extractor', 'MissingExtra', 'open_extractor']

_SEGMENTERS = ('mask2former', 'maskformer', 'detr')

KINDS: dict[str, dict[str, Callable[[str, str], Extractor]]] = {
  'depth': {'dpt': Depth, 'depth_anything': Depth},
  'instances': {
    kind: Instances for name in _SEGMENTERS for kind in (name, name + PANOPTIC)
  },
  'sketch': {'onnx': Edges},
  'text': {'blip': Caption},
}
"""Field of a record to the kinds of extractors that can fill it."""


def open_extractor(field: str, spec: str) -> Extractor:
  """Opens an extractor by its name; its model is opened when it is first used.

  Args:
    field: of the record: one of `KINDS`.
    spec: KIND:PATH, such as `dpt:models/dpt-large`.

  Raises:
    ValueError: the kind is unknown, or the files are not of that kind.
    FileNotFoundError: the path is not on this machine.
    MissingExtra: the packages it runs on are not installed.
  """
  if field not in KINDS:
    raise ValueError(f'extractors: {field!r}, expected any of {", ".join(KINDS)}.')
  kind, _, path = spec.partition(':')
  if kind not in KINDS[field] or not path:
    known = ', '.join(f'{name}:PATH' for name in KINDS[field])
    raise ValueError(f'{spec!r} cannot extract {field}; expected one of {known}.')
  return KINDS[field][kind](kind, path)
