"""Metadata with other values in some places: what the file says is looked at through what the user says instead."""

from __future__ import annotations

import builtins
from collections.abc import Mapping

from mixkv.kernels.errors import ConfigError
from mixkv.models.gguf_metadata import Metadata, Number, Span
from mixkv.models.gguf_types import FLOAT_TYPES, INTEGER_TYPES, ValueType, quoted

ARCH = "{arch}"
"""Stands for the file's architecture in a key."""
_KINDS = {bool: ValueType.BOOL, int: ValueType.INT64, float: ValueType.FLOAT64, str: ValueType.STRING}


class OverriddenMetadata(Metadata):
    """`metadata` with `overrides` in place of its own values.

    overrides: key -> bool, int, float or str. `{arch}` in a key is the architecture. ConfigError for a value of
    another type than the file has under that key (whole numbers do where the file has a floating-point number), and
    by the getters for one that cannot be used.
    """

    def __init__(self, metadata: Metadata, overrides: Mapping[builtins.str, object]) -> None:
        super().__init__(metadata._path, metadata._map, dict(metadata._entries))
        self._texts: list[bytes] = []
        self._overridden: set[builtins.str] = set()
        for key, value in sorted(overrides.items(), key=lambda item: ARCH in item[0]):
            if ARCH in key:
                key = key.replace(ARCH, self.str("general.architecture"))
            self._entries[key] = self._entry(key, value)
            self._overridden.add(key)

    def _entry(self, key: builtins.str, value: object) -> Number | Span:
        kind = _KINDS.get(type(value))
        if kind is None:
            raise ConfigError(f"override of {quoted(key)}: {value!r} is no bool, int, float or str")
        there = self._entries.get(key)
        if there is not None and _sort(there) != _sort_of(kind):
            if _sort(there) != "float" or kind != ValueType.INT64:
                raise ConfigError(
                    f"override of {quoted(key)}: {value!r} is of type {_sort_of(kind)}, but what the file has there "
                    f"{self._has(key)}"
                )
            try:
                value, kind = float(value), ValueType.FLOAT64  # type: ignore[arg-type]
            except OverflowError:
                raise ConfigError(f"override of {quoted(key)}: {value!r} is too large") from None
        if isinstance(value, builtins.str):
            self._texts.append(value.encode("utf-8", "replace"))
            return Span(kind, None, len(self._texts[-1]), -len(self._texts), -len(self._texts))
        return Number(kind, value)  # type: ignore[arg-type]

    def _read(self, span: Span) -> bytes:
        return self._texts[-span.start - 1] if span.start < 0 else super()._read(span)

    def _error(self, key: builtins.str, problem: builtins.str) -> Exception:  # type: ignore[override]
        if key in self._overridden:
            return ConfigError(f"override of {quoted(key)}: the value {problem}")
        return super()._error(key, problem)


def _sort(entry: Number | Span) -> builtins.str:
    if isinstance(entry, Span) and entry.element is not None:
        return "array"
    return _sort_of(entry.kind)


def _sort_of(kind: ValueType) -> builtins.str:
    if kind in INTEGER_TYPES:
        return "int"
    return "float" if kind in FLOAT_TYPES else "bool" if kind == ValueType.BOOL else "str"
