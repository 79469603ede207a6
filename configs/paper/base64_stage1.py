r"""Composer's base model at 64 x 64, stage 1: image embeddings only.

2.0B parameters (Composer, section 3.1), trained for 1M steps on the full set. Numbers
that the paper leaves open are those of GLIDE and unCLIP. Karlo's decoder can stand in
for this stage: configs/karlo/base64.py goes on from it.

Run:    composer-jax train --config configs/paper/base64_stage1.py \
            --workdir models/paper/stage1 --config.data.path=data/full
Inspect: composer-jax describe --config configs/paper/base64_stage1.py
"""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
  """The fields of `composer_jax.config.Config`."""
  config = config_dict.ConfigDict()
  config.stage = 'diffusion'
  config.model = {
    'image_size': 64,
    'low_res_size': 0,
    'fold': 1,
    # 512, 1024, 1280 and 2048 channels; GLIDE's multiples of 512, (1, 2, 3, 4), make
    # 2.26B.
    'channels': 256,
    'multipliers': (2, 4, 5, 8),
    'blocks': 3,
    'attention': (False, True, True, True),  # At 32, 16 and 8 pixels.
    'head_width': 64,
    'groups': 32,
    'dropout': 0.1,
    'conditions': ('semantics',),
    'context_width': 2048,
    'context_tokens': 85,  # Of stage 2, with zeros for those not known yet.
    'local_hidden': 32,
    'local_width': 8,
    'learned_variance': True,
    'scan': False,
    'dtype': 'bfloat16',
  }
  config.data = {'path': '', 'batch_size': 1024, 'flip': True, 'workers': 8}
  config.diffusion = {
    'schedule': 'cosine',
    'num_steps': 1000,
    'prediction': 'eps',
    'weighting': 'none',
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
    'sample_every': 5_000,
    'seed': 0,
  }
  config.mesh = {'data': -1, 'fsdp': 32}  # Shards of whole tiles of 8 channels.
  config.sample = {'steps': 50, 'guidance': 3.0, 'eta': 0.0}
  return config
