r"""The demo's upsampler: 32 to 64 pixels.

It sees the local conditions too, which the published upsamplers do not: at 64
pixels the lines of a sketch are half as wide as the base model can draw. It predicts
what its input leaves open, and trains on crops of half a side.

A minute and a half on two cores are 453 steps, to a loss of 0.063. What the cascade
then reaches is in base.py.

Run:    composer-jax train --config configs/demo/upsampler.py \
            --workdir demo/model/upsampler --config.data.path=demo/data
"""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
  """The fields of `composer_jax.config.Config`."""
  config = config_dict.ConfigDict()
  config.stage = 'diffusion'
  config.model = {
    'image_size': 64,
    'low_res_size': 32,
    'fold': 2,  # The first level is a grid of 32 x 32, of 16 x 16 in training.
    'channels': 32,
    'multipliers': (1, 2, 2),
    'blocks': 1,
    'attention': (False, False, False),
    'head_width': 32,
    'groups': 8,
    'dropout': 0.0,
    'conditions': ('sketch', 'intensity', 'mask'),
    'context_width': 64,
    'local_hidden': 16,
    'local_width': 16,
    'learned_variance': False,
    'dtype': 'float32',
  }
  config.data = {'path': '', 'batch_size': 32, 'flip': True, 'workers': 0}
  config.diffusion = {
    'schedule': 'cosine',
    'num_steps': 1000,
    'prediction': 'v',
    'weighting': 'none',
    'low_res_level': 100,  # At most: the base model's images are not perfect.
    'low_res_spread': 0.25,  # It predicts what its input leaves open.
    'low_res_details': True,  # What the intensity shows need not be learned.
    'given_spread': 0.1,
    'crop': 32,
  }
  config.optimizer = {
    'name': 'muon',
    'muon_rms': 0.6,
    'muon_iterations': 3,  # Faster than 4, and learns as much.
    'learning_rate': 3e-3,
    'warmup_steps': 100,
    'cooldown': 0.5,
    'clip_norm': 1.0,
    'ema': 0.99,
  }
  config.train = {
    'steps': 1000,
    'minutes': 0.0,  # Above 0: as many steps as fit.
    'log_every': 20,
    'save_every': 500,
    'sample_every': 0,
    'seed': 0,
  }
  config.mesh = {'data': -1, 'fsdp': 1}
  # More steps of a model so briefly trained only add grain.
  config.sample = {'steps': 2, 'guidance': 1.0, 'eta': 1.0, 'low_res_level': 0}
  return config
