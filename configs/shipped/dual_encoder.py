r"""The shipped model's encoder: patches half as wide as the demo's, and more layers.

On one H200, half a minute to a loss of 0.17 in batches of 1,024. Of 32 held-out
captions the right one is nearest to its image in 63 % of cases.

Run:    composer-jax train --config configs/shipped/dual_encoder.py \
            --workdir shipped/model/encoder --config.data.path=shipped/data
"""

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
