r"""The demo's second upsampler: 64 to 128 pixels.

As the published ones, it sees no condition but its input. Pixels are folded 4 x 4 into
channels, so that it costs no more than the first.

Three quarters of a minute are 228 steps, to a loss of 0.095.

Run:    composer-jax prepare --source twemoji --out demo/data128 --size 128 \
            --conditions none
        composer-jax train --config configs/demo/upsampler128.py \
            --workdir demo/model/upsampler128 --config.data.path=demo/data128
"""

from ml_collections import config_dict

from configs.demo import upsampler


def get_config() -> config_dict.ConfigDict:
  """The first upsampler at twice its size, without conditions."""
  config = upsampler.get_config()
  config.model.image_size = 128
  config.model.low_res_size = 64
  config.model.fold = 4  # The first level is a grid of 32 x 32, of 16 x 16 in training.
  config.model.conditions = ()
  config.diffusion.crop = 64
  config.diffusion.given_spread = 0.0
  config.diffusion.low_res_spread = 0.15
  config.diffusion.low_res_details = False
  return config
