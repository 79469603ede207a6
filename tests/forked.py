"""Processes that begin with everything imported: forks of one that has."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
import tempfile

_CONTEXT = multiprocessing.get_context('forkserver')
_CONTEXT.set_forkserver_preload(['composer_jax.training.loop'])


class Forked:
  """A process that runs a module as `python -m` would, but begins at once.

  It takes JAX seconds to be imported. To be used as a `subprocess.Popen`.
  """

  def __init__(self, words: list[str], env: dict[str, str]):
    # It is there as long as this is.
    self._output = tempfile.NamedTemporaryFile('r')  # noqa: SIM115
    self._process = _CONTEXT.Process(target=_run, args=(words, env, self._output.name))
    self._process.start()

  @property
  def pid(self) -> int:
    return self._process.pid

  @property
  def returncode(self) -> int | None:
    return self._process.exitcode

  def poll(self) -> int | None:
    return self.returncode

  def send_signal(self, number: int) -> None:
    os.kill(self.pid, number)

  def kill(self) -> None:
    self._process.kill()

  def communicate(self, timeout: float) -> tuple[str, None]:
    """What it has said, once it has ended."""
    self._process.join(timeout)
    assert self.returncode is not None, f'still there after {timeout} s: {self.read()}'
    return self.read(), None

  def read(self) -> str:
    self._output.seek(0)
    return self._output.read()


def _run(words: list[str], env: dict[str, str], output: str) -> None:
  import jax

  for stream in (1, 2):
    os.dup2(os.open(output, os.O_WRONLY | os.O_APPEND), stream)
  os.environ.clear()
  os.environ.update(env)
  collectives = env.get('JAX_CPU_COLLECTIVES_IMPLEMENTATION')
  if collectives:  # Otherwise read when JAX is imported.
    jax.config.update('jax_cpu_collectives_implementation', collectives)
  module, *sys.argv[1:] = words
  runpy.run_module(module, run_name='__main__', alter_sys=True)
