r"""A Composer that goes on from Karlo's decoder, at 64 x 64.

0.89B parameters. The decoder was trained from captions and image embeddings, which is
Composer's first stage; this is the second, with all conditions. What the decoder does
not know yet changes nothing at first.

Run:    composer-jax import --kind karlo-decoder --from karlo-v1-alpha \
            --out models/karlo/decoder
        composer-jax train --config configs/karlo/base64.py \
            --workdir models/karlo/base --config.data.path=data/aesthetic \
            --config.train.start_from=models/karlo/decoder
Inspect: composer-jax describe --config configs/karlo/base64.py
"""

from ml_collections import config_dict

from configs.paper import base64_stage2


def get_config() -> config_dict.ConfigDict:
  """Stage 2 of the paper in the shape of Karlo's decoder."""
  config = base64_stage2.get_config()
  config.model.channels = 320
  config.model.head_width = 64
  config.model.conditioning = 'unclip'
  config.model.context_width = 1536
  config.model.context_tokens = 0
  config.model.dropout = 0.0
  config.sample = {'steps': 25, 'guidance': 4.0, 'eta': 0.0}
  return config
