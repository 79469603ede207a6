"""Pictures of any shape, cut to a square as CLIP's own preprocessing does.

What is stored in a data set is square already, and goes through `clip.normalise` alone.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from composer_jax.images import Picture, composite


def clip_square(picture: Picture, size: int) -> np.ndarray:
  """Scales the short side to `size` pixels and keeps the middle of the long one.

  The filter is bicubic and antialiased, and the whole picture is scaled before it is
  cut, as in the published preprocessing (Radford et al. 2021; `CLIPImageProcessor` of
  transformers). `normalise` of the result is what the model takes.

  Args:
    picture: of any shape; transparent parts are laid over white.
    size: side of the square, in pixels.

  Returns:
    uint8 sRGB (size, size, 3).

  Raises:
    ValueError: if `size` is not positive.
  """
  if size < 1:
    raise ValueError(f'size: {size}, expected at least 1 pixel.')
  pixels = composite(picture, np.full(3, 255, np.uint8)).pixels
  sides = pixels.shape[:2]
  # The long side is rounded down, and so is the margin before the square.
  height, width = (size * side // min(sides) for side in sides)
  top, left = (height - size) // 2, (width - size) // 2
  image = Image.fromarray(np.ascontiguousarray(pixels))
  scaled = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
  return scaled[top : top + size, left : left + size].copy()
