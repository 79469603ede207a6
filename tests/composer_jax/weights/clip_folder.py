"""Folders of small CLIPs with random weights, as transformers publishes them."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import transformers

from composer_jax.models.clip import ClipConfig
from tests.composer_jax.models.test_clip import SMALL, reference_model
from tests.composer_jax.models.test_tokenizer import write_clip_vocabulary

VOCABULARY = 535
"""Ids of `write_clip_vocabulary`; the last is that of the end token."""


def with_vocabulary(config: ClipConfig) -> ClipConfig:
  return dataclasses.replace(config, vocab_size=VOCABULARY, end_token=VOCABULARY - 1)


TINY = dataclasses.replace(with_vocabulary(SMALL), text_width=24, embed_width=24)
"""Equal widths, so that its captions can be stored."""


def write_clip_folder(
  folder: pathlib.Path, config: ClipConfig = TINY, **saving
) -> transformers.CLIPModel:
  """Weights, config and vocabulary; `saving` goes to `save_pretrained`."""
  folder.mkdir()
  write_clip_vocabulary(folder)
  model = reference_model(config)
  model.save_pretrained(folder, **saving)
  return model


def change_json(path: pathlib.Path, part: str | None = None, **changes) -> None:
  """Sets fields of a JSON file, or of an object in it; None removes one."""
  whole = json.loads(path.read_text())
  fields = whole if part is None else whole[part]
  for name, value in changes.items():
    fields.pop(name, None)
    if value is not None:
      fields[name] = value
  path.write_text(json.dumps(whole))
