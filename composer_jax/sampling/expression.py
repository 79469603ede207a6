"""Boolean expressions of conditions: And, Or, Not, weights, and their text form.

Which parts of it are exact:

- And of different conditions is what a model is trained for: they go into one term.
  And of two values of one condition adds their guidance directions (Liu et al. 2022,
  eq. 11), which is the score of the product only if they are independent given x_t.
- Or is a mixture: each image follows one alternative, drawn from its seed. Exact.
- Not subtracts a direction (Liu et al. 2022, eq. 13). It has no density of its own.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np


@dataclasses.dataclass(frozen=True)
class Is:
  """A condition with a value: a text until `resolve`, then a stored array."""

  name: str
  value: Any


@dataclasses.dataclass(frozen=True)
class And:
  """All of its parts."""

  parts: tuple[Expression, ...]


@dataclasses.dataclass(frozen=True)
class Or:
  """One of its parts, as often as its weight says; 1 unless `Weighted`."""

  parts: tuple[Expression, ...]


@dataclasses.dataclass(frozen=True)
class Not:
  """Away from its part."""

  part: Expression


@dataclasses.dataclass(frozen=True)
class Weighted:
  """Its part more or less strongly; within `Or`, more or less often."""

  weight: float
  part: Expression


Expression = Is | And | Or | Not | Weighted


class Term(NamedTuple):
  """A set of conditions that go through the model together.

  Attributes:
    weight: of the guidance direction that it gives; below 0 leads away from it.
    values: by name.
  """

  weight: float
  values: dict[str, Any]


def terms(expression: Expression, rng: np.random.Generator) -> list[Term]:
  """What one image follows: a sum of weighted terms.

  The first term has weight 1 and holds all that can be asked for in one pass; it is
  empty if nothing can.

  Args:
    expression: any nesting.
    rng: draws the alternative of each `Or`.
  """
  found = _directions(expression, rng, positive=True)
  together: dict[str, Any] = {}
  rest = []
  for term in found:
    if term.weight == 1 and not together.keys() & term.values.keys():
      together |= term.values
    else:
      rest.append(term)
  return [Term(1.0, together), *rest]


def _directions(
  expression: Expression, rng: np.random.Generator, *, positive: bool
) -> list[Term]:
  match expression:
    case Is(name, value):
      return [Term(1.0 if positive else -1.0, {name: value})]
    case Weighted(weight, part):
      inner = _directions(part, rng, positive=positive)
      return [Term(weight * term.weight, term.values) for term in inner]
    case Not(part):
      return _directions(part, rng, positive=not positive)
    case And(parts) if positive:
      return [t for part in parts for t in _directions(part, rng, positive=True)]
    case Or(parts) if positive:
      weights = np.array([p.weight if isinstance(p, Weighted) else 1 for p in parts])
      chosen = parts[int(rng.choice(len(parts), p=weights / weights.sum()))]
      chosen = chosen.part if isinstance(chosen, Weighted) else chosen
      return _directions(chosen, rng, positive=True)
    case Or(parts):
      # Not any of them: away from each.
      return [t for part in parts for t in _directions(part, rng, positive=False)]
    case And():
      # Not all of them at once: away from what they are together.
      return [Term(-t.weight, t.values) for t in terms(expression, rng) if t.values]
  raise TypeError(f'{expression!r} is no expression.')


def resolve(
  expression: Expression, value_of: Callable[[str, str], dict[str, Any]]
) -> Expression:
  """Puts stored arrays in the place of texts.

  Args:
    expression: as `parse` gives it.
    value_of: from name and text of a condition to its stored value; under several
      names if the text says several, as a caption says its semantics.
  """
  match expression:
    case Is(name, value):
      found = tuple(Is(n, v) for n, v in value_of(name, value).items())
      return found[0] if len(found) == 1 else And(found)
    case Not(part):
      return Not(resolve(part, value_of))
    case Weighted(weight, part):
      return Weighted(weight, resolve(part, value_of))
    case And(parts):
      return And(tuple(resolve(part, value_of) for part in parts))
    case Or(parts):
      return Or(tuple(resolve(part, value_of) for part in parts))


MOST_TOKENS = 200
"""Names, weights and signs in one text: it may come from strangers."""

_TOKEN = re.compile(
  r"""\s*(?:
    (?P<sign>[&|!()])
    | (?P<weight>\d+(?:\.\d*)?|\.\d+)\s*\*
    | (?P<name>[a-z_]+)\s*:\s*(?:
        '(?P<single>[^']*)'|"(?P<double>[^"]*)"|(?!['"])(?P<bare>[^\s&|()]+)
      )
  )""",
  re.VERBOSE,
)


def parse(text: str) -> Expression:
  """Reads the text form, such as `sketch:a.png & palette:b.png & !caption:'snow'`.

  `!` binds closest, then a weight (`0.5 * ...`), then `&`, then `|`; parentheses
  group. A value ends at a space or at one of `&|()`, unless it is in quotes.

  Raises:
    ValueError: the text is no expression; says where, and what was expected.
  """
  tokens = list(_tokens(text))
  if len(tokens) > MOST_TOKENS:
    raise ValueError(
      f'The expression has {len(tokens)} parts; expected at most {MOST_TOKENS}.'
    )
  expression, rest = _alternatives(tokens, text)
  if rest:
    raise _unexpected(text, rest, 'the end, & or |')
  return expression


class _Token(NamedTuple):
  kind: str
  value: Any
  start: int


def _tokens(text: str) -> Iterator[_Token]:
  position = 0
  while text[position:].strip():
    match = _TOKEN.match(text, position)
    if match is None:
      start = position + len(text[position:]) - len(text[position:].lstrip())
      raise _unexpected(
        text, [_Token('', '', start)], 'NAME:VALUE, a weight, or one of ! & | ( )'
      )
    start = match.start() + len(match[0]) - len(match[0].lstrip())
    position = match.end()
    if match['sign']:
      yield _Token(match['sign'], None, start)
    elif match['weight']:
      weight = float(match['weight'])
      if not weight:
        raise _unexpected(text, [_Token('', '', start)], 'a weight above 0')
      yield _Token('weight', weight, start)
    else:
      values = (match[kind] for kind in ('single', 'double', 'bare'))
      value = next(value for value in values if value is not None)
      yield _Token('is', Is(match['name'], value), start)


def _alternatives(tokens: list[_Token], text: str) -> tuple[Expression, list[_Token]]:
  return _joined('|', Or, _conjunction, tokens, text)


def _conjunction(tokens: list[_Token], text: str) -> tuple[Expression, list[_Token]]:
  return _joined('&', And, _factor, tokens, text)


def _joined(
  sign: str, kind: type[And] | type[Or], part: Any, tokens: list[_Token], text: str
) -> tuple[Expression, list[_Token]]:
  first, tokens = part(tokens, text)
  parts = [first]
  while tokens and tokens[0].kind == sign:
    one, tokens = part(tokens[1:], text)
    parts.append(one)
  return (first if len(parts) == 1 else kind(tuple(parts))), tokens


def _factor(tokens: list[_Token], text: str) -> tuple[Expression, list[_Token]]:
  if not tokens:
    raise _unexpected(text, tokens, 'NAME:VALUE')
  token, rest = tokens[0], tokens[1:]
  if token.kind == 'is':
    return token.value, rest
  if token.kind == 'weight':
    part, rest = _factor(rest, text)
    return Weighted(token.value, part), rest
  if token.kind == '!':
    part, rest = _factor(rest, text)
    return Not(part), rest
  if token.kind == '(':
    part, rest = _alternatives(rest, text)
    if not rest or rest[0].kind != ')':
      raise _unexpected(text, rest, ')')
    return part, rest[1:]
  raise _unexpected(text, tokens, 'NAME:VALUE, a weight, ! or (')


def _unexpected(text: str, rest: list[_Token], expected: str) -> ValueError:
  where = f'at {text[rest[0].start :][:20]!r}' if rest else 'at its end'
  return ValueError(f'The expression {text!r} is wrong {where}; expected {expected}.')
