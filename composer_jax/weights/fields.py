"""What a published `config.json` says, held against what ours can be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Fields:
  """The fields of a `config.json` of diffusers, looked at one by one.

  Args:
    kind: class that they must be of.
    fields: of the file.
    defaults: what diffusers takes for a field that is missing.
  """

  def __init__(self, kind: str, fields: Mapping[str, Any], defaults: Mapping[str, Any]):
    self._kind, self._fields = kind, {**defaults, **fields}
    self.expect('_class_name', kind, None)

  def __getitem__(self, name: str) -> Any:
    return self._fields.get(name)

  def expect(self, name: str, *values: Any) -> Any:
    """A field that must have one of some values.

    Raises:
      ValueError: it has another.
    """
    value = self[name]
    if value not in values:
      raise self.unsupported(name, ' or '.join(map(repr, values)))
    return value

  def positive(self, name: str) -> int:
    """A field that must be a positive integer.

    Raises:
      ValueError: it is none.
    """
    value = self[name]
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
      raise self.unsupported(name, 'a positive integer')
    return value

  def unsupported(self, name: str, expected: str) -> ValueError:
    """The error that a field is not as it has to be."""
    return ValueError(
      f'{name} in config.json is {self[name]!r}; only a {self._kind} with {expected}'
      ' can be imported.'
    )
