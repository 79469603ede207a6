"""`composer-jax studio`: composing in a browser."""

from __future__ import annotations

import argparse
import dataclasses
import hmac
import ipaddress
import os
import shutil
import signal
import sys
import tempfile
import threading

from composer_jax.shipped import model_folder
from composer_jax.studio.limits import Limits

PASSWORD = 'COMPOSER_JAX_STUDIO_PASSWORD'
"""Environment variable that takes the place of --password, which `ps` would show."""


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog='composer-jax studio',
    description='A page to compose in, in the browser.',
    epilog='example: composer-jax studio --model demo --port 7860',
  )
  parser.add_argument(
    '--model',
    type=model_folder,
    default='demo',
    metavar='DIR',
    help='by default the one that comes with the package',
  )
  parser.add_argument(
    '--host', default='127.0.0.1', help='127.0.0.1: only this machine; 0.0.0.0: all'
  )
  parser.add_argument('--port', type=int, default=7860)
  parser.add_argument(
    '--password', help=f'that visitors are asked for; or the variable {PASSWORD}'
  )
  limits = parser.add_argument_group('limits')
  what = {
    'upload_mb': 'of a file, in megabytes',
    'pixels': 'of an image',
    'images': 'open at a time',
    'steps': 'of the base model',
    'count': 'images that one request makes',
    'queue': 'requests that wait at a time',
    'text': 'characters of a caption',
    'strength': 'of a condition',
    'guidance': 'its scale',
  }
  for field in dataclasses.fields(Limits):
    default = getattr(Limits(), field.name)
    limits.add_argument(
      f'--max-{field.name.replace("_", "-")}',
      dest=field.name,
      type=type(default),
      default=default,
      metavar='N',
      help=f'{what[field.name]}; {default:g}',
    )
  return parser


def is_loopback(host: str) -> bool:
  """Whether an address is this machine's own."""
  try:
    return ipaddress.ip_address(host).is_loopback
  except ValueError:
    return host == 'localhost'


def main(argv: list[str]) -> int:
  """Runs the verb until it is interrupted; returns its exit status."""
  parser = _parser()
  flags = parser.parse_args(argv)
  if not 0 <= flags.port <= 65535:
    parser.error(f'--port is {flags.port}; expected 0 to 65535')
  limits = Limits(
    **{f.name: getattr(flags, f.name) for f in dataclasses.fields(Limits)}
  )
  password = flags.password or os.environ.get(PASSWORD)
  # Everything it writes is in here. Before Gradio is imported, as it looks only then.
  folder = tempfile.mkdtemp(prefix='composer-jax-studio-')
  os.environ |= {
    'GRADIO_TEMP_DIR': folder,
    'GRADIO_ANALYTICS_ENABLED': 'False',
    'HF_HUB_OFFLINE': '1',
    'HF_HUB_DISABLE_TELEMETRY': '1',
  }
  tempfile.tempdir = folder
  try:
    busy = _serve(flags, limits, password)
  finally:
    shutil.rmtree(folder, ignore_errors=True)
  if busy:  # XLA cannot be stopped, and Python would crash if it ended around it.
    sys.stdout.flush()
    os._exit(0)
  return 0


def _serve(flags: argparse.Namespace, limits: Limits, password: str | None) -> bool:
  """Serves until it is interrupted; gives whether the model is still at work."""
  try:
    from composer_jax.studio import app
  except ModuleNotFoundError as error:
    if error.name != 'gradio':
      raise
    raise ValueError(
      "The studio needs Gradio: pip install 'composer_jax[studio]'."
    ) from error
  from composer_jax.composer import Composer
  from composer_jax.studio.engine import Engine

  engine = Engine(Composer.load(flags.model), limits)
  page = app.build(engine).queue(max_size=limits.queue, api_open=True)
  auth = None
  if password:

    def auth(_user: str, given: str) -> bool:
      return hmac.compare_digest(given.encode(), password.encode())

  _, address, _ = page.launch(
    server_name=flags.host,
    server_port=flags.port or None,
    prevent_thread_lock=True,
    quiet=True,
    share=False,
    auth=auth,
    auth_message='Any name will do; the password is the one the studio was given.',
    max_file_size=int(limits.upload_mb * 1e6),
    state_session_capacity=64,
    ssr_mode=False,
    mcp_server=False,
    run_history=False,
    footer_links=['api', 'settings'],
    theme=app.theme(),
    head=app.head(),
  )
  print(f'The studio listens on {address}', flush=True)
  if is_loopback(flags.host):
    print('Only this machine can reach it; --host 0.0.0.0 lets others.', flush=True)
  elif not password:
    print('Whoever can reach this machine can use it; --password asks.', flush=True)
  threading.Thread(target=engine.warm_up, daemon=True).start()
  # Whoever ends it, the folder goes.
  signal.signal(signal.SIGTERM, signal.default_int_handler)
  try:
    page.block_thread()
  finally:
    page.close()
  return engine.busy
