r"""Composer's base model at 64 x 64, stage 2: all conditions.

Another 200k steps with joint condition dropout, on a subset of 60M images without those
of an aesthetic score under 7.0 (Composer, section 3.1).

Run:    composer-jax train --config configs/paper/base64_stage2.py \
            --workdir models/paper/base --config.data.path=data/aesthetic \
            --config.train.start_from=models/paper/stage1
Inspect: composer-jax describe --config configs/paper/base64_stage2.py
"""

from ml_collections import config_dict

from configs.paper import base64_stage1


def get_config() -> config_dict.ConfigDict:
  """Stage 1 with all conditions."""
  config = base64_stage1.get_config()
  config.model.conditions = (
    'caption',
    'semantics',
    'palette',
    'sketch',
    'instances',
    'depth',
    'intensity',
    'mask',
  )
  config.train.steps = 200_000
  return config
