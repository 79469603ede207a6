"""Four short runs of the demo's base model: two learning rates by two sizes of steps.

Three minutes each on two busy CPU cores; enough to see which rate is too high, not
which model is best.

Run:    composer-jax sweep --config configs/sweeps/demo_grid.py \
            --out runs/demo_grid --config.data.path=demo/data
"""

from typing import Any


def get_config() -> dict[str, Any]:
  """A sweep; `launch.sweep.read` says what it may hold."""
  return {
    'config': 'configs/demo/base.py',
    'overrides': {
      'train.steps': 60,
      'train.log_every': 5,
      'train.sample_every': 0,
      'optimizer.warmup_steps': 10,
      'data.batch_size': 16,
    },
    'grid': {
      'optimizer.learning_rate': [1e-3, 1e-2],
      'optimizer.muon_rms': [0.2, 0.6],
    },
    'metric': 'loss',
    'goal': 'min',
  }
