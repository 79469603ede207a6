"""Real runs of the command line, in processes of their own."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pathlib
import subprocess
import sys

import pytest
import skimage.data
from PIL import Image

from composer_jax import cli
from tests.compiling import FAST

TINY = [
  '--config.model.channels=16',
  '--config.model.multipliers=(1,)',
  '--config.model.blocks=1',
  '--config.model.head_width=8',
  '--config.model.context_width=16',
  '--config.model.local_hidden=8',
  '--config.model.local_width=8',
  '--config.sample.steps=3',
  '--config.data.batch_size=16',
  '--config.train.log_every=2',
]
"""Overrides that make a model of `configs/demo/` train in seconds."""
TINY_BASE = [*TINY, '--config.model.attention=(True,)']
TINY_UPSAMPLER = [*TINY, '--config.model.attention=(False,)']


def command(*words: object) -> list[str]:
  return [sys.executable, '-m', 'composer_jax', *map(str, words)]


def environment(flags: str = FAST) -> dict[str, str]:
  """Of a process with one device that compiles by some flags."""
  flags = f'--xla_force_host_platform_device_count=1 {flags}'
  return {**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': flags}


def run_here(*words: object) -> str:
  """Runs a verb in this process, which has imported all; gives what it printed."""
  printed = io.StringIO()
  with contextlib.redirect_stdout(printed):
    status = cli.main([str(word) for word in words])
  assert status == 0, printed.getvalue()[-3000:]
  return printed.getvalue()


def run(*words: object, flags: str = FAST) -> str:
  """Runs a verb in a process of its own; gives what it printed.

  With no flags it is compiled as for users.
  """
  done = subprocess.run(
    command(*words),
    env=environment(flags),
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  return done.stdout


def metrics(workdir: pathlib.Path) -> dict[int, dict[str, float]]:
  """Lines of `metrics.jsonl` by step."""
  rows = [json.loads(line) for line in (workdir / 'metrics.jsonl').open()]
  return {row.pop('step'): row for row in rows}


@pytest.fixture(scope='session')
def photographs(tmp_path_factory) -> pathlib.Path:
  """48 parts of photographs, half of them with captions, one file that is none."""
  folder = tmp_path_factory.mktemp('photographs')
  for name in ('astronaut', 'chelsea', 'coffee', 'rocket'):
    photograph = getattr(skimage.data, name)()
    for part in range(12):
      top, left = 30 * (part // 4), 50 * (part % 4)
      image = Image.fromarray(photograph[top : top + 150, left : left + 150])
      image.save(folder / f'{name} {part:02d}.png')
      if part % 2:
        text = f'part {part} of the {name}'
        (folder / f'{name} {part:02d}.txt').write_text(text, encoding='utf-8')
  (folder / 'notes.md').write_text('not an image')
  return folder


@pytest.fixture(scope='session')
def data(photographs, tmp_path_factory) -> pathlib.Path:
  out = tmp_path_factory.mktemp('data') / 'prepared'
  run('prepare', '--source', f'folder:{photographs}', '--out', out, '--size', 64)
  return out
