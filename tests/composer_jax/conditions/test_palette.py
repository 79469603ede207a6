from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import skimage.color

from composer_jax.conditions import palette
from composer_jax.conditions.palette import Palette, expected_colours, from_colours
from composer_jax.diffusion.process import Coefficients
from composer_jax.images import Picture

# Composer, section 2.1, in the counts, order and constants of the authors' code.
HUES = [0, 0.0833, 0.166, 0.25, 0.333, 0.5, 0.56333, 0.666, 0.73, 0.803, 0.916]
S = L = 5
RED, GREEN, BLUE = np.eye(3, dtype=np.uint8) * 255


def reference_codebook():
  """The HSV grid hue by hue, then the grays."""
  saturations = [*np.linspace(0, 1, S + 2)[1:-1], 1, *np.ones(L), *[0.4] * (L - 1)]
  ramp = np.linspace(1, 0.2, L + 2)
  values = [*np.ones(S), 1, *ramp[1:-1], *ramp[1:-2]]
  grid = np.empty((len(HUES), S + 2 * L, 3))
  grid[:, :, 0] = np.reshape(HUES, (-1, 1))
  grid[:, :, 1] = saturations
  grid[:, :, 2] = values
  grays = np.repeat(np.linspace(1, 0, S + 2 * L)[:, None], 3, axis=1)
  return np.concatenate([skimage.color.hsv2rgb(grid).reshape(-1, 3), grays])


CODEBOOK = reference_codebook()
CODEBOOK_LAB = skimage.color.rgb2lab(CODEBOOK)
DISTANCES = np.linalg.norm(CODEBOOK_LAB[:, None] - CODEBOOK_LAB[None], axis=-1)


def reference_histogram(pixels):
  lab = skimage.color.rgb2lab(pixels).reshape(-1, 3)
  share = np.zeros(len(CODEBOOK))
  for pixel in lab:
    share[np.argmin(((pixel - CODEBOOK_LAB) ** 2).sum(axis=1))] += 1 / len(lab)
  return share


def reference_smooth(share):
  weights = np.exp(-(DISTANCES**2) / (2 * 10**2))
  smoothed = np.array([(row / row.sum()) @ share for row in weights])
  smoothed[smoothed < 1e-5] = 0
  return smoothed


def extract(pixels):
  return Palette().extract(Picture(pixels), np.random.default_rng(0))


def noise(seed, shape=(40, 40)):
  return np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)


def test_codebook_has_the_180_colours_of_the_listing_in_its_order():
  np.testing.assert_array_equal(palette.codebook(), np.round(CODEBOOK * 255))
  assert len(CODEBOOK) == 180 == Palette().spec(64).shape[0]
  assert len(np.unique(CODEBOOK, axis=0)) == 180


def test_codebook_starts_with_pale_red_and_ends_with_white_to_black():
  book = palette.codebook().tolist()
  assert book[0] == [255, 212, 212]  # Saturation 1/6.
  assert book[5] == [255, 0, 0]
  assert book[15] == [255, 234, 212]  # The next hue, 30 degrees.
  assert book[-15] == [255, 255, 255] and book[-1] == [0, 0, 0]


def test_distances_are_those_of_scikit_image():
  np.testing.assert_allclose(palette.distances(), DISTANCES, atol=1e-3)


@pytest.mark.parametrize('seed', range(3))
def test_histogram_of_noise_equals_a_brute_force_search(seed):
  pixels = noise(seed)
  # Exactly: each pixel is in the same bin.
  np.testing.assert_allclose(
    palette.histogram(pixels), reference_histogram(pixels), rtol=0, atol=1e-12
  )


def test_palettes_of_photographs_equal_the_direct_computation(photographs):
  for picture in photographs:
    wanted = reference_smooth(reference_histogram(picture.pixels))
    got = extract(picture.pixels)
    assert got.dtype == np.float32 and got.shape == (180,)
    np.testing.assert_array_equal(got > 0, wanted > 0)
    np.testing.assert_allclose(got, wanted, rtol=2e-4, atol=1e-7)


def test_flat_and_noisy_palettes_equal_the_direct_computation():
  for pixels in (noise(5), *(np.full((4, 4, 3), c, np.uint8) for c in (0, 99, 255))):
    wanted = reference_smooth(reference_histogram(pixels))
    np.testing.assert_allclose(extract(pixels), wanted, rtol=2e-4, atol=1e-7)


def test_each_codebook_colour_alone_fills_its_own_bin():
  for index, colour in enumerate(palette.codebook()):
    share = palette.histogram(np.broadcast_to(colour, (2, 3, 3)))
    assert share[index] == 1 and share.sum() == 1


def test_smoothing_cuts_what_is_below_the_floor():
  rare = np.zeros(180)
  rare[5] = 1e-4
  full = np.zeros(180)
  full[5] = 1
  got, uncut = palette.smooth(rare), palette.smooth(full) * 1e-4
  np.testing.assert_allclose(got[got > 0], uncut[got > 0], rtol=1e-5)
  assert (got == 0).sum() > (uncut == 0).sum()
  assert got[got > 0].min() >= 1e-5
  np.testing.assert_array_equal(got > 0, uncut >= 1e-5)


def test_places_of_the_colours_do_not_matter():
  pixels = noise(1)
  shuffled = np.random.default_rng(0).permutation(pixels.reshape(-1, 3))
  np.testing.assert_array_equal(extract(pixels), extract(shuffled.reshape(20, 80, 3)))


def test_given_colours_equal_an_image_that_has_them_in_these_proportions():
  pixels = np.array([RED] * 6 + [GREEN] * 3 + [[7, 80, 130]], np.uint8)
  given = from_colours(np.array([RED, GREEN, [7, 80, 130]]), np.array([12, 6, 2]))
  np.testing.assert_allclose(given, extract(pixels[None]), rtol=1e-6)
  alike = from_colours([RED, BLUE])
  np.testing.assert_allclose(alike, extract(np.array([[RED, BLUE]])), rtol=1e-6)


def test_features_of_two_palettes_multiply_to_their_overlap():
  a, b = extract(noise(0)), extract(noise(1))
  vectors = Palette().features(np.stack([a, b])).vector
  overlap = np.sqrt(a.astype(float) * b).sum()
  np.testing.assert_allclose(vectors[0] @ vectors[1] / 180, overlap, rtol=1e-5)


def test_features_have_no_tokens_of_their_own_but_four_extra():
  assert Palette().features(np.ones((1, 180), np.float32)).tokens is None
  assert Palette.extra_tokens == 4


def transport_cost(p, q):
  """The earth mover's linear programme (Rubner et al. 2000), solved as such."""
  i, j = np.flatnonzero(p), np.flatnonzero(q)
  rows = np.kron(np.eye(len(i)), np.ones(len(j)))
  columns = np.kron(np.ones(len(i)), np.eye(len(j)))
  solution = scipy.optimize.linprog(
    DISTANCES[np.ix_(i, j)].ravel(),
    A_eq=np.concatenate([rows, columns[:-1]]),  # One constraint follows from others.
    b_eq=np.concatenate([p[i] / p.sum(), q[j][:-1] / q.sum()]),
    bounds=(0, None),
  )
  assert solution.success
  return solution.fun


def steps(*signals):
  signal = jnp.reshape(jnp.array(signals, jnp.float32), (-1, 1, 1, 1))
  return Coefficients(signal, jnp.sqrt(1 - signal**2))


def test_expected_colours_are_those_of_bayes_rule_pixel_by_pixel():
  size, strength = 6, np.array([1.0, 2.0])
  rng = np.random.default_rng(0)
  x_t = rng.normal(size=(2, size, size, 3)).astype(np.float32)
  stored = rng.dirichlet(np.full(180, 0.05), 2).astype(np.float32)
  c = steps(0.4, 0.9)
  image = expected_colours(x_t, c, stored, strength)
  for b, y, x in np.ndindex(2, size, size):
    signal, noise = c.signal[b].item(), c.noise[b].item()
    reach = palette.REACH * np.sqrt(noise / signal)

    def near(at, reach=reach):
      weights = scipy.stats.norm.pdf(np.arange(size), at, reach * size)
      return weights / weights.sum()

    seen = np.einsum('i,ijc,j->c', near(y), x_t[b], near(x))
    # The noise that is left of an average is counted as in the middle of the image.
    left = (near(size // 2) ** 2).sum() * noise
    spread = np.hypot(left, (0.1 + 5 * reach) * signal)
    likelihood = scipy.stats.norm.pdf(seen, signal * (2 * CODEBOOK - 1), spread)
    share = np.maximum(stored[b], palette.FLOOR) ** strength[b]
    posterior = share * likelihood.prod(axis=1)
    expected = posterior @ (2 * CODEBOOK - 1) / posterior.sum()
    np.testing.assert_allclose(image[b, y, x], expected, atol=2e-5)


def test_pure_noise_leaves_the_mean_of_the_palette_and_no_noise_the_colour_seen():
  stored = np.stack([from_colours([RED, BLUE])] * 2)
  blue = np.broadcast_to(2.0 * (BLUE / 255) - 1, (2, 16, 16, 3))
  image = expected_colours(blue, steps(0, 1), stored, np.ones(2))
  # Smoothing gives other colours a share too.
  mean = np.maximum(stored[0], palette.FLOOR) @ (2 * CODEBOOK - 1) / stored[0].sum()
  np.testing.assert_allclose(image[0], np.broadcast_to(mean, (16, 16, 3)), atol=5e-3)
  assert np.abs(image[1] - blue[1]).max() < 0.1
  assert np.abs(image[0] - blue[0]).max() > 0.5


@pytest.mark.parametrize('seed', range(3))
def test_earth_movers_distance_is_the_optimum_of_the_linear_programme(seed):
  rng = np.random.default_rng(seed)
  p, q = np.zeros((2, 180))
  for shares in (p, q):
    shares[rng.choice(180, 12, replace=False)] = rng.uniform(0.1, 3, 12)
  fidelity = Palette().fidelity(p.astype(np.float32), q.astype(np.float32))
  assert fidelity['earth_movers_lab'] == pytest.approx(transport_cost(p, q), rel=1e-4)


def test_earth_movers_distance_of_single_colours_is_their_distance_in_cielab():
  one = np.eye(180, dtype=np.float32)
  for i, j in ((0, 1), (5, 80), (165, 179)):
    moved = Palette().fidelity(one[i], one[j])['earth_movers_lab']
    assert moved == pytest.approx(DISTANCES[i, j], abs=1e-3)
    # Half of the colour stays where it is.
    moved = Palette().fidelity(one[i], (one[i] + one[j]) / 2)['earth_movers_lab']
    assert moved == pytest.approx(DISTANCES[i, j] / 2, abs=1e-3)
  # From white to black is the whole range of L.
  assert Palette().fidelity(one[165], one[179])['earth_movers_lab'] == pytest.approx(
    100, abs=0.01
  )


def test_cosine_is_that_of_the_histograms():
  a, b, c = np.eye(180, dtype=np.float32)[[3, 60, 170]]
  cosine = [
    Palette().fidelity(x, y)['cosine']
    for x, y in ((a, b), (a, a + b), (a + b, 3 * a + 4 * c), (2 * a, 5 * a))
  ]
  assert cosine == pytest.approx([0, 0.5**0.5, 3 / (2**0.5 * 5), 1], abs=1e-6)


def test_a_palette_without_any_colour_has_no_fidelity():
  some = from_colours([RED])
  for pair in ((some, 0 * some), (0 * some, some)):
    with pytest.raises(ValueError, match='without any colour'):
      Palette().fidelity(*pair)


def test_drawings_show_the_colours_widest_first_and_as_wide_as_their_shares():
  drawn = Palette().draw(from_colours([BLUE, RED, [255] * 3], [1, 5, 2]))
  assert (drawn == drawn[:1]).all()
  row = drawn[0]
  ends = np.flatnonzero((row[1:] != row[:-1]).any(axis=-1)) + 1
  swatches = [part[0].tolist() for part in np.split(row, ends)]
  assert len(swatches) == 3
  # Swatches are bins, and smoothing may move a peak to a similar one.
  for swatch, colour in zip(swatches, (RED, [255] * 3, BLUE), strict=True):
    a, b = skimage.color.rgb2lab(np.array([swatch, colour], np.uint8))
    assert np.linalg.norm(a - b) < 15
  widths = np.diff([0, *ends, len(row)])
  assert (np.diff(widths) <= 0).all() and widths[0] > len(row) / 2


def test_a_drawing_of_no_colour_is_white():
  assert (Palette().draw(np.zeros(180, np.float32)) == 255).all()
