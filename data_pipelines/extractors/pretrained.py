"""Folders of pretrained models in the layout of Hugging Face's transformers."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import numpy as np

from composer_jax.files import read_json
from composer_jax.safetensors_files import digest, open_weights
from data_pipelines.extractors.extractor import existing, need, version

# How transformers is to open anything: no hub, no code that comes with the weights.
_SAFELY: dict[str, Any] = {'local_files_only': True, 'trust_remote_code': False}


class Pretrained:
  """A model and its image processor; see `Extractor`.

  Attributes:
    about: see `Extractor`.
    versions: see `Extractor`.
    config: what its `config.json` says.
  """

  def __init__(self, kind: str, path: str, model_type: str, auto_class: str):
    """Checks a folder; opens no model.

    Args:
      kind: of extractor, to name and to note down.
      path: of the folder.
      model_type: what its `config.json` must say that it is.
      auto_class: the class of transformers that opens it.

    Raises:
      MissingExtra: torch or transformers is not installed.
      FileNotFoundError: there is no such folder, or a file is missing from it.
      ValueError: it holds another model, or weights in pickles.
    """
    need(kind, 'torch', 'transformers')
    self._folder = existing(path, folder=True)
    self._auto_class = auto_class
    advice = 'Give a folder as save_pretrained of transformers writes it.'
    self.config = read_json(self._folder / 'config.json', ('model_type',), advice)
    if self.config['model_type'] != model_type:
      raise ValueError(
        f'{self._folder} holds a model of type {self.config["model_type"]!r}; an'
        f' extractor {kind!r} needs {model_type!r}.'
      )
    weights = open_weights(self._folder)  # Refuses pickles, and says why.
    others = [p for p in self._folder.iterdir() if p.suffix in ('.json', '.txt')]
    self.about: dict[str, Any] = {
      'kind': kind,
      'name': self._folder.resolve().name,
      'digests': {p.name: digest(p) for p in sorted({*others, *weights.paths})},
    }

  def check(self) -> None:
    _ = self.side, self.model

  @functools.cached_property
  def versions(self) -> dict[str, str]:
    on = '' if _device() == 'cpu' else f' on {_device()}'
    return {
      'torch': version('torch') + on,
      'transformers': version('transformers'),
    }

  @functools.cached_property
  def side(self) -> int:
    size = self.processor.size
    names = ('height', 'width', 'shortest_edge')
    sides = [getattr(size, name, None) for name in names]
    if not any(sides):
      raise ValueError(
        f'{self._folder}: its image processor resizes to {size}; expected height and'
        ' width, or shortest_edge, in preprocessor_config.json.'
      )
    return max(side for side in sides if side)

  @functools.cached_property
  def processor(self) -> Any:
    import transformers

    # Of its two backends the one that is always there, or results would depend on
    # whether torchvision is.
    return transformers.AutoImageProcessor.from_pretrained(
      self._folder, backend='pil', **_SAFELY
    )

  @functools.cached_property
  def tokenizer(self) -> Any:
    import transformers

    return transformers.AutoTokenizer.from_pretrained(self._folder, **_SAFELY)

  @functools.cached_property
  def model(self) -> Any:
    """In evaluation mode, in float32.

    Raises:
      ValueError: the weights are not all there.
    """
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    model, loading = getattr(transformers, self._auto_class).from_pretrained(
      self._folder,
      use_safetensors=True,
      dtype=torch.float32,
      output_loading_info=True,
      **_SAFELY,
    )
    # The library fills these with random numbers and goes on.
    wrong = sorted(map(str, [*loading['missing_keys'], *loading['mismatched_keys']]))
    if wrong:
      raise ValueError(
        f'{self._folder}: {len(wrong)} tensors of {type(model).__name__} are missing'
        f' or of another shape: {", ".join(wrong[:8])}. It holds a model for another'
        ' task, or is damaged.'
      )
    return model.eval().to(_device())

  def pixels(self, pictures: np.ndarray) -> Any:
    """What the image processor makes of uint8 sRGB (B, S, S, 3), on the device."""
    inputs = self.processor(images=list(pictures), return_tensors='pt')
    return inputs.to(_device())


@contextlib.contextmanager
def inference() -> Iterator[None]:
  """No gradients, and the same results each time and for any number of processors."""
  import torch

  threads = torch.get_num_threads()
  torch.set_num_threads(1)  # Sums may be split by thread; workers are for speed.
  try:
    with (
      torch.inference_mode(),
      torch.backends.cudnn.flags(benchmark=False, deterministic=True, allow_tf32=False),
    ):
      yield
  finally:
    torch.set_num_threads(threads)


def _device() -> str:
  import torch

  return 'cuda' if torch.cuda.is_available() else 'cpu'
