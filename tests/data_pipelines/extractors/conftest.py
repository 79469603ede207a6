"""Small pretrained models, with random weights, as transformers itself writes them."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest
from scipy import ndimage

SIDE = 64


@pytest.fixture(scope='session')
def pictures() -> np.ndarray:
  """Eleven smooth and quite different pictures, uint8 (11, 64, 64, 3)."""
  rng = np.random.default_rng(0)
  noise = rng.normal(size=(11, SIDE, SIDE, 3))
  smooth = ndimage.gaussian_filter(noise, (0, 9, 9, 0), mode='wrap')
  smooth /= smooth.std(axis=(1, 2, 3), keepdims=True)
  shifted = smooth + 2 * rng.normal(size=(11, 1, 1, 3))
  return np.clip(128 + 50 * shifted, 0, 255).astype(np.uint8)


@pytest.fixture(scope='session')
def save(tmp_path_factory):
  """Saves a model with weights large enough that its outputs differ, and the rest."""
  import torch

  torch.set_num_threads(1)  # Of tests that run side by side, each has a core.

  def save(kind: str, model, *parts, scale: float = 4.0) -> pathlib.Path:
    folder = tmp_path_factory.mktemp('models') / f'tiny-{kind}'
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
      for parameter in model.parameters():
        if parameter.ndim > 1:  # Spread so that each layer keeps its input's size.
          fan = parameter[0].numel()
          normal = torch.randn(parameter.shape, generator=draw)
          parameter.copy_(normal * scale / fan**0.5)
    for part in (model, *parts):
      part.save_pretrained(folder)
    return folder

  return save


@pytest.fixture(scope='session')
def dpt(save) -> pathlib.Path:
  from transformers import DPTConfig, DPTForDepthEstimation
  from transformers.models.dpt.image_processing_pil_dpt import DPTImageProcessorPil

  config = DPTConfig(
    hidden_size=16,
    num_hidden_layers=4,
    num_attention_heads=2,
    intermediate_size=32,
    image_size=SIDE,
    patch_size=16,
    backbone_out_indices=[0, 1, 2, 3],
    neck_hidden_sizes=[8, 8, 8, 8],
    fusion_hidden_size=8,
    is_hybrid=False,
  )
  processor = DPTImageProcessorPil(size={'height': SIDE, 'width': SIDE})
  return save('dpt', DPTForDepthEstimation(config), processor, scale=1.0)


@pytest.fixture(scope='session')
def depth_anything(save) -> pathlib.Path:
  from transformers import (
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    Dinov2Config,
  )
  from transformers.models.dpt.image_processing_pil_dpt import DPTImageProcessorPil

  backbone = Dinov2Config(
    hidden_size=16,
    num_hidden_layers=4,
    num_attention_heads=2,
    image_size=56,
    patch_size=14,
    out_features=['stage1', 'stage2', 'stage3', 'stage4'],
    reshape_hidden_states=False,
    apply_layernorm=True,
  )
  config = DepthAnythingConfig(
    backbone_config=backbone,
    reassemble_hidden_size=16,
    neck_hidden_sizes=[8, 8, 8, 8],
    fusion_hidden_size=8,
    head_hidden_size=8,
  )
  processor = DPTImageProcessorPil(
    size={'height': 56, 'width': 56}, ensure_multiple_of=14, keep_aspect_ratio=True
  )
  model = DepthAnythingForDepthEstimation(config)
  return save('depth_anything', model, processor, scale=1.0)


def _swin():
  from transformers import SwinConfig

  return SwinConfig(
    image_size=SIDE,
    embed_dim=8,
    depths=[1, 1, 1, 1],
    num_heads=[1, 1, 2, 2],
    window_size=2,
    out_features=['stage1', 'stage2', 'stage3', 'stage4'],
  )


@pytest.fixture(scope='session')
def mask2former(save) -> pathlib.Path:
  from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation
  from transformers.models.mask2former.image_processing_pil_mask2former import (
    Mask2FormerImageProcessorPil,
  )

  config = Mask2FormerConfig(
    backbone_config=_swin(),
    feature_size=32,
    mask_feature_size=32,
    hidden_dim=32,
    encoder_feedforward_dim=16,
    encoder_layers=1,
    decoder_layers=2,
    num_attention_heads=2,
    dim_feedforward=16,
    num_queries=8,
    num_labels=3,
  )
  processor = Mask2FormerImageProcessorPil(size={'height': SIDE, 'width': SIDE})
  return save('mask2former', Mask2FormerForUniversalSegmentation(config), processor)


@pytest.fixture(scope='session')
def maskformer(save) -> pathlib.Path:
  from transformers import (
    DetrConfig,
    MaskFormerConfig,
    MaskFormerForInstanceSegmentation,
  )
  from transformers.models.maskformer.image_processing_pil_maskformer import (
    MaskFormerImageProcessorPil,
  )

  decoder = DetrConfig(
    d_model=32,
    decoder_layers=1,
    decoder_ffn_dim=16,
    decoder_attention_heads=2,
    num_queries=8,
  )
  config = MaskFormerConfig(
    backbone_config=_swin(),
    decoder_config=decoder,
    fpn_feature_size=32,
    mask_feature_size=32,
    num_labels=3,
  )
  processor = MaskFormerImageProcessorPil(size={'height': SIDE, 'width': SIDE})
  return save('maskformer', MaskFormerForInstanceSegmentation(config), processor)


@pytest.fixture(scope='session')
def detr(save) -> pathlib.Path:
  from transformers import DetrConfig, DetrForSegmentation, ResNetConfig
  from transformers.models.detr.image_processing_pil_detr import DetrImageProcessorPil

  backbone = ResNetConfig(
    embedding_size=8,
    hidden_sizes=[8, 8, 16, 16],
    depths=[1, 1, 1, 1],
    out_features=['stage1', 'stage2', 'stage3', 'stage4'],
  )
  config = DetrConfig(
    use_timm_backbone=False,
    backbone=None,
    backbone_config=backbone,
    d_model=64,
    encoder_layers=1,
    decoder_layers=1,
    encoder_ffn_dim=16,
    decoder_ffn_dim=16,
    num_queries=8,
    num_labels=3,
  )
  processor = DetrImageProcessorPil(size={'height': SIDE, 'width': SIDE})
  return save('detr', DetrForSegmentation(config), processor, scale=1.5)


@pytest.fixture(scope='session')
def blip(save) -> pathlib.Path:
  from transformers import (
    BertTokenizerFast,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipProcessor,
  )
  from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

  words = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', *'abcdefghijklmnopqrstuvwxyz']
  sizes = {
    'hidden_size': 16,
    'intermediate_size': 16,
    'num_hidden_layers': 1,
    'num_attention_heads': 2,
  }
  text = {
    'vocab_size': len(words),
    'encoder_hidden_size': 16,
    'max_position_embeddings': 64,
    'bos_token_id': 2,
    'eos_token_id': 3,
    'sep_token_id': 3,
    'pad_token_id': 0,
  }
  config = BlipConfig(
    text_config=sizes | text,
    vision_config=sizes | {'image_size': 32, 'patch_size': 8},
  )
  tokenizer = BertTokenizerFast(vocab={word: i for i, word in enumerate(words)})
  processor = BlipProcessor(
    BlipImageProcessorPil(size={'height': 32, 'width': 32}), tokenizer
  )
  return save('blip', BlipForConditionalGeneration(config), processor)
