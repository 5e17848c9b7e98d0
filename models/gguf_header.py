"""Parse the header of a GGUF file: counts, keys and values, tensor infos.

Know before you change this room: every number here comes from a stranger. Each is compared with a limit
(gguf_types.py) and with the bytes that remain before it is used; Python integers cannot wrap, so products
are safe. Nothing is allocated in proportion to a number from the file unless that many bytes are really there.
The only failure is GGUFError. Little-endian, versions 2 and 3:

    "GGUF" | version u32 | n_tensors u64 | n_kv u64
    n_kv x      { key: string | type u32 | value }               array value: type u32 | count u64 | elements
    n_tensors x { name: string | n_dims u32 | ne u64 x n_dims | type u32 | offset u64 }
    padding to `general.alignment` | tensor data                 string: length u64 | bytes
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from struct import Struct

from mixkv.kernels.errors import GGUFError
from mixkv.kernels.ggml import BLOCK_SIZES, WeightType
from mixkv.models.gguf_metadata import Metadata, Number, Span
from mixkv.models.gguf_types import (
    DEFAULT_ALIGNMENT,
    MAGIC,
    MAX_ALIGNMENT,
    MAX_ARRAY_LENGTH,
    MAX_DIMS,
    MAX_ELEMENTS,
    MAX_ENTRIES,
    MAX_KEY_BYTES,
    MAX_METADATA_BYTES,
    MAX_STRING_BYTES,
    MAX_TENSOR_NAME_BYTES,
    MIN_KEY_BYTES,
    MIN_TENSOR_BYTES,
    SCALAR_DTYPES,
    VERSIONS,
    TensorInfo,
    ValueType,
    quoted,
)

_U32, _U64 = Struct("<I"), Struct("<Q")
_SCALARS = {kind: Struct("<" + dtype.char) for kind, dtype in SCALAR_DTYPES.items() if dtype.itemsize < 8}
_SCALARS |= {
    ValueType.UINT64: _U64,
    ValueType.INT64: Struct("<q"),
    ValueType.FLOAT64: Struct("<d"),
}
_DAMAGED = "the file is damaged or incomplete: download or convert it again"


@dataclass(frozen=True)
class Header:
    """What stands before the tensor data. Offsets of the tensors count from the start of the file."""

    version: int
    alignment: int
    metadata: Metadata
    tensors: dict[str, TensorInfo]


def parse_header(path: str, buffer: mmap.mmap, size: int) -> Header:
    """Header of the file that is mapped in `buffer`, `size` bytes long. Raises GGUFError."""
    cursor = _Cursor(path, buffer, size)
    version = _version(cursor)
    n_tensors, n_kv = cursor.u64("the tensor count"), cursor.u64("the key count")
    for what, n in (("tensors", n_tensors), ("keys", n_kv)):
        if n > MAX_ENTRIES:
            raise cursor.error(f"claims {n} {what}, more than {MAX_ENTRIES}")
    if n_kv * MIN_KEY_BYTES + n_tensors * MIN_TENSOR_BYTES > size - cursor.at:
        raise cursor.error(
            f"claims {n_tensors} tensors and {n_kv} keys, but has only {size - cursor.at} bytes for them"
        )

    entries: dict[str, Number | Span] = {}
    for _ in range(n_kv):
        key = cursor.name("a key", MAX_KEY_BYTES)
        if key in entries:
            raise cursor.error(f"has the key {quoted(key)} twice")
        entries[key] = _value(cursor, key)

    alignment = _alignment(cursor, entries)
    tensors: dict[str, TensorInfo] = {}
    for _ in range(n_tensors):
        tensor = _tensor_info(cursor)
        if tensor.name in tensors:
            raise cursor.error(f"has the tensor {quoted(tensor.name)} twice")
        tensors[tensor.name] = tensor
    data_start = cursor.at + -cursor.at % alignment
    placed = _place(cursor, tensors, data_start, alignment)
    return Header(version, alignment, Metadata(path, buffer, entries), placed)


class _Cursor:
    """Reads forward through the map; running out of file (or over the metadata limit) is a GGUFError."""

    def __init__(self, path: str, buffer: mmap.mmap, size: int) -> None:
        self.path, self.buffer, self.size, self.at = path, buffer, size, 0
        self.end = min(size, MAX_METADATA_BYTES)

    def error(self, problem: str, advice: str = _DAMAGED) -> GGUFError:
        return GGUFError(f"{self.path}: {problem}; {advice}")

    def skip(self, n: int, what: str) -> int:
        """Step over n bytes; returns where they start."""
        start = self.at
        if n > self.end - start:
            if self.end < self.size:
                raise self.error(f"the header is larger than {MAX_METADATA_BYTES >> 20} MiB (at {what})")
            raise self.error(f"ends inside {what}: {n} bytes needed at offset {start} of {self.size}")
        self.at = start + n
        return start

    def number(self, struct: Struct, what: str) -> int | float | bool:
        value: int | float | bool = struct.unpack_from(self.buffer, self.skip(struct.size, what))[0]
        return value

    def u32(self, what: str) -> int:
        return int(self.number(_U32, what))

    def u64(self, what: str) -> int:
        return int(self.number(_U64, what))

    def string(self, what: str, limit: int) -> tuple[int, int]:
        """Step over a string; returns the [start, stop) of its bytes."""
        length = self.u64(what)
        if length > limit:
            raise self.error(f"{what} claims a length of {length} bytes, more than {limit}")
        return self.skip(length, what), self.at

    def name(self, what: str, limit: int) -> str:
        start, stop = self.string(f"the name of {what}", limit)
        if start == stop:
            raise self.error(f"{what} has an empty name (at offset {start})")
        try:
            return self.buffer[start:stop].decode("utf-8")
        except UnicodeDecodeError:
            raise self.error(f"the name of {what} is not UTF-8 (at offset {start})") from None

    def skip_strings(self, count: int, what: str) -> None:
        """Step over `count` strings: the one loop that runs 10^5 times for an ordinary vocabulary."""
        buffer, at, length_at = self.buffer, self.at, _U64.unpack_from
        last = self.end - 8
        for _ in range(count):
            if at > last:
                break
            length = length_at(buffer, at)[0]
            if length > MAX_STRING_BYTES:
                raise self.error(f"a string of {what} claims {length} bytes, more than {MAX_STRING_BYTES}")
            at += 8 + length
        else:
            if at <= self.end:
                self.at = at
                return
        self.skip(self.end - self.at + 1, what)  # raises: out of file or over the limit


def _version(cursor: _Cursor) -> int:
    magic = cursor.buffer[:4]
    if magic != MAGIC:
        raise cursor.error(f"is not a GGUF file (it starts with {magic!r})", "give the path of a .gguf model")
    cursor.skip(4, "the magic")
    version = cursor.u32("the version")
    if version in VERSIONS:
        return version
    if version & 0xFFFF == 0 and version:
        raise cursor.error("is a big-endian GGUF file", "convert it to little-endian")
    advice = "download or convert the model again" if version < 2 else "a newer mixkv is needed"
    raise cursor.error(f"has GGUF version {version}; versions 2 and 3 can be read", advice)


def _value(cursor: _Cursor, key: str) -> Number | Span:
    what = f"the value of key {quoted(key)}"
    kind = _value_type(cursor, what)
    if kind == ValueType.STRING:
        return Span(kind, None, 0, *cursor.string(what, MAX_STRING_BYTES))
    if kind != ValueType.ARRAY:
        return Number(kind, cursor.number(_SCALARS[kind], what))

    element = _value_type(cursor, what)
    if element == ValueType.ARRAY:
        raise cursor.error(f"{what} is an array of arrays, which no model uses")
    count = cursor.u64(what)
    if count > MAX_ARRAY_LENGTH:
        raise cursor.error(f"{what} claims {count} elements, more than {MAX_ARRAY_LENGTH}")
    start = cursor.at
    if element == ValueType.STRING:
        cursor.skip_strings(count, what)
    else:
        cursor.skip(count * SCALAR_DTYPES[element].itemsize, what)
    return Span(kind, element, count, start, cursor.at)


def _value_type(cursor: _Cursor, what: str) -> ValueType:
    number = cursor.u32(what)
    try:
        return ValueType(number)
    except ValueError:
        raise cursor.error(f"{what} has the unknown type {number}") from None


def _alignment(cursor: _Cursor, entries: dict[str, Number | Span]) -> int:
    entry = entries.get("general.alignment")
    if entry is None:
        return DEFAULT_ALIGNMENT
    if not isinstance(entry, Number) or entry.kind != ValueType.UINT32:
        raise cursor.error(f"general.alignment must be a uint32, not {entry.kind.name.lower()}")
    alignment = int(entry.value)
    if not 0 < alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
        raise cursor.error(f"general.alignment is {alignment}, not a power of two up to {MAX_ALIGNMENT}")
    return alignment


def _tensor_info(cursor: _Cursor) -> TensorInfo:
    """One tensor info, its size checked; the offset still counts from the start of the data."""
    name = cursor.name("a tensor", MAX_TENSOR_NAME_BYTES)
    what = f"tensor {quoted(name)}"
    n_dims = cursor.u32(what)
    if n_dims > MAX_DIMS:
        raise cursor.error(f"{what} has {n_dims} dimensions, more than {MAX_DIMS}")
    ne = [cursor.u64(what) for _ in range(n_dims)] or [1]
    n_elements = 1
    for n in ne:
        n_elements *= max(n, 1)  # a dimension of 0 must not hide that the others are absurd
    if n_elements > MAX_ELEMENTS:
        raise cursor.error(f"{what} has the impossible shape {ne}")

    number = cursor.u32(what)
    try:
        ggml_type = WeightType(number)
    except ValueError:
        raise cursor.error(f"{what} has the unknown weight type {number}") from None
    block, _ = BLOCK_SIZES[ggml_type]
    if ne[0] % block:
        raise cursor.error(f"{what}: rows of {ne[0]} are no multiple of {ggml_type.name}'s block of {block}")
    tensor = TensorInfo(name, ggml_type, tuple(reversed(ne)), cursor.u64(what), 0)
    rows, row_bytes = tensor.rows_shape
    return TensorInfo(name, ggml_type, tensor.shape, tensor.offset, rows * row_bytes)


def _place(cursor: _Cursor, tensors: dict[str, TensorInfo], data_start: int, alignment: int) -> dict[str, TensorInfo]:
    """The tensors with offsets from the start of the file: aligned, inside the file, none overlapping."""
    placed = {}
    for t in tensors.values():
        if t.offset % alignment:
            raise cursor.error(f"tensor {quoted(t.name)}: offset {t.offset} is not aligned to {alignment}")
        start = data_start + t.offset
        # an empty tensor may stand behind a last tensor whose padding was not written
        if start + t.n_bytes > cursor.size + (alignment if t.n_bytes == 0 else 0):
            raise cursor.error(f"tensor {quoted(t.name)} needs bytes {start} .. {start + t.n_bytes} of {cursor.size}")
        placed[t.name] = TensorInfo(t.name, t.ggml_type, t.shape, start, t.n_bytes)

    before = None
    for t in sorted((t for t in placed.values() if t.n_bytes), key=lambda t: t.offset):
        if before is not None and t.offset < before.offset + before.n_bytes:
            raise cursor.error(f"tensors {quoted(before.name)} and {quoted(t.name)} overlap")
        before = t
    return placed
