r"""Composer's prior: from a caption to a CLIP image embedding.

1B parameters (Composer, section 3.1), 1M steps. The numbers that the paper leaves open
are those of unCLIP and Karlo, whose public weights fit.

Run:    composer-jax train --config configs/paper/prior.py \
            --workdir models/paper/prior --config.data.path=data/full
Inspect: composer-jax describe --config configs/paper/prior.py
"""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
  """The fields of `composer_jax.config.Config`."""
  config = config_dict.ConfigDict()
  config.stage = 'prior'
  config.model = {
    'width': 2048,
    'layers': 20,
    'heads': 32,
    'head_width': 64,
    'embed_width': 768,
    'num_tokens': 77,
    'mlp_ratio': 4,
    'num_steps': 1000,
    'dropout': 0.0,
    'dtype': 'bfloat16',
    'scan': False,
  }
  config.data = {'path': '', 'batch_size': 4096, 'flip': False, 'workers': 8}
  config.diffusion = {'schedule': 'cosine', 'num_steps': 1000, 'prediction': 'x0'}
  config.optimizer = {
    'name': 'adamw',
    'learning_rate': 1.1e-4,
    'warmup_steps': 10_000,
    'cooldown': 0.0,
    'beta2': 0.96,
    'weight_decay': 6e-2,
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
  config.mesh = {'data': -1, 'fsdp': 32}  # 32 divides all widths.
  config.sample = {'steps': 100, 'guidance': 3.0, 'eta': 0.0}
  return config
