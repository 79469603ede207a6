"""What each task sets on the panel: which conditions come from which image."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from composer_jax.tasks.parts import LOOKS, SHAPES
from composer_jax.tasks.pose_transfer import POSE


@dataclasses.dataclass(frozen=True)
class Preset:
  """A task as choices.

  Attributes:
    what: it does, in a line.
    take: by condition, the number of the image it comes from, from 0.
    images: how many it needs.
    caption: whether it needs one.
    edit: the condition to draw or choose by hand first.
    start: whether images start from the noise behind as many images as it needs.
  """

  what: str
  take: Mapping[str, int] = dataclasses.field(default_factory=dict)
  images: int = 0
  caption: bool = False
  edit: str = ''
  start: bool = False


def _all(names: tuple[str, ...], image: int = 0) -> dict[str, int]:
  return dict.fromkeys(names, image)


PRESETS: dict[str, Preset] = {
  'text to image': Preset('What a text says.', caption=True),
  'variation': Preset('Other images with the look of one.', _all(LOOKS), 1),
  'interpolation': Preset(
    'Images on the way from the first to the second.', _all(LOOKS), 2, start=True
  ),
  'reconfiguration': Preset(
    'An image in other colours, all else kept.',
    _all((*SHAPES, 'palette')),
    1,
    edit='palette',
    start=True,
  ),
  'colorization': Preset(
    'Light, shade and lines of the first, colours of the second.',
    _all(('intensity', 'sketch')) | _all(('palette',), 1),
    2,
  ),
  'colours by hand': Preset(
    'Light, shade and lines of an image, in colours of your choice.',
    _all(('intensity', 'sketch', 'palette')),
    1,
    edit='palette',
  ),
  'style transfer': Preset(
    'What the first shows, in the manner of the second.',
    _all(SHAPES) | _all(LOOKS, 1),
    2,
  ),
  'translation': Preset(
    'The shapes of an image as what a text says.', _all(SHAPES), 1, caption=True
  ),
  'pose transfer': Preset(
    'What the first shows, in the outlines of the second.',
    _all(LOOKS) | _all(POSE, 1),
    2,
  ),
  'region editing': Preset(
    'A part of an image anew, as a text says.',
    _all(('mask',)),
    1,
    caption=True,
    edit='mask',
  ),
  'try-on': Preset(
    'A part of the first in the likeness of the second.',
    _all(('mask',)) | _all(LOOKS, 1),
    2,
    edit='mask',
  ),
  'composition': Preset(
    'Lines of the first, colours and embedding of the second.',
    _all(('sketch',)) | _all(LOOKS, 1),
    2,
  ),
  'Boolean expression': Preset(
    'Conditions joined by & | ! and weights: write an expression, under More settings.'
  ),
}
