"""Optional packages: the extras of setup.py."""

from __future__ import annotations


class MissingExtra(RuntimeError):
  """A package that only an optional part needs is not installed."""
