"""The algebra of conditions where the truth is known: mixtures of Gaussians.

The "images" are points (B, 1, 1, D); the "network" is the closed-form eps of a noised
mixture, in which a condition chooses among the components.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from composer_jax.diffusion.process import coefficients, to_eps_and_x0
from composer_jax.diffusion.schedule import make_schedule
from composer_jax.sampling.corrector import langevin
from composer_jax.sampling.ddpm import ddpm
from composer_jax.sampling.expression import And, Is, Not, Or, Weighted, terms
from composer_jax.sampling.guidance import Branch, Guidance, Wish, guide
from composer_jax.sampling.loop import initial_noise, sample, timesteps

T = 1000
ALPHAS = jnp.asarray(make_schedule('cosine').alphas_cumprod, jnp.float32)
COUNT = 3000
SPREAD = 0.25

# Four components at the corners of a square: the factors are independent.
CORNERS = jnp.asarray([[-0.6, -0.5], [-0.6, 0.7], [0.8, -0.5], [0.8, 0.7]])
FACTORS = {'right': CORNERS[:, 0] > 0, 'up': CORNERS[:, 1] > 0}


def log_density(x, means, chosen, alpha):
  """Of a noised mixture of the chosen ones of some means; x (D,)."""
  variance = alpha * SPREAD**2 + 1 - alpha
  distance = ((x - jnp.sqrt(alpha) * means) ** 2).sum(-1)
  parts = jnp.where(chosen, -distance / (2 * variance), -jnp.inf)
  return jax.nn.logsumexp(parts)


def model_of(means, factors):
  """A network that knows the truth: condition 1 of a factor chooses, 0 the rest."""

  def model(x_t, t, stored, kept):
    def one(x, t, stored, kept):
      chosen = jnp.ones(len(means), bool)
      for name, members in factors.items():
        wanted = members == (stored[name] > 0.5)
        chosen &= jnp.where(kept[name] > 0, wanted, True)
      score = jax.grad(log_density)(x.ravel(), means, chosen, ALPHAS[t])
      return -jnp.sqrt(1 - ALPHAS[t]) * score.reshape(x.shape)

    return jax.vmap(one)(x_t, t, stored, kept)

  return model


def wish_of(each, factors):
  """The terms of each point, as a batch."""
  most = max(len(own) for own in each)
  branches, weights = [], np.zeros((most, len(each)), np.float32)
  for j in range(most):
    stored = {name: np.zeros(len(each), np.float32) for name in factors}
    kept = {name: np.zeros(len(each), np.float32) for name in factors}
    for i, own in enumerate(each):
      if j < len(own):
        weights[j, i] = own[j].weight
        for name, value in own[j].values.items():
          stored[name][i], kept[name][i] = value, 1
    branches.append(Branch(stored, kept))
  return Wish(tuple(branches), weights)


@functools.partial(jax.jit, static_argnames=('problem', 'steps', 'correction'))
def run(problem, wish, scale, keys, *, steps=150, correction=0):
  means, factors = problem()
  predict = guide(model_of(means, factors), wish, Guidance(scale), T)

  def denoise(x_t, t):
    c = coefficients(ALPHAS, t, x_t.ndim)
    return to_eps_and_x0('eps', predict(x_t, t), x_t, c)

  return sample(
    denoise,
    ddpm(),
    initial_noise(keys, (1, 1, means.shape[1])),
    ALPHAS,
    timesteps(T, steps, 'trailing'),
    keys,
    corrector=langevin(correction, 0.1) if correction else None,
  )


def corners():
  return CORNERS, FACTORS


def points(expression, scale=1.0, problem=corners, count=COUNT, **more):
  """Samples (count, D) that follow an expression, each with its own draws."""
  rng = np.random.default_rng(0)
  each = [terms(expression, rng) for _ in range(count)]
  keys = jax.random.split(jax.random.key(0), count)
  wish = wish_of(each, problem()[1])
  return np.asarray(run(problem, wish, scale, keys, **more)).reshape(count, -1)


def truth(component_weights, means=CORNERS, count=COUNT):
  rng = np.random.default_rng(1)
  which = rng.choice(len(means), count, p=component_weights)
  return np.asarray(means)[which] + SPREAD * rng.normal(size=(count, means.shape[1]))


def agreement(one, two):
  """The smaller p value of two-sample tests along the axes and the diagonals."""
  tests = [one.T, two.T]
  ways = np.array([[1, 0], [0, 1], [1, 1], [1, -1]]) if one.shape[1] == 2 else [[1]]
  return min(stats.ks_2samp(*(np.dot(way, t) for t in tests)).pvalue for way in ways)


def separate(*parts):
  """An And whose parts do not go through the model together."""
  return And(tuple(Weighted(1 - 1e-6, part) for part in parts))


def test_and_of_independent_factors_is_their_product():
  made = points(separate(Is('right', 1), Is('up', 1)))
  assert agreement(made, truth([0, 0, 0, 1])) > 1e-3
  flipped = points(separate(Is('right', 1), Not(Is('up', 1))))
  assert agreement(flipped, truth([0, 0, 0, 1])) < 1e-9


def test_conditions_given_together_are_what_the_model_knows_of_both():
  made = points(And((Is('right', 0), Is('up', 1))))
  assert agreement(made, truth([0, 1, 0, 0])) > 1e-3


def test_or_is_the_mixture_with_its_weights():
  expression = Or((Weighted(3.0, Is('right', 1)), Is('up', 1)))
  # Right holds two corners of three quarters, up two of one quarter.
  weights = np.array([0, 0.25, 0.75, 0.75 + 0.25]) / 2
  assert agreement(points(expression), truth(weights)) > 1e-3
  swapped = Or((Is('right', 1), Weighted(3.0, Is('up', 1))))
  assert agreement(points(swapped), truth(weights)) < 1e-9


@pytest.mark.parametrize('scale', [0.5, 2.5])
@pytest.mark.parametrize('t', [20, 400, 900])
def test_bidirectional_guidance_is_its_closed_form(scale, t):
  x_t = jax.random.normal(jax.random.key(0), (9, 1, 1, 2))
  one, two = (
    Branch(
      {name: np.ones(9, np.float32) for name in FACTORS},
      {name: np.full(9, name in kept, np.float32) for name in FACTORS},
    )
    for kept in (('right',), ('right', 'up'))
  )
  wish = Wish((two,), np.ones((1, 9), np.float32), one)
  predict = guide(model_of(CORNERS, FACTORS), wish, Guidance(scale), T)

  def guided(x):
    right = log_density(x, CORNERS, FACTORS['right'], ALPHAS[t])
    both = log_density(x, CORNERS, FACTORS['right'] & FACTORS['up'], ALPHAS[t])
    return scale * both + (1 - scale) * right

  score = jax.vmap(jax.grad(guided))(x_t.reshape(9, 2))
  wanted = -jnp.sqrt(1 - ALPHAS[t]) * score
  made = predict(x_t, jnp.int32(t)).reshape(9, 2)
  np.testing.assert_allclose(made, wanted, atol=1e-4)


def test_under_not_the_negated_region_empties_as_the_weight_grows():
  shares = []
  for weight in (1e-3, 0.3, 1.0, 3.0):
    made = points(Not(Weighted(weight, Is('up', 1))))
    shares.append((made[:, 1] > 0.1).mean())
  assert abs(shares[0] - 0.5) < 0.05
  assert shares == sorted(shares, reverse=True)
  assert shares[-1] < 0.05


# Three overlapping components on a line, of which both conditions keep the same two:
# given one, the other is certain.
LINE = jnp.asarray([[-0.4], [0.0], [0.4]])
LOW = jnp.asarray([True, True, False])
SAME = {'low': LOW, 'left': LOW}


def line():
  return LINE, SAME


def product(count=COUNT):
  """Samples of p(x | low) p(x | left) / p(x), from its density on a fine grid."""
  grid = np.linspace(-2.5, 2.5, 5001)

  def log_p(chosen):
    one = functools.partial(log_density, means=LINE, chosen=chosen, alpha=1.0)
    return np.asarray(jax.vmap(one)(grid[:, None]), np.float64)

  log_q = 2 * log_p(LOW) - log_p(jnp.ones(3, bool))
  q = np.exp(log_q - log_q.max())
  return np.random.default_rng(2).choice(grid, count, p=q / q.sum())


def test_langevin_steps_bring_dependent_conditions_nearer_to_their_product():
  expression = separate(Is('low', 1), Is('left', 1))
  wanted = product()
  plain, corrected = (
    stats.wasserstein_distance(
      points(expression, problem=line, correction=steps).ravel(), wanted
    )
    for steps in (0, 8)
  )
  noise = stats.wasserstein_distance(wanted[::2], wanted[1::2])
  assert plain > 3 * noise
  assert corrected < 0.6 * plain
