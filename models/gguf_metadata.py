"""The key-value section of a GGUF file: a read-only mapping, and getters that check the type.

Know before you change this room: numbers are read when the file is opened, strings and arrays stay as offsets
into the map until somebody asks (a vocabulary has 10^5 of them). The parser has already checked that every
offset and length lies inside the file, so nothing here can run out of it.
"""

from __future__ import annotations

import builtins
import math
import mmap
from collections.abc import Iterator, Mapping
from struct import Struct
from typing import NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from mixkv.kernels.errors import GGUFError
from mixkv.models.gguf_types import FLOAT_TYPES, INTEGER_TYPES, SCALAR_DTYPES, ValueType, quoted

_U64 = Struct("<Q")

Value = int | float | bool | str | np.ndarray | list[bytes]


class Number(NamedTuple):
    """A scalar."""

    kind: ValueType
    value: int | float | bool


class Span(NamedTuple):
    """A string (element None) or an array (length elements), left in the map at [start, stop)."""

    kind: ValueType
    element: ValueType | None
    length: int
    start: int
    stop: int


class Metadata(Mapping[str, Value]):
    """Keys and values of one file.

    `metadata[key]` and `metadata.get(key, default)` give what the file holds: int, float, bool, str (invalid
    UTF-8 replaced), a read-only array, or list[bytes] for an array of strings.

    The typed getters (`uint`, `float`, `bool`, `str`, `strings`, `array`) raise GGUFError when the value has
    another type, or when the key is missing and no default was given.
    """

    def __init__(self, path: builtins.str, buffer: mmap.mmap, entries: dict[builtins.str, Number | Span]) -> None:
        self._path, self._map, self._entries = path, buffer, entries
        self._kept: dict[Span, bytes] = {}

    def __getitem__(self, key: builtins.str) -> Value:
        entry = self._entries[key]
        if isinstance(entry, Number):
            return entry.value
        if entry.element is None:
            return self._read(entry).decode("utf-8", "replace")
        return self._strings(entry) if entry.element == ValueType.STRING else self._array(entry)

    def __iter__(self) -> Iterator[builtins.str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: object) -> builtins.bool:
        return key in self._entries

    def uint(
        self, key: builtins.str, default: int | None = None, *, minimum: int = 0, maximum: int = 0xFFFF_FFFF
    ) -> int:
        """An integer of any width with minimum <= value <= maximum (the default is not checked)."""
        value = self._number(key, INTEGER_TYPES, "an integer", default)
        if key in self._entries and not minimum <= value <= maximum:
            raise self._error(key, f"is {value}, outside {minimum} .. {maximum}")
        return int(value)

    def float(self, key: builtins.str, default: builtins.float | None = None) -> builtins.float:
        """A finite floating-point number."""
        value = self._number(key, FLOAT_TYPES, "a floating-point number", default)
        if key in self._entries and not math.isfinite(value):
            raise self._error(key, f"is {value}, not a finite number")
        return builtins.float(value)

    def bool(self, key: builtins.str, default: builtins.bool | None = None) -> builtins.bool:
        """A truth value."""
        return builtins.bool(self._number(key, frozenset({ValueType.BOOL}), "a bool", default))

    def str(self, key: builtins.str, default: builtins.str | None = None) -> builtins.str:
        """A string, which must be UTF-8."""
        entry = self._entries.get(key)
        if entry is None and default is not None:
            return default
        if not isinstance(entry, Span) or entry.element is not None:
            raise self._error(key, f"should be a string, but {self._has(key)}")
        try:
            return self._read(entry).decode("utf-8")
        except UnicodeDecodeError:
            raise self._error(key, "is not UTF-8 text") from None

    def strings(self, key: builtins.str) -> list[bytes]:
        """An array of strings, as bytes: tokens need not be UTF-8."""
        entry = self._entries.get(key)
        if not isinstance(entry, Span) or entry.element != ValueType.STRING:
            raise self._error(key, f"should be an array of strings, but {self._has(key)}")
        return self._strings(entry)

    def array(self, key: builtins.str, *dtypes: DTypeLike) -> np.ndarray:
        """An array of numbers whose element type is exactly one of `dtypes`: (n,), read-only."""
        entry = self._entries.get(key)
        wanted = [np.dtype(dtype) for dtype in dtypes]
        if (
            not isinstance(entry, Span)
            or entry.element not in SCALAR_DTYPES
            or SCALAR_DTYPES[entry.element] not in wanted
        ):
            names = " or ".join(dtype.name for dtype in wanted)
            raise self._error(key, f"should be an array of {names}, but {self._has(key)}")
        return self._array(entry)

    def length(self, key: builtins.str) -> int | None:
        """How many elements the array `key` has, without reading them; None where there is no such array."""
        entry = self._entries.get(key)
        return entry.length if isinstance(entry, Span) and entry.element is not None else None

    def encoded(self, key: builtins.str) -> bytes:
        """The value in bytes that are the same only for the same value: for hashing.

        How many bits a number has in the file is no part of it, and so one that overrides it may have others.
        """
        entry = self._entries[key]
        if isinstance(entry, Number):
            return f"number {entry.value!r}".encode()
        kind = "text" if entry.element is None else f"{entry.length} {entry.element.name}"
        return f"{kind}\n".encode() + self._read(entry)

    def keep_texts(self) -> None:
        """Read every text now, so that it is there when the file is closed. Arrays (a vocabulary's) are not kept."""
        texts = (e for e in self._entries.values() if isinstance(e, Span) and e.element is None)
        self._kept = {entry: self._read(entry) for entry in texts}

    def _number(
        self,
        key: builtins.str,
        kinds: frozenset[ValueType],
        expected: builtins.str,
        default: builtins.float | None,
    ) -> builtins.float:
        entry = self._entries.get(key)
        if entry is None and default is not None:
            return default
        if not isinstance(entry, Number) or entry.kind not in kinds:
            raise self._error(key, f"should be {expected}, but {self._has(key)}")
        return entry.value

    def _read(self, span: Span) -> bytes:
        if span in self._kept:
            return self._kept[span]
        if self._map.closed:
            raise GGUFError(f"{self._path}: the file was closed; read its metadata before closing it")
        return self._map[span.start : span.stop]

    def _array(self, span: Span) -> np.ndarray:
        assert span.element is not None
        dtype = SCALAR_DTYPES[span.element]
        if dtype.kind == "b":  # any byte but 0 is true, and NumPy must not see bytes other than 0 and 1 as bool
            return np.frombuffer(self._read(span), dtype=np.uint8) != 0
        return np.frombuffer(self._read(span), dtype=dtype)

    def _strings(self, span: Span) -> list[bytes]:
        raw, at, length_at = self._read(span), 0, _U64.unpack_from
        out = []
        for _ in range(span.length):
            start = at + 8
            at = start + length_at(raw, at)[0]
            out.append(raw[start:at])
        return out

    def _has(self, key: builtins.str) -> builtins.str:
        entry = self._entries.get(key)
        if entry is None:
            return "it is missing"
        if isinstance(entry, Span) and entry.element is not None:
            return f"is an array of {entry.element.name.lower()}"
        return f"is of type {entry.kind.name.lower()}"

    def _error(self, key: builtins.str, problem: builtins.str) -> GGUFError:
        return GGUFError(
            f"{self._path}: metadata key {quoted(key)} {problem}; the file is damaged or not meant for this "
            "program: convert or download it again"
        )
