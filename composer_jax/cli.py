"""The command line: `composer-jax VERB`; each verb is a module of `commands`."""

from __future__ import annotations

import importlib
import os
import sys

TRACEBACK = 'COMPOSER_JAX_TRACEBACK'
"""Environment variable that, if set, shows where an error came from."""

VERBS = {
  'prepare': 'images to a data set with all conditions',
  'decompose': 'one image to its conditions, as arrays and pictures',
  'describe': 'modules, parameters, FLOPs and sharding of a model, without making it',
  'compile': 'what a config costs on TPUs that are not at hand',
  'import': 'published weights to a model folder',
  'train': 'train a stage: dual encoder, base model or upsampler',
  'launch': 'start a training run on this machine, Slurm, GKE, TPU VMs or Ray',
  'sweep': 'many runs that differ in some fields, and a table that compares them',
  'export': 'a trained model as a folder to hand on, or for diffusers',
  'compose': 'make an image from conditions of other images',
  'task': 'what a Composer is for: variation, colorization, style transfer, ...',
  'studio': 'a page to compose in, in the browser',
  'report': 'a page that shows what a model can do, and measures it',
  'evaluate': 'figures of a model or of two: fidelity, distances, tasks',
}

MODULES = {'import': 'import_weights'}
"""Modules of the verbs that have another name; `import` can't be one."""


def usage() -> str:
  """What `composer-jax --help` prints."""
  lines = [f'  {verb:10} {what}' for verb, what in VERBS.items()]
  return '\n'.join(
    [
      'usage: composer-jax VERB [--help] ...',
      '',
      *lines,
    ]
  )


def main(argv: list[str] | None = None) -> int:
  """Runs a verb; returns its exit status."""
  argv = sys.argv[1:] if argv is None else argv
  if not argv or argv[0] in ('-h', '--help'):
    print(usage())
    return 0 if argv else 2
  verb, *rest = argv
  if verb == '--version':
    from composer_jax import __version__

    print(__version__)
    return 0
  if verb not in VERBS:
    print(f'composer-jax: unknown verb {verb!r}\n\n{usage()}', file=sys.stderr)
    return 2
  module = MODULES.get(verb, verb)
  command = importlib.import_module(f'composer_jax.commands.{module}')
  try:
    return command.main(rest)
  except (ValueError, OSError, RuntimeError) as error:
    if os.environ.get(TRACEBACK):
      raise
    print(f'composer-jax {verb}: {error}', file=sys.stderr)
    return 1
  except KeyboardInterrupt:
    print(f'composer-jax {verb}: interrupted; run again to go on', file=sys.stderr)
    return 130
