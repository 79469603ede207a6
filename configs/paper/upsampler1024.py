r"""Composer's second upsampler: 256 to 1024 pixels.

300M parameters (Composer, section 3.1), 1M steps. As in unCLIP it has no attention and
no conditions of its own, and trains on random crops of 256 x 256, a quarter of a side.

Run:    composer-jax train --config configs/paper/upsampler1024.py \
            --workdir models/paper/upsampler2 --config.data.path=data/full1024
Sample: `composer-jax compose --spatial 4` splits the image over four devices, as does
            --config.mesh.spatial=4 here; `--tile 256` samples it in tiles on one.
Inspect: composer-jax describe --config configs/paper/upsampler1024.py
"""

from ml_collections import config_dict

from configs.paper import upsampler256


def get_config() -> config_dict.ConfigDict:
  """The first upsampler, narrower, deeper in levels, on a linear schedule."""
  config = upsampler256.get_config()
  config.model.update(
    image_size=1024,
    low_res_size=256,
    channels=192,
    multipliers=(1, 2, 2, 2, 4, 4),  # unCLIP's (1, 1, 2, 2, 4, 4) make 0.28B.
    blocks=2,
    attention=(False,) * 6,
  )
  config.diffusion.update(
    schedule='linear', low_res_degradation='bsr', low_res_level=250, crop=256
  )
  config.optimizer.learning_rate = 1e-4
  return config
