"""Distances between two sets of images, from features of them.

All are computed in float64, on the CPU, from features as `models.inception` gives them
(Frechet and kernel distance, precision and recall) or from CLIP embeddings (CMMD, CLIP
score). Figures compare only where features, numbers of images and preprocessing agree.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

SIGMA = 10.0
"""Width of CMMD's Gaussian kernel (Jayasumana et al. 2024)."""

SCALE = 1000.0
"""What CMMD is multiplied by to be readable (Jayasumana et al. 2024)."""

_NUMBERS_AT_ONCE = 4_000_000
"""Most entries of a block of distances: all pairs of 50,000 images are 20 GB."""


class KernelDistance(NamedTuple):
  """The kernel distance over subsets.

  Attributes:
    mean: over the subsets; unbiased, so slightly negative where there is no difference.
    std: over the subsets, of their population (divided by their number).
  """

  mean: float
  std: float


class PrecisionRecall(NamedTuple):
  """Two shares between 0 and 1.

  Attributes:
    precision: of generated images that lie among the real ones.
    recall: of real images that lie among the generated ones.
  """

  precision: float
  recall: float


def frechet(a: np.ndarray, b: np.ndarray) -> float:
  """Squared Frechet distance of Gaussians fitted to two sets; on Inception's, FID.

  |m - n|^2 + tr(A + B - 2 (A B)^(1/2)) of means m, n and covariances A, B, the latter
  with N - 1 in the denominator (Heusel et al. 2017, arXiv:1706.08500, equation 6).

  With A = R'R and B = S'S, the trace of the square root is the sum of the singular
  values of R S'. So no root of a product is taken, which rounding may leave without a
  real one, and fewer samples than features are no special case.

  Args:
    a: float (N, D), N of at least 2, all finite.
    b: float (M, D), likewise. Fewer samples give a larger figure, and far larger below
      some 10,000: compare at equal numbers. Published figures are of 30,000 or 50,000.

  Returns:
    A distance of at least 0, the same for (b, a).

  Raises:
    ValueError: there are too few samples, one is not finite, or D differs.
  """
  a, b = _two(a, b, least=2)
  difference = a.mean(axis=0) - b.mean(axis=0)
  r, s = _factor(a), _factor(b)
  root = np.linalg.svd(r @ s.T, compute_uv=False).sum()
  traces = np.square(r).sum() + np.square(s).sum()
  # Of equal sets, rounding may leave a little less than nothing.
  return max(0.0, float(difference @ difference + traces - 2 * root))


def _factor(x: np.ndarray) -> np.ndarray:
  """R, at most (D, D), such that R'R is the covariance of (N, D) samples."""
  centred = x - x.mean(axis=0)
  return np.linalg.qr(centred, mode='r') / np.sqrt(len(x) - 1)


def kernel(
  a: np.ndarray,
  b: np.ndarray,
  *,
  subset_size: int = 1000,
  subsets: int = 100,
  seed: int = 0,
) -> KernelDistance:
  """Kernel distance of two sets; on Inception's features, KID.

  The unbiased estimate of the squared maximum mean discrepancy with the kernel
  (x.y / D + 1)^3, over subsets drawn without replacement (Binkowski et al. 2018,
  arXiv:1801.01401, section 4; the estimate is that of Gretton et al. 2012, lemma 6).
  Unlike FID, its mean does not depend on the number of samples.

  Args:
    a: float (N, D), N of at least `subset_size`, all finite.
    b: float (M, D), likewise.
    subset_size: samples of either set in one estimate, at least 2.
    subsets: number of estimates, at least 1.
    seed: of the drawing; the same seed gives the same figures.

  Raises:
    ValueError: there are too few samples, one is not finite, D differs, or an option is
      out of range.
  """
  if subset_size < 2 or subsets < 1:
    raise ValueError(
      f'subset_size {subset_size}, subsets {subsets}; expected at least 2 samples in a'
      ' subset and at least one subset.'
    )
  a, b = _two(a, b, least=subset_size)
  rng = np.random.default_rng(seed)
  estimates = [
    _unbiased_mmd(*(x[rng.choice(len(x), subset_size, replace=False)] for x in (a, b)))
    for _ in range(subsets)
  ]
  return KernelDistance(float(np.mean(estimates)), float(np.std(estimates)))


def _unbiased_mmd(x: np.ndarray, y: np.ndarray) -> float:
  """Squared discrepancy of (N, D) and (N, D) samples, pairs of one sample left out."""
  n = len(x)
  within = 0.0
  for one in (x, y):
    values = _polynomial(one, one)
    within += (values.sum() - np.trace(values)) / (n * (n - 1))
  return float(within - 2 * _polynomial(x, y).mean())


def _polynomial(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  return (x @ y.T / x.shape[1] + 1) ** 3


def precision_recall(
  real: np.ndarray, generated: np.ndarray, *, neighbours: int = 3
) -> PrecisionRecall:
  """Improved precision and recall (Kynkaanniemi et al. 2019, arXiv:1904.06991).

  A set's manifold is the union of balls around its samples, each as wide as the
  distance to that sample's k-th nearest other one (equations 1 and 2; a sample on the
  surface is inside). Distances are Euclidean, and held a block of rows at a time:
  64 MB in all, however many samples there are.

  Args:
    real: float (N, D), N above `neighbours`, all finite.
    generated: float (M, D), likewise. Both figures depend on N and M; the paper takes
      50,000 of each.
    neighbours: k, at least 1; 3 in the paper.

  Raises:
    ValueError: there are too few samples, one is not finite, D differs, or `neighbours`
      is out of range.
  """
  if neighbours < 1:
    raise ValueError(f'neighbours: {neighbours}, expected at least 1.')
  names = ('real', 'generated')
  real, generated = _two(real, generated, least=neighbours + 1, names=names)
  # What is far from the origin would lose digits.
  centre = real.mean(axis=0)
  real, generated = real - centre, generated - centre
  return PrecisionRecall(
    precision=_share_inside(generated, real, neighbours),
    recall=_share_inside(real, generated, neighbours),
  )


def _share_inside(x: np.ndarray, manifold: np.ndarray, neighbours: int) -> float:
  """Share of (N, D) samples inside the balls around (M, D) samples."""
  radii = _squared_radii(manifold, neighbours)
  # Rounding would leave samples at one place, and those on a surface, to chance.
  radii += 1e-12 * max(np.square(one).sum(axis=1).max() for one in (x, manifold))
  inside = sum(
    int((squares <= radii).any(axis=1).sum())
    for _, squares in _squared_distances(x, manifold)
  )
  return inside / len(x)


def _squared_radii(x: np.ndarray, neighbours: int) -> np.ndarray:
  """Squared distance (N,) of each sample (N, D) to its k-th nearest other one."""
  radii = np.empty(len(x))
  for rows, squares in _squared_distances(x, x):
    # Itself is no neighbour, though another one at the same place is.
    squares[np.arange(len(squares)), np.arange(rows.start, rows.stop)] = np.inf
    squares.partition(neighbours - 1, axis=1)
    radii[rows] = squares[:, neighbours - 1]
  return radii


def _squared_distances(
  x: np.ndarray, y: np.ndarray
) -> Iterator[tuple[slice, np.ndarray]]:
  """Rows of x, and their squared distances to all of y."""
  norms = np.square(y).sum(axis=1)
  for rows in _blocks(len(x), len(y)):
    part = x[rows]
    squares = part @ y.T
    squares *= -2
    squares += np.square(part).sum(axis=1)[:, None]
    squares += norms
    yield rows, squares


def _blocks(rows: int, columns: int) -> Iterator[slice]:
  """Slices of rows such that each makes a block of bounded size."""
  step = max(1, _NUMBERS_AT_ONCE // columns)
  for start in range(0, rows, step):
    yield slice(start, min(start + step, rows))


def cmmd(a: np.ndarray, b: np.ndarray) -> float:
  """CLIP maximum mean discrepancy (Jayasumana et al. 2024, arXiv:2401.09603).

  The squared discrepancy with the kernel exp(-|x - y|^2 / (2 `SIGMA`^2)) of embeddings
  of unit length, times `SCALE`. As in the paper's code, the estimate is the biased one
  (Gretton et al. 2012, equation 5), which pairs each sample with itself too: it is
  never negative, 0 of equal sets, and on average larger than the true value by about
  `SCALE` (1 - E k) (1 / N + 1 / M). Compare at equal numbers.

  Args:
    a: float (N, D), N of at least 2, embeddings of images by CLIP, ViT-L/14 at 336
      pixels in the paper; all finite. They are scaled to unit length here.
    b: float (M, D), likewise.

  Raises:
    ValueError: there are too few samples, one is not finite or 0, or D differs.
  """
  a, b = _two(a, b, least=2)
  a, b = _unit('a', a), _unit('b', b)
  within = _mean_gaussian(a, a) + _mean_gaussian(b, b)
  return max(0.0, SCALE * (within - 2 * _mean_gaussian(a, b)))


def _mean_gaussian(x: np.ndarray, y: np.ndarray) -> float:
  """Mean of CMMD's kernel, less 1, over all pairs of unit vectors.

  At a width of 10 the kernel is near 1 everywhere, and what counts are the digits
  after that.
  """
  total = 0.0
  for rows in _blocks(len(x), len(y)):
    exponents = x[rows] @ y.T
    exponents -= 1  # -|x - y|^2 / 2 of unit vectors.
    exponents /= SIGMA**2
    total += np.expm1(exponents, out=exponents).sum()
  return float(total / (len(x) * len(y)))


def cosines(images: np.ndarray, captions: np.ndarray) -> np.ndarray:
  """Cosine between each image's embedding and its caption's.

  Args:
    images: float (N, D), N of at least 1, CLIP embeddings of any length but 0.
    captions: float (N, D), likewise, in the same order.

  Returns:
    float64 (N,) in [-1, 1]; `bootstrap.estimate` gives its mean with an interval.

  Raises:
    ValueError: there are no samples, one is not finite or 0, or N or D differs.
  """
  names = ('images', 'captions')
  images, captions = _two(images, captions, least=1, names=names)
  if len(images) != len(captions):
    raise ValueError(
      f'images: {len(images)}, captions: {len(captions)}; expected one caption for each'
      ' image.'
    )
  products = _unit('images', images) * _unit('captions', captions)
  return np.clip(products.sum(axis=1), -1, 1)


def clip_score(images: np.ndarray, captions: np.ndarray) -> float:
  """Mean cosine between images and their captions, in [-1, 1]; see `cosines`.

  Where all cosines are positive, as they are in practice, 2.5 times this is the
  CLIPScore of Hessel et al. 2021 (arXiv:2104.08718, section 3), and 100 times this what
  others report under the name.
  """
  return float(cosines(images, captions).mean())


def _two(
  a: np.ndarray,
  b: np.ndarray,
  *,
  least: int,
  names: tuple[str, str] = ('a', 'b'),
) -> tuple[np.ndarray, np.ndarray]:
  """Both as float64 (N, D), with at least so many samples, all finite."""
  made = []
  for name, x in zip(names, (a, b), strict=True):
    x = np.asarray(x, np.float64)
    if x.ndim != 2 or not x.shape[1]:
      raise ValueError(f'{name}: shape {x.shape}, expected (samples, features).')
    if len(x) < least:
      raise ValueError(f'{name}: {len(x)} samples, expected at least {least}.')
    finite = np.isfinite(x).all(axis=1)
    if not finite.all():
      raise ValueError(
        f'{name}: {np.sum(~finite)} of {len(x)} samples are not finite, the first at'
        f' {np.argmin(finite)}; expected finite numbers.'
      )
    made.append(x)
  first, second = made
  if first.shape[1] != second.shape[1]:
    raise ValueError(
      f'{names[0]}: {first.shape[1]} features, {names[1]}: {second.shape[1]}; expected'
      ' equal numbers, of one model.'
    )
  return first, second


def _unit(name: str, x: np.ndarray) -> np.ndarray:
  """Samples (N, D), each scaled to unit length."""
  lengths = np.linalg.norm(x, axis=1, keepdims=True)
  if not lengths.all():
    raise ValueError(
      f'{name}: sample {np.argmin(lengths)} has length 0; expected an embedding.'
    )
  return x / lengths
