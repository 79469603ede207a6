"""Code on several devices, which this process may not have."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap


def run_on_devices(count, code, *arguments):
  """Runs code in a new process with virtual devices; gives the JSON that it prints."""
  flags = os.environ.get('XLA_FLAGS', '')
  run = subprocess.run(
    [sys.executable, '-c', textwrap.dedent(code), *map(str, arguments)],
    env={
      **os.environ,
      'XLA_FLAGS': f'{flags} --xla_force_host_platform_device_count={count}',
      'JAX_PLATFORMS': 'cpu',
    },
    capture_output=True,
    text=True,
  )
  assert run.returncode == 0, run.stderr[-3000:]
  return json.loads(run.stdout)
