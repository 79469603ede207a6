"""The shipped model's base: twice the demo's depth, half as wide again."""

from ml_collections import config_dict

from configs.demo import base


def get_config() -> config_dict.ConfigDict:
  """The demo's base with 96 channels on every level and two blocks a level."""
  config = base.get_config()
  config.model.channels = 96
  config.model.multipliers = (1, 1, 1)
  config.model.blocks = 2
  config.model.dropout = 0.05
  config.model.dtype = 'bfloat16'
  config.data.batch_size = 512
  config.data.workers = 8
  config.optimizer.ema = 0.999
  config.train.steps = 8000
  config.train.save_every = 2000
  config.train.sample_every = 0
  return config
