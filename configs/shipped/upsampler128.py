r"""The shipped model's second upsampler, 64 to 128.

On one H200, seventy seconds to a loss of 0.036.

Run:    composer-jax train --config configs/shipped/upsampler128.py \
            --workdir shipped/model/upsampler128 --config.data.path=shipped/data128
"""

from ml_collections import config_dict

from configs.demo import upsampler128
from configs.shipped.upsampler import widened


def get_config() -> config_dict.ConfigDict:
  """The demo's second upsampler with 64 channels on every level."""
  config = widened(upsampler128.get_config(), channels=64)
  config.train.steps = 1500
  return config
