"""Palette: a smoothed histogram over a fixed codebook of colours in CIELab.

Composer, section 2.1: "we represent the color statistics of an image using the
smoothed CIELab histogram", quantised to 11 hues, 5 saturations, 5 lightness values.
"""

from __future__ import annotations

import colorsys
import functools

import jax
import jax.numpy as jnp
import numpy as np
import skimage

from composer_jax.conditions.condition import Condition, GlobalFeatures, Spec
from composer_jax.diffusion.process import Coefficients
from composer_jax.images import Picture, srgb_to_lab

HUES = (0, 0.0833, 0.166, 0.25, 0.333, 0.5, 0.56333, 0.666, 0.73, 0.803, 0.916)
SATURATIONS = 5
LIGHTNESSES = 5
SIGMA = 10.0
"""Width of the smoothing kernel, in CIELab units."""
FLOOR = 1e-5
"""Smoothed frequencies below this are set to 0."""
REACH = 1.5 / 32
"""How far `expected_colours` looks around a pixel where signal and noise are equal: a
standard deviation, in sides of the image."""


@functools.cache
def _colours() -> np.ndarray:
  """The colours of the bins: float64 sRGB (180, 3) in [0, 1], the grays last."""
  s, v = SATURATIONS, LIGHTNESSES
  ramp = np.linspace(1, 0.2, v + 2)
  saturations = [*np.linspace(0, 1, s + 2)[1:-1], 1, *[1] * v, *[0.4] * (v - 1)]
  values = [*[1] * s, 1, *ramp[1:-1], *ramp[1:-2]]
  colours = [
    colorsys.hsv_to_rgb(hue, saturation, value)
    for hue in HUES
    for saturation, value in zip(saturations, values, strict=True)
  ]
  colours += [(gray,) * 3 for gray in np.linspace(1, 0, s + 2 * v)]
  return np.array(colours)


def codebook() -> np.ndarray:
  """The colours of the bins, to be shown: uint8 sRGB (180, 3), hue by hue."""
  return np.round(_colours() * 255).astype(np.uint8)


@functools.cache
def _codebook_lab() -> np.ndarray:
  return skimage.color.rgb2lab(_colours())


@functools.cache
def distances() -> np.ndarray:
  """CIELab distances between the bins: float64 (180, 180)."""
  lab = _codebook_lab()
  return np.sqrt(((lab[:, None] - lab[None]) ** 2).sum(-1))


@functools.cache
def _smoothing() -> np.ndarray:
  kernel = np.exp(-(distances() ** 2) / (2 * SIGMA**2))
  return kernel / kernel.sum(1, keepdims=True)


def histogram(pixels: np.ndarray) -> np.ndarray:
  """The share of the pixels that is nearest to each bin.

  Args:
    pixels: uint8 sRGB (..., 3).

  Returns:
    float64 (180,) with sum 1.
  """
  # Flat art has few distinct colours, so measure each colour once.
  packed = pixels.reshape(-1, 3).astype(np.uint32) @ np.array([65536, 256, 1], 'u4')
  colours, counts = np.unique(packed, return_counts=True)
  rgb = (colours[:, None] >> np.array([16, 8, 0], 'u4')).astype(np.uint8)
  lab, centres = srgb_to_lab(rgb).astype(np.float64), _codebook_lab()
  # argmin |x - c|^2 = argmax (x.c - |c|^2 / 2), in float64 so that nothing cancels.
  nearest = np.argmax(lab @ centres.T - (centres**2).sum(1) / 2, axis=1)
  return np.bincount(nearest, counts, len(centres)) / counts.sum()


def smooth(share: np.ndarray) -> np.ndarray:
  """Spreads a (180,) histogram over similar colours; float32 (180,)."""
  smoothed = _smoothing() @ share
  return np.where(smoothed < FLOOR, 0, smoothed).astype(np.float32)


def from_colours(colours: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
  """A palette of given colours, as if an image had them in those proportions.

  Args:
    colours: uint8 sRGB (N, 3).
    weights: (N,) positive shares; equal if None.

  Returns:
    float32 (180,), as `Palette.extract` gives.
  """
  colours = np.asarray(colours, np.uint8).reshape(-1, 3)
  weights = np.ones(len(colours)) if weights is None else np.asarray(weights, float)
  share = sum(w * histogram(c) for c, w in zip(colours, weights, strict=True))
  return smooth(share / weights.sum())


def expected_colours(
  x_t: jax.Array, c: Coefficients, stored: jax.Array, strength: jax.Array
) -> jax.Array:
  """What colour a pixel of a noisy image may be expected to have under a palette.

  Bayes' rule for a pixel and its neighbours that have a colour of the codebook: each as
  likely beforehand as its share of the palette, and what x_t shows normal around it.
  That is averaged over the neighbours, over more of them where there is more noise: as
  far as what is left of the noise and what neighbours differ by balance. Nothing is
  learned.

  Args:
    x_t: noisy images (B, S, S, 3).
    c: signal and noise in them, (B, 1, 1, 1) each.
    stored: palettes (B, 180).
    strength: (B,), 1 as the palette says; to another, its shares are raised.

  Returns:
    float32 (B, S, S, 3) in [-1, 1]: in pure noise the mean colour of the palette, and
    as the noise goes, in an area of one of its colours, that colour.
  """
  colours = jnp.asarray(2 * _colours() - 1, jnp.float32)
  place = np.arange(x_t.shape[1])
  reach = REACH * jnp.clip(jnp.sqrt(c.noise / c.signal), 0.2, 2)
  away = (place[:, None] - place) / (reach[..., 0] * len(place))
  near = jax.nn.softmax(-(away**2) / 2)  # (B, S, S), for rows and columns alike.
  seen = jnp.einsum('byi,bijc,bxj->byxc', near, x_t.astype(jnp.float32), near)
  left = (near[:, len(place) // 2] ** 2).sum(1) ** 2  # Of the variance of the noise.
  # Measured of drawings: how far pixels are from such averages and from the codebook.
  around = 0.1 + 5 * reach
  variance = left[:, None, None, None] * c.noise**2 + (around * c.signal) ** 2
  fit = seen @ colours.T - c.signal / 2 * (colours**2).sum(1)
  share = jnp.log(jnp.maximum(stored.astype(jnp.float32), FLOOR))
  share = (strength[:, None] * share)[:, None, None]
  return jax.nn.softmax(share + c.signal / variance * fit) @ colours


class Palette(Condition):
  """Colours and their proportions, without their places."""

  name = 'palette'
  local = False
  extra_tokens = 4
  higher_is_better = {
    'cosine': True,
    'bhattacharyya': True,
    'earth_movers_lab': False,
  }

  def spec(self, size: int) -> Spec:
    return Spec(
      shape=(len(codebook()),),
      dtype='float32',
      low=0,
      high=1,
      unit='share of pixels',
      source='smoothed CIELab histogram, 11 hues, sigma 10 (Composer 2.1)',
    )

  def extract(self, picture: Picture, rng: np.random.Generator) -> np.ndarray:
    return smooth(histogram(picture.pixels))

  def features(self, stored: jax.Array) -> GlobalFeatures:
    # The square root evens out the scale of rare and common colours; its
    # dot product is the Bhattacharyya coefficient of two palettes. Scaled to a
    # root mean square of about 1.
    return GlobalFeatures(jnp.sqrt(stored * stored.shape[-1]))

  def draw(self, stored: np.ndarray) -> np.ndarray:
    """Swatches, widest first, as wide as their share of the image."""
    height, width = 32, 256
    # Undo most of the smoothing: keep only local maxima among similar colours.
    near = distances() < SIGMA * 1.5
    peaks = np.flatnonzero(stored >= np.where(near, stored, 0).max(1))
    peaks = peaks[stored[peaks] > 0.01]
    order = peaks[np.argsort(-stored[peaks])]
    if not len(order):
      return np.full((height, width, 3), 255, np.uint8)
    edges = np.cumsum(stored[order]) / stored[order].sum()
    column = np.searchsorted(edges, (np.arange(width) + 0.5) / width)
    bar = codebook()[order[np.minimum(column, len(order) - 1)]]
    return np.broadcast_to(bar, (height, width, 3)).copy()

  def fidelity(self, asked: np.ndarray, again: np.ndarray) -> dict[str, float]:
    import ot  # Only evaluation needs optimal transport.

    asked, again = asked.astype(np.float64), again.astype(np.float64)
    norm = np.linalg.norm(asked) * np.linalg.norm(again)
    cosine = float(asked @ again / norm) if norm else 0.0
    p, q = asked / max(asked.sum(), 1e-12), again / max(again.sum(), 1e-12)
    i, j = np.flatnonzero(p), np.flatnonzero(q)
    if not len(i) or not len(j):
      raise ValueError('A palette without any colour has no fidelity.')
    cost = np.ascontiguousarray(distances()[np.ix_(i, j)])
    return {
      'cosine': cosine,
      'bhattacharyya': float(np.sqrt(p * q).sum()),
      'earth_movers_lab': float(ot.emd2(p[i] / p[i].sum(), q[j] / q[j].sum(), cost)),
    }
