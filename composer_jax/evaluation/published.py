"""Published figures, and whether one's own may be held against them.

Figures compare only where they were taken alike. So a table of them is shown beside
one's own under the same protocol, and refused with the reasons under another.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Protocol:
  """How figures of text-to-image were taken.

  Attributes:
    data: what the captions and the real images are from.
    images: composed ones, and as many real ones.
    size: side of the composed images in pixels.
    features: what FID compares.
    prompts: what the images were composed from.
  """

  data: str
  images: int
  size: int
  features: str
  prompts: str


COCO = Protocol('COCO 2014 val', 30_000, 256, 'Inception v3', 'text')
"""Zero-shot COCO, as text-to-image models are compared since DALL-E (2021)."""

FIGURES: dict[str, tuple[float, float | None]] = {
  'Latent Diffusion (Rombach et al. 2022)': (12.63, None),
  'GLIDE (Nichol et al. 2022)': (12.24, None),
  'unCLIP, DALL-E 2 (Ramesh et al. 2022)': (10.39, None),
  'Composer (Huang et al. 2023)': (9.2, 0.28),
  'Imagen (Saharia et al. 2022)': (7.27, None),
  'Parti (Yu et al. 2022)': (7.23, None),
}
"""FID and CLIP score under `COCO`, as the papers state them."""


def differences(own: Protocol, other: Protocol = COCO) -> list[str]:
  """Why figures of two protocols do not compare; nothing if they do."""
  return [
    f'{field.name} is {getattr(own, field.name)}, there {getattr(other, field.name)}'
    for field in dataclasses.fields(Protocol)
    if getattr(own, field.name) != getattr(other, field.name)
  ]
