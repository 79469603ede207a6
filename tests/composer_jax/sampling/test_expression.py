from __future__ import annotations

import itertools

import numpy as np
import pytest

from composer_jax.sampling.expression import (
  MOST_TOKENS,
  And,
  Is,
  Not,
  Or,
  Term,
  Weighted,
  parse,
  resolve,
  terms,
)

A, B, C = Is('sketch', 'a'), Is('palette', 'b'), Is('caption', 'c')
B2 = Is('palette', 'd')


def rng(seed=0):
  return np.random.default_rng(seed)


@pytest.mark.parametrize(
  ('text', 'wanted'),
  [
    ('sketch:a', A),
    (" sketch : 'a' ", A),
    ('sketch:a & palette:b', And((A, B))),
    ('sketch:a&palette:b&caption:c', And((A, B, C))),
    ('sketch:a | palette:b & caption:c', Or((A, And((B, C))))),
    ('(sketch:a | palette:b) & caption:c', And((Or((A, B)), C))),
    ('!sketch:a & palette:b', And((Not(A), B))),
    ('!(sketch:a & palette:b)', Not(And((A, B)))),
    ('!!sketch:a', Not(Not(A))),
    ('0.5 * sketch:a', Weighted(0.5, A)),
    ('2*sketch:a|.25*palette:b', Or((Weighted(2.0, A), Weighted(0.25, B)))),
    ('!1.5*caption:c', Not(Weighted(1.5, C))),
    ("caption:'a red (big) apple & more'", Is('caption', 'a red (big) apple & more')),
    ('caption:"it\'s"', Is('caption', "it's")),
    ('sketch:folder/a-1.png', Is('sketch', 'folder/a-1.png')),
    ('palette:#aa3322:2,#fff', Is('palette', '#aa3322:2,#fff')),
  ],
)
def test_text_is_read_with_the_usual_precedence(text, wanted):
  assert parse(text) == wanted


@pytest.mark.parametrize(
  ('text', 'said'),
  [
    ('', 'at its end; expected NAME:VALUE'),
    ('sketch', "at 'sketch'; expected NAME:VALUE"),
    ('sketch:', "at 'sketch:'"),
    ('sketch:a &', 'at its end; expected NAME:VALUE'),
    ('& sketch:a', "at '& sketch:a'; expected NAME:VALUE"),
    ('sketch:a palette:b', "at 'palette:b'; expected the end, & or |"),
    ('(sketch:a', r'at its end; expected \)'),
    ('sketch:a)', r"at '\)'; expected the end"),
    ("caption:'snow", 'at .*; expected'),
    ('0 * sketch:a', r"at '0 \* sketch:a'; expected a weight above 0"),
    ('-1 * sketch:a', "at '-1"),
    ('(' * 5000 + 'sketch:a', f'5001 parts; expected at most {MOST_TOKENS}'),
  ],
)
def test_what_is_no_expression_is_refused_with_its_place(text, said):
  with pytest.raises(ValueError, match=said):
    parse(text)


def test_different_conditions_go_through_the_model_together():
  assert terms(And((A, And((B, C)))), rng()) == [
    Term(1.0, {'sketch': 'a', 'palette': 'b', 'caption': 'c'})
  ]


def test_two_values_of_a_condition_are_two_terms():
  assert terms(And((A, B, B2)), rng()) == [
    Term(1.0, {'sketch': 'a', 'palette': 'b'}),
    Term(1.0, {'palette': 'd'}),
  ]


def test_weights_make_terms_of_their_own_and_multiply():
  expression = And((A, Weighted(0.5, And((B, Weighted(3.0, C))))))
  assert terms(expression, rng()) == [
    Term(1.0, {'sketch': 'a'}),
    Term(0.5, {'palette': 'b'}),
    Term(1.5, {'caption': 'c'}),
  ]


def test_not_subtracts_and_leaves_an_empty_first_term():
  assert terms(Not(A), rng()) == [Term(1.0, {}), Term(-1.0, {'sketch': 'a'})]
  assert terms(And((B, Not(Weighted(2.0, A)))), rng()) == [
    Term(1.0, {'palette': 'b'}),
    Term(-2.0, {'sketch': 'a'}),
  ]
  assert terms(Not(Not(A)), rng()) == [Term(1.0, {'sketch': 'a'})]


def test_not_any_is_away_from_each_and_not_all_away_from_them_together():
  assert terms(Not(Or((A, B))), rng()) == [
    Term(1.0, {}),
    Term(-1.0, {'sketch': 'a'}),
    Term(-1.0, {'palette': 'b'}),
  ]
  assert terms(Not(And((A, B))), rng()) == [
    Term(1.0, {}),
    Term(-1.0, {'sketch': 'a', 'palette': 'b'}),
  ]
  assert terms(Not(And((A, Not(B)))), rng()) == [
    Term(1.0, {'palette': 'b'}),
    Term(-1.0, {'sketch': 'a'}),
  ]


def test_or_draws_an_alternative_as_often_as_its_weight_says():
  expression = And((A, Or((Weighted(3.0, B), B2))))
  generator, count = rng(), 4000
  drawn = [terms(expression, generator)[0].values['palette'] for _ in range(count)]
  share = drawn.count('b') / count
  assert abs(share - 0.75) < 4 * np.sqrt(0.75 * 0.25 / count)
  # Its weight says how often, not how strongly.
  assert all(len(terms(expression, rng(i))) == 1 for i in range(20))


def test_the_same_draw_gives_the_same_terms():
  expression = And((Or((A, B)), Or((C, B2))))
  assert terms(expression, rng(5)) == terms(expression, rng(5))
  several = {str(terms(expression, rng(i))) for i in range(40)}
  assert len(several) == 4


def test_logic_on_all_truth_values():
  # Of an expression without Or among its positives: an image in which exactly the
  # positive conditions hold satisfies it, and breaks its negation.
  def holds(expression, facts):
    match expression:
      case Is(name, _):
        return name in facts
      case Not(part):
        return not holds(part, facts)
      case And(parts):
        return all(holds(part, facts) for part in parts)
      case Or(parts):
        return any(holds(part, facts) for part in parts)

  literals = [A, B, C, Not(A), Not(B), Not(C)]
  for one, two in itertools.combinations(literals, 2):
    for expression in (And((one, two)), Not(Or((one, two)))):
      found = terms(expression, rng())
      asked = {n for term in found if term.weight > 0 for n in term.values}
      avoided = {n for term in found if term.weight < 0 for n in term.values}
      if asked & avoided:
        continue  # A contradiction.
      assert holds(expression, asked)


def test_texts_become_values_and_a_text_may_say_several():
  def value_of(name, text):
    if name == 'caption':
      return {'caption': text.upper(), 'semantics': text + '!'}
    return {name: text * 2}

  expression = And((A, Not(Weighted(2.0, C)), Or((B, B2))))
  wanted = And(
    (
      Is('sketch', 'aa'),
      Not(Weighted(2.0, And((Is('caption', 'C'), Is('semantics', 'c!'))))),
      Or((Is('palette', 'bb'), Is('palette', 'dd'))),
    )
  )
  assert resolve(expression, value_of) == wanted
