"""Sixteen draws of the optimiser's settings for the paper's base model, 20,000 steps.

One job a run on a slice of 32 chips; the two explicit runs are what the paper's config
says, with two seeds, to know how much of a difference is chance.

Run:    composer-jax sweep --config configs/sweeps/base64_random.py \
            --out runs/base64_random --target gke --topology v5p:2x4x4 \
            --image REGISTRY/composer-jax:1 --bucket gs://mine \
            --config.data.path=/mnt/composer/data/full
"""

from typing import Any


def get_config() -> dict[str, Any]:
  """A sweep; `launch.sweep.read` says what it may hold."""
  return {
    'config': 'configs/paper/base64_stage1.py',
    'overrides': {'train.steps': 20_000, 'train.sample_every': 0},
    'explicit': [{'train.seed': 0}, {'train.seed': 1}],
    'random': {
      'count': 16,
      'seed': 0,
      'fields': {
        'optimizer.learning_rate': ('log_uniform', 3e-5, 5e-4),
        'optimizer.beta2': ('choice', 0.99, 0.995, 0.999),
        'optimizer.weight_decay': ('choice', 0.0, 0.01),
      },
    },
    'metric': 'loss',
    'goal': 'min',
  }
