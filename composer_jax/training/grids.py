"""Grids of samples that show how a run is getting on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from composer_jax.conditions import by_name
from composer_jax.images import Picture
from composer_jax.seeds import generator
from composer_jax.training.stages import Diffusion, to_float
from composer_jax.training.step import TrainState, abstract_state
