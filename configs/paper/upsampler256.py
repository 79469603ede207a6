r"""Composer's first upsampler: 64 to 256 pixels.

1.1B parameters (Composer, section 3.1), 1M steps. As in unCLIP it has no attention and
no conditions of its own, and trains on random crops of 64 x 64, a quarter of a side.

Run:    composer-jax train --config configs/paper/upsampler256.py \
            --workdir models/paper/upsampler --config.data.path=data/full256
Inspect: composer-jax describe --config configs/paper/upsampler256.py
"""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
  """The fields of `composer_jax.config.Config`."""
  config = config_dict.ConfigDict()
  config.stage = 'diffusion'
  config.model = {
    'image_size': 256,
    'low_res_size': 64,
    'fold': 1,
    'channels': 320,
    'multipliers': (1, 2, 4, 5),  # unCLIP's (1, 2, 3, 4) make 0.73B.
    'blocks': 3,
    'attention': (False, False, False, False),
    'head_width': 64,
    'groups': 32,
    'dropout': 0.1,
    'conditions': (),
    'learned_variance': True,
    'scan': False,
    'dtype': 'bfloat16',
  }
  config.data = {'path': '', 'batch_size': 512, 'flip': True, 'workers': 8}
  config.diffusion = {
    'schedule': 'cosine',
    'num_steps': 1000,
    'prediction': 'eps',
    'weighting': 'none',
    'low_res_degradation': 'blur',
    'low_res_level': 999,
    'crop': 64,
  }
  config.optimizer = {
    'name': 'adamw',
    'learning_rate': 1.2e-4,
    'warmup_steps': 10_000,
    'cooldown': 0.0,
    'beta2': 0.999,
    'weight_decay': 0.0,
    'clip_norm': 1.0,
    'ema': 0.9999,
  }
  config.train = {
    'steps': 1_000_000,
    'log_every': 100,
    'save_every': 5_000,
    'sample_every': 0,
    'seed': 0,
  }
  config.mesh = {'data': -1, 'fsdp': 8}  # Shards of whole tiles of 8 channels.
  config.sample = {'steps': 20, 'guidance': 1.0, 'eta': 0.0}
  return config
