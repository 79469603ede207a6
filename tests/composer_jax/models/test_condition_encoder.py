from __future__ import annotations

import jax
import numpy as np
import pytest
import torch
from flax import nnx
from jax import numpy as jnp
from torch.nn import functional

from composer_jax.conditions import ALL, by_name
from composer_jax.models.condition_encoder import ConditionEncoder
from tests.composer_jax.models.public_weights import (
  assert_near,
  to_numpy,
  to_torch,
  with_random_weights,
)

BATCH, SIZE, GRID = 3, 16, 8
SIZES = dict(grid=GRID, embedding=20, context=12, local_hidden=10, local_width=6)
NAMES = tuple(c.name for c in ALL)
GLOBAL = tuple(c.name for c in ALL if not c.local)
LOCAL = tuple(c.name for c in ALL if c.local)
# The embedded ones have the sizes of their encoder.
SHAPES = {c.name: c.spec(SIZE).shape for c in ALL}
SHAPES |= {'caption': (6, 24), 'semantics': (24,)}
WORDS = 5


def random_values(seed=0):
  rng = np.random.default_rng(seed)
  stored = {}
  for condition in ALL:
    spec, shape = condition.spec(SIZE), (BATCH, *SHAPES[condition.name])
    if np.issubdtype(spec.dtype, np.integer):
      stored[condition.name] = rng.integers(0, spec.high + 1, shape).astype(spec.dtype)
    elif condition.embedded:
      stored[condition.name] = (rng.normal(size=shape) / 5).astype(spec.dtype)
    else:
      stored[condition.name] = rng.uniform(0, spec.high, shape).astype(spec.dtype)
  return stored


STORED = random_values()
OTHER = random_values(1)


def kept(*names, of=NAMES):
  return {name: jnp.full(BATCH, name in names) for name in of}


def make(names=NAMES, shapes=SHAPES, **changes):
  return with_random_weights(
    lambda: ConditionEncoder(names, shapes, **SIZES | changes, rngs=nnx.Rngs(0))
  )


ENCODER = make()
encode = nnx.jit(lambda encoder, stored, kept: encoder(stored, kept))


def linear(layer, x):
  return x @ torch.tensor(layer.kernel[...]) + torch.tensor(layer.bias[...])


def convolution(layer, x):
  kernel = torch.tensor(layer.kernel[...]).permute(3, 2, 0, 1)
  return functional.conv2d(x, kernel, torch.tensor(layer.bias[...]), padding=1)


def reference_map(branch, features):
  """Convolutions with SiLU between, after moving pixels into channels."""
  factor = features.shape[1] // GRID
  x = functional.pixel_unshuffle(to_torch(features), factor)
  # From each channel's pixels in turn to each pixel's channels in turn.
  x = x.unflatten(1, (-1, factor**2)).transpose(1, 2).flatten(1, 2)
  first, second, last = branch.layers
  x = functional.silu(convolution(first, x))
  x = functional.silu(convolution(second, x))
  return to_numpy(convolution(last, x))


def reference_embedding(branch, vector):
  return linear(branch.vector_out, functional.silu(linear(branch.vector_in, vector)))


def torch_features(name):
  features = by_name([name])[0].features(STORED[name])
  return [None if x is None else torch.tensor(np.asarray(x)) for x in features[:2]]


def test_maps_equal_convolutions_of_pytorch_one_by_one():
  for name in LOCAL:
    encoded = encode(ENCODER, STORED, kept(name, of=[name]))
    assert encoded.embedding is None and encoded.context is None
    features = np.asarray(by_name([name])[0].features(STORED[name]))
    wanted = reference_map(ENCODER.branches[name], features)
    assert wanted.shape == (BATCH, GRID, GRID, 6)
    assert_near(encoded.feature_map, wanted)


def test_embedding_and_context_equal_projections_of_pytorch():
  embedding, context = 0, []
  for name in ('caption', 'semantics', 'palette'):
    branch, (vector, tokens) = ENCODER.branches[name], torch_features(name)
    embedding = embedding + reference_embedding(branch, vector)
    if name == 'caption':
      context.append(linear(branch.to_context, tokens))
    else:
      context.append(linear(branch.to_extra, vector).unflatten(1, (4, 12)))
  encoded = encode(ENCODER, STORED, kept(*GLOBAL, of=GLOBAL))
  assert encoded.feature_map is None
  assert_near(encoded.embedding, embedding)
  assert_near(encoded.context, torch.cat(context, dim=1))


def test_maps_are_summed():
  maps = [encode(ENCODER, STORED, kept(name)).feature_map for name in LOCAL]
  together = encode(ENCODER, STORED, kept(*NAMES)).feature_map
  assert_near(together, sum(np.asarray(x, np.float64) for x in maps))
  assert all(np.abs(x).max() > 0.1 for x in maps)


def test_embeddings_are_summed():
  parts = [encode(ENCODER, STORED, kept(name)).embedding for name in GLOBAL]
  together = encode(ENCODER, STORED, kept(*NAMES)).embedding
  assert_near(together, sum(np.asarray(x, np.float64) for x in parts))
  assert all(np.abs(x).max() > 0.1 for x in parts)


def test_image_embedding_and_palette_give_eight_tokens_together_after_the_words():
  both = encode(
    ENCODER, STORED, kept('semantics', 'palette', of=['semantics', 'palette'])
  )
  assert both.context.shape == (BATCH, 8, 12)
  everything = encode(ENCODER, STORED, kept(*NAMES)).context
  assert everything.shape == (BATCH, WORDS + 8, 12)
  assert_near(everything[:, WORDS:], both.context)


def test_dropped_conditions_are_zero_and_the_others_are_not_rescaled():
  whole = encode(ENCODER, STORED, kept(*NAMES))
  part = encode(ENCODER, STORED, kept(*(set(NAMES) - {'palette'})))
  np.testing.assert_array_equal(part.context[:, -4:], np.zeros((BATCH, 4, 12)))
  np.testing.assert_array_equal(part.context[:, :-4], whole.context[:, :-4])
  np.testing.assert_array_equal(part.feature_map, whole.feature_map)
  branch = ENCODER.branches['palette']
  alone = reference_embedding(branch, torch_features('palette')[0])
  assert_near(part.embedding, np.asarray(whole.embedding) - alone.numpy())


def test_dropping_everything_adds_nothing_as_if_there_were_no_conditions():
  encoded = encode(ENCODER, STORED, kept())
  for part in encoded[:3]:
    assert (part == 0).all()
  none = encode(ENCODER, {}, {})
  assert none.embedding is None and none.feature_map is None


def test_each_sample_drops_for_itself():
  rng = np.random.default_rng(0)
  mixed = {name: rng.random(BATCH) < 0.5 for name in NAMES}
  encoded = encode(ENCODER, STORED, mixed)
  for row in range(BATCH):
    alone = encode(ENCODER, STORED, kept(*(n for n in NAMES if mixed[n][row])))
    for got, wanted in zip(encoded[:3], alone[:3], strict=True):
      np.testing.assert_array_equal(got[row], wanted[row])


def test_a_dropped_value_has_no_influence_even_if_it_is_not_a_number():
  broken = {name: np.full_like(STORED[name], np.nan) for name in ('palette', 'depth')}
  names = kept(*(set(NAMES) - set(broken)))
  got = encode(ENCODER, STORED | broken, names)
  wanted = encode(ENCODER, STORED, names)
  jax.tree.map(np.testing.assert_array_equal, got, wanted)


@pytest.mark.parametrize('name', NAMES)
def test_a_condition_changes_its_own_way_in_and_no_other(name):
  before = encode(ENCODER, STORED, kept(*NAMES))
  after = encode(ENCODER, STORED | {name: OTHER[name]}, kept(*NAMES))
  changed = [(a != b).any() for a, b in zip(before[:3], after[:3], strict=True)]
  assert changed == ([False, False, True] if name in LOCAL else [True, True, False])
  if name in GLOBAL:
    tokens = np.flatnonzero((before.context != after.context).any(axis=(0, 2)))
    own = {'caption': range(5), 'semantics': range(5, 9), 'palette': range(9, 13)}
    # The last of the caption's rows is the sentence, which gives no token.
    assert tokens.tolist() == list(own[name])


def test_only_what_is_both_stored_and_kept_is_encoded():
  few = {name: STORED[name] for name in ('palette', 'sketch')}
  got = encode(ENCODER, few, kept('palette', 'sketch', 'depth', 'caption'))
  also = encode(ENCODER, STORED, kept('palette', 'sketch', of=['palette', 'sketch']))
  jax.tree.map(np.testing.assert_array_equal, got, also)
  assert got.context.shape == (BATCH, 4, 12)


@nnx.jit
@nnx.grad
def gradients(encoder, stored, kept):
  encoded = encoder(stored, kept)
  return sum(jnp.sum(jnp.sin(3 * part)) for part in encoded[:3])


@pytest.mark.parametrize('dropped', [None, *NAMES])
def test_gradients_reach_every_weight_of_what_is_kept_and_of_nothing_else(dropped):
  grads = gradients(ENCODER, STORED, kept(*(set(NAMES) - {dropped})))
  assert set(grads['branches']) == set(NAMES)
  for name in NAMES:
    leaves = jax.tree.leaves(grads['branches'][name])
    assert len(leaves) == 6
    for leaf in leaves:
      assert np.isfinite(leaf).all()
      assert (leaf != 0).any() == (name != dropped)


def test_order_of_the_names_does_not_matter():
  few = ('mask', 'palette', 'caption')
  encoder = nnx.eval_shape(
    lambda: ConditionEncoder(few, SHAPES, **SIZES, rngs=nnx.Rngs(0))
  )
  assert encoder.names == ('caption', 'palette', 'mask')


@pytest.mark.parametrize(('grid', 'fits'), [(16, True), (4, True), (6, False)])
def test_maps_must_be_a_multiple_of_the_grid(grid, fits):
  def build():
    return make(('palette', 'depth'), grid=grid)

  if fits:
    encoded = encode(build(), STORED, kept('palette', 'depth'))
    assert encoded.feature_map.shape == (BATCH, grid, grid, 6)
  else:
    with pytest.raises(ValueError, match='depth maps are 16 pixels.*multiple of the 6'):
      build()


def test_maps_smaller_than_the_grid_are_refused():
  with pytest.raises(ValueError, match='sketch maps are 16.*multiple of the 32'):
    make(('sketch',), grid=32)


def test_an_unknown_name_is_refused():
  with pytest.raises(ValueError, match="'colour'"):
    make(('colour',))
