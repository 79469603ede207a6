from __future__ import annotations

import builtins
import logging
import os
import pathlib
import signal
import sys
import tempfile

import gradio as gr
import httpx
import pytest

from composer_jax import cli
from composer_jax.commands import studio
from composer_jax.composer import Composer
from tests.composer_jax.tiny import composer_of


@pytest.fixture
def served(monkeypatch):
  """Runs the verb on a tiny model; calls a function while it serves."""
  monkeypatch.setattr(Composer, 'load', lambda _: composer_of(steps=1))
  monkeypatch.setattr(os, 'environ', dict(os.environ))
  monkeypatch.setattr(tempfile, 'tempdir', None)
  # Uvicorn shuts all handlers of logs, and absl's closes what pytest captures with.
  monkeypatch.setattr(logging, 'shutdown', lambda *_: None)
  before = signal.getsignal(signal.SIGTERM)

  def serve(meanwhile, *words):
    seen = []

    def block(page):
      seen.append(meanwhile(page.local_url))
      page.studio_engine.ready.wait()

    build = sys.modules['composer_jax.studio.app'].build

    def built(engine):
      page = build(engine)
      page.studio_engine = engine
      return page

    monkeypatch.setattr('composer_jax.studio.app.build', built)
    monkeypatch.setattr(gr.Blocks, 'block_thread', block)
    assert cli.main(['studio', '--port', '0', *words]) == 0
    return seen[0]

  import composer_jax.studio.app  # noqa: F401 - So that it can be patched.

  yield serve
  signal.signal(signal.SIGTERM, before)


def test_it_says_where_it_listens_and_that_only_this_machine_can(served, capsys):
  answer = served(lambda url: (url, httpx.get(url).status_code))
  said = capsys.readouterr().out
  assert answer == (answer[0], 200) and answer[0].startswith('http://127.0.0.1:')
  assert f'The studio listens on {answer[0]}' in said
  assert 'Only this machine can reach it' in said


def test_a_password_is_asked_for(served, capsys):
  def visit(url):
    config = httpx.get(f'{url}config').status_code
    call = httpx.post(f'{url}gradio_api/call/compose', json={'data': []}).status_code
    wrong, right = (
      httpx.post(f'{url}login', data={'username': 'me', 'password': word}).status_code
      for word in ('wrong', 'sesame')
    )
    return config, call, wrong, right

  assert served(visit, '--password', 'sesame') == (401, 401, 400, 200)
  assert 'sesame' not in capsys.readouterr().out


def test_it_warns_where_others_can_reach_it(served, capsys):
  served(lambda url: url, '--host', '0.0.0.0')
  said = capsys.readouterr().out
  assert 'Whoever can reach this machine can use it; --password asks.' in said
  assert 'Only this machine' not in said


def test_nothing_is_left_behind(served):
  folders = []

  def look(url):
    folders.append(pathlib.Path(os.environ['GRADIO_TEMP_DIR']))
    return folders[0].is_dir()

  assert served(look)
  assert not folders[0].exists()


@pytest.mark.parametrize(
  ('host', 'own'),
  [('127.0.0.1', True), ('::1', True), ('localhost', True), ('0.0.0.0', False),
   ('192.168.1.7', False), ('studio.example.org', False)],
)  # fmt: skip
def test_loopback_is_told_from_other_addresses(host, own):
  assert studio.is_loopback(host) is own


@pytest.mark.parametrize(
  ('words', 'message'),
  [(['--port', '70000'], '--port is 70000'), (['--max-steps', 'x'], '--max-steps')],
)
def test_what_cannot_be_read_is_said(words, message, capsys):
  with pytest.raises(SystemExit):
    cli.main(['studio', *words])
  assert message in capsys.readouterr().err


def test_a_limit_of_nothing_is_refused(capsys):
  assert cli.main(['studio', '--max-count', '0']) == 1
  assert 'The limit count is 0' in capsys.readouterr().err


def test_without_gradio_it_says_what_to_install(monkeypatch, capsys):
  real = builtins.__import__

  def without(name, *more, **rest):
    if name == 'composer_jax.studio' and more[2] and 'app' in more[2]:
      raise ModuleNotFoundError("No module named 'gradio'", name='gradio')
    return real(name, *more, **rest)

  monkeypatch.setattr(builtins, '__import__', without)
  monkeypatch.setattr(os, 'environ', dict(os.environ))
  monkeypatch.setattr(tempfile, 'tempdir', None)
  assert cli.main(['studio']) == 1
  assert "pip install 'composer_jax[studio]'" in capsys.readouterr().err
