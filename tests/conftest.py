"""What all tests share: programs are compiled fast, and once a worker."""

from __future__ import annotations

import os
import shutil
import tempfile

import pytest

from tests.compiling import FAST

# Before JAX is imported, here and in the processes that tests start.
_CACHE = tempfile.mkdtemp(prefix='composer-jax-tests-')
os.environ['JAX_COMPILATION_CACHE_DIR'] = _CACHE
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.5'
# The compiler of TPUs is installed, and would be taken for TPUs.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {FAST}'.strip()


SLOWEST = ('end_to_end', 'ray_engine', 'test_buckets', 'test_processes', 'test_meshes')
"""Parts of paths of tests that take minutes a file."""


def pytest_collection_modifyitems(items):
  # Begun last, each would keep one worker busy while the other has nothing left.
  items.sort(key=lambda item: not any(part in item.nodeid for part in SLOWEST))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish():
  shutil.rmtree(_CACHE, ignore_errors=True)
