r"""The demo's prior: from a caption to the image embedding that it may describe.

It takes the place of semantics where only a caption is given.

Run:    composer-jax train --config configs/demo/prior.py \
            --workdir demo/model/prior --config.data.path=demo/data
"""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
  """The fields of `composer_jax.config.Config`."""
  config = config_dict.ConfigDict()
  config.stage = 'prior'
  config.model = {
    # The sizes of the embeddings follow from the data.
    'width': 128,
    'layers': 4,
    'heads': 4,
    'head_width': 32,
    'dropout': 0.1,
    'dtype': 'float32',
    'scan': True,
  }
  config.data = {'path': '', 'batch_size': 128, 'flip': False, 'workers': 0}
  config.diffusion = {'schedule': 'cosine', 'num_steps': 1000, 'prediction': 'x0'}
  config.optimizer = {
    'learning_rate': 1e-3,
    'warmup_steps': 50,
    'cooldown': 0.5,
    'weight_decay': 0.06,
    'ema': 0.99,
  }
  config.train = {
    'steps': 1000,
    'minutes': 0.0,  # Above 0: as many steps as fit.
    'log_every': 20,
    'save_every': 500,
    'seed': 0,
  }
  config.mesh = {'data': -1, 'fsdp': 1}
  config.sample = {'steps': 25, 'guidance': 2.0, 'eta': 0.0}
  return config
