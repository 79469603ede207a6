"""The shipped model's encoder: patches half as wide as the demo's, and more layers."""

from ml_collections import config_dict

from configs.demo import dual_encoder


def get_config() -> config_dict.ConfigDict:
  """The demo's encoder, with patches of 4 x 4 and embeddings of 128 numbers."""
  config = dual_encoder.get_config()
  config.model.patch_size = 4
  config.model.vision_width = 128
  config.model.vision_layers = 4
  config.model.text_width = config.model.embed_width = 128
  config.model.text_layers = 3
  config.model.text_heads = 4
  config.model.dtype = 'bfloat16'
  config.data.batch_size = 1024
  config.data.workers = 6
  config.train.steps = 500
  return config
