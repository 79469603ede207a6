"""Counts the multiplications and additions of a function without running it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, Var


def flops_by_argument(
  function: Callable[..., Any], leaves: list[Any], *rest: Any
) -> Counter[int | None]:
  """Counts the matrix products and convolutions of a function, two for each multiply.

  Args:
    function: of a list of arrays and the rest; it is traced, not run.
    leaves: abstract arrays.
    *rest: more abstract arguments.

  Returns:
    Operations by the index of the leaf that takes part in them, None for those in
    which none does, such as the scores of attention.
  """
  closed = jax.make_jaxpr(function)(leaves, *rest)
  origins = {var: index for index, var in enumerate(closed.jaxpr.invars[: len(leaves)])}
  return _count(closed.jaxpr, origins)


# What gives the same numbers in another shape or dtype.
_SAME = {
  'broadcast_in_dim',
  'convert_element_type',
  'copy',
  'reshape',
  'squeeze',
  'transpose',
}


def _count(jaxpr: Jaxpr, origins: dict[Var, int]) -> Counter[int | None]:
  """Counts one jaxpr; `origins` says which of its variables are which leaf."""
  found: Counter[int | None] = Counter()
  for equation in jaxpr.eqns:
    name, parameters = equation.primitive.name, equation.params
    of = [None if isinstance(v, Literal) else origins.get(v) for v in equation.invars]
    known = [origin for origin in of if origin is not None]
    if name in ('dot_general', 'conv_general_dilated'):
      found[known[0] if known else None] += _operations(equation)
    elif name in _SAME and known:
      origins[equation.outvars[0]] = known[0]
    inner = [
      value.jaxpr if isinstance(value, ClosedJaxpr) else value
      for value in jax.tree.leaves(
        list(parameters.values()), is_leaf=lambda v: isinstance(v, (ClosedJaxpr, Jaxpr))
      )
      if isinstance(value, (ClosedJaxpr, Jaxpr))
    ]
    for part in inner:
      # Arguments of a call are its last ones: conditionals begin with an index.
      passed = zip(reversed(part.invars), reversed(of), strict=False)
      inside = {var: origin for var, origin in passed if origin is not None}
      times = parameters.get('length', 1)
      for origin, count in _count(part, inside).items():
        found[origin] += times * count
  return found


def _operations(equation: Any) -> int:
  """Multiplications and additions of a matrix product or a convolution."""
  left, right = (v.aval.shape for v in equation.invars)
  result = math.prod(equation.outvars[0].aval.shape)
  if equation.primitive.name == 'dot_general':
    (contracted, _), _ = equation.params['dimension_numbers']
    return 2 * result * math.prod(left[axis] for axis in contracted)
  kernel = equation.params['dimension_numbers'].rhs_spec
  return 2 * result * math.prod(right) // right[kernel[0]]
