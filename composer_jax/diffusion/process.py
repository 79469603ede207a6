"""The forward process and the ways in which a network can predict its reverse."""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

Prediction = Literal['eps', 'v', 'x0']


class Coefficients(NamedTuple):
  """sqrt(a_t) and sqrt(1 - a_t), shaped to multiply images."""

  signal: jax.Array
  noise: jax.Array


def coefficients(alphas_cumprod: jax.Array, t: jax.Array, ndim: int) -> Coefficients:
  """Looks up the coefficients of steps t (B,) for arrays of `ndim` axes."""
  a = alphas_cumprod[t].reshape(t.shape + (1,) * (ndim - t.ndim))
  return Coefficients(jnp.sqrt(a), jnp.sqrt(1 - a))


def q_sample(x_0: jax.Array, noise: jax.Array, c: Coefficients) -> jax.Array:
  """Noises x_0: a draw from q(x_t | x_0), DDPM eq. 4."""
  return c.signal * x_0 + c.noise * noise


def target(
  prediction: Prediction, x_0: jax.Array, noise: jax.Array, c: Coefficients
) -> jax.Array:
  """What the network is asked for.

  Args:
    prediction: `eps` (Ho et al. 2020), `x0`, or `v` = sqrt(a) eps - sqrt(1-a) x_0
      (Salimans and Ho 2022, appendix D).
    x_0: the clean image.
    noise: the noise that was added.
    c: coefficients of the step.

  Raises:
    ValueError: the prediction type is unknown.
  """
  if prediction == 'eps':
    return noise
  if prediction == 'v':
    return c.signal * noise - c.noise * x_0
  if prediction == 'x0':
    return x_0
  raise ValueError(
    f'diffusion.prediction is {prediction!r}; expected "eps", "v" or "x0".'
  )


def to_eps_and_x0(
  prediction: Prediction, output: jax.Array, x_t: jax.Array, c: Coefficients
) -> tuple[jax.Array, jax.Array]:
  """Turns a network output of any prediction type into (eps, x_0)."""
  if prediction == 'eps':
    return output, (x_t - c.noise * output) / c.signal
  if prediction == 'v':
    return c.signal * output + c.noise * x_t, c.signal * x_t - c.noise * output
  if prediction == 'x0':
    return (x_t - c.signal * output) / c.noise, output
  raise ValueError(
    f'diffusion.prediction is {prediction!r}; expected "eps", "v" or "x0".'
  )


def velocity_around(
  guess: jax.Array,
  spread: jax.Array | float,
  output: jax.Array,
  x_t: jax.Array,
  c: Coefficients,
) -> jax.Array:
  """The v of a network that predicts only what a guess of x_0 leaves open.

  Were x_0 normal around the guess, v given x_t would be normal too: this is its mean
  plus `output` times its standard deviation. So the network starts from the guess and
  has unit variance to predict at every step, which is the preconditioning of Karras
  et al. 2022 (arXiv 2206.00364, section 5) around the guess instead of around 0.

  Args:
    guess: of x_0, such as an enlarged low-resolution image.
    spread: standard deviation of x_0 around it, above 0; a scalar or for each pixel.
    output: of the network.
    x_t: the noised image.
    c: coefficients of the step.
  """
  variance = c.noise**2 + spread**2 * c.signal**2
  mean = c.noise * ((1 - spread**2) * c.signal * x_t - guess) / variance
  return mean + spread / jnp.sqrt(variance) * output
