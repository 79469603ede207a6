r"""The shipped model's prior: the demo's, trained for longer.

On one H200, a minute to a loss of 0.098.

Run:    composer-jax train --config configs/shipped/prior.py \
            --workdir shipped/model/prior --config.data.path=shipped/data
"""

from ml_collections import config_dict

from configs.demo import prior


def get_config() -> config_dict.ConfigDict:
  """The demo's prior in larger batches."""
  config = prior.get_config()
  config.model.dtype = 'bfloat16'
  config.data.batch_size = 512
  config.data.workers = 6
  config.optimizer.ema = 0.999
  config.train.steps = 2500
  return config
