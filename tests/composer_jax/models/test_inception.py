from __future__ import annotations

import jax
import numpy as np
import PIL.Image
import pytest
import safetensors.torch
import skimage.data
import torch
from flax import nnx

from composer_jax.models import inception
from composer_jax.weights.inception_weights import abstract_inception, read_inception
from tests.composer_jax.models.inception_reference import ReferenceInception

# Compiled whole: one by one, the operations of a model take longer to compile.
resize = jax.jit(inception.resize)


@nnx.jit
def run(model, images):
  features = model(images)
  return features, model.logits(features)


@pytest.fixture(scope='module')
def reference():
  return ReferenceInception()


@pytest.fixture(scope='module')
def model(reference, tmp_path_factory):
  path = tmp_path_factory.mktemp('inception') / 'inception.safetensors'
  safetensors.torch.save_file(reference.state_dict(), path)
  return read_inception(path)


@pytest.fixture(scope='module')
def shapes():
  """The network with shapes in place of weights."""
  return abstract_inception()


def noise(*shape):
  return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def assert_close(ours, theirs):
  theirs = theirs.numpy()
  assert ours.dtype == np.float32
  assert ours.shape == theirs.shape
  largest = np.abs(theirs).max()
  # What tells the images apart has to be far above the tolerance.
  assert np.abs(theirs[0] - theirs[1]).max() > 0.1 * largest
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * largest)


def test_features_and_logits_are_those_of_the_network_in_pytorch(model, reference):
  photograph = resize(skimage.data.astronaut()[None])[0]
  images = np.stack([np.asarray(photograph), noise(299, 299, 3)])
  # In float64, so that the rounding measured is ours.
  expected = reference.double()(torch.from_numpy(images).double().permute(0, 3, 1, 2))
  for ours, theirs in zip(run(model, images), expected, strict=True):
    assert_close(ours, theirs)


def test_it_has_as_many_parameters_as_published(shapes):
  # torchvision's network has 23,834,568 without its auxiliary classifier, and 1000
  # classes; 8 more take 2048 weights and a bias each.
  parameters = jax.tree.leaves(nnx.state(shapes, nnx.Param))
  assert sum(x.size for x in parameters) == 23_834_568 + 8 * 2049


@pytest.mark.parametrize('size', [(512, 401), (64, 64), (300, 120)])
def test_images_are_resized_as_pillow_resizes_unrounded_channels(size):
  images = noise(2, *size, 3)
  images[1] = skimage.data.astronaut()[: size[0], : size[1]]
  ours = resize(images)
  assert ours.dtype == np.float32
  for image, found in zip(images, ours, strict=True):
    channels = [
      PIL.Image.fromarray(channel.astype(np.float32)).resize(
        (299, 299), PIL.Image.Resampling.BICUBIC
      )
      for channel in np.moveaxis(image, -1, 0)
    ]
    assert {channel.mode for channel in channels} == {'F'}
    expected = np.clip(np.stack(channels, -1), 0, 255)
    # JAX computes positions in float32: a fiftieth of a level at most.
    np.testing.assert_allclose(found, expected, rtol=0, atol=0.02)


def test_images_of_the_size_of_the_network_stay_as_they_are():
  images = noise(1, 299, 299, 3)
  np.testing.assert_array_equal(inception.resize(images), images)


@pytest.mark.parametrize('shape', [(9, 9, 3), (2, 9, 9), (1, 9, 9, 4), (1, 0, 9, 3)])
def test_what_is_no_batch_of_colour_images_is_not_resized(shape):
  with pytest.raises(ValueError, match=r'give \(B, H, W, 3\)'):
    inception.resize(np.zeros(shape, np.uint8))


def test_values_of_an_unknown_range_are_not_resized():
  with pytest.raises(TypeError, match='float32; give uint8'):
    inception.resize(np.zeros((1, 9, 9, 3), np.float32))


@pytest.mark.parametrize('shape', [(299, 299, 3), (1, 256, 256, 3), (1, 3, 299, 299)])
def test_images_of_other_sizes_are_refused_with_the_way_out(shapes, shape):
  with pytest.raises(ValueError, match=r'299, 299, 3\), as inception.resize does'):
    shapes(np.zeros(shape, np.float32))
