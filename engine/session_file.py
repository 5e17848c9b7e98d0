"""The session file: a header that says everything, the payload it implies, a checksum over both.

    magic (8) | header length u64 | header JSON | tokens int32 (n) | layers ... | BLAKE2b-256 of all before (32)

A layer is K then V of the sinks (hot type), of [S, quant_end) (cold type, GGML's block bytes) and of [hot_start, n)
(hot type). The header fixes the file's size to the byte, which is compared before anything is read or allocated.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from mixkv.engine.atomic_file import writing
from mixkv.engine.cache import Marks
from mixkv.kernels import TILE, LayerFormat, cache_type
from mixkv.kernels.errors import MixkvError, SessionError

MAGIC = b"MIXKVSE1"
VERSION = 2
"""Raised when the format changes, or what the fingerprint in it covers."""
MAX_HEADER = 1 << 20
MAX_TOKENS = 1 << 31
DIGEST_BYTES = 32
_INTS = ("version", "n_kv_heads", "head_dim_k", "head_dim_v", "sink_tokens", "n", "hot_start", "quant_end",
         "degraded_end")  # fmt: skip


@dataclass(frozen=True)
class Header:
    """What a session is of. hot_window None: nothing ever turns cold."""

    fingerprint: str
    n_kv_heads: int
    head_dim_k: int
    head_dim_v: int
    layers: tuple[LayerFormat, ...]
    sink_tokens: int
    hot_window: int | None
    marks: Marks

    def sections(self) -> list[tuple[int, str, bool, int, int, str]]:
        """(layer, "k" or "v", cold, start, stop, type) of every piece of the payload, in order."""
        spans = (
            (False, 0, min(self.marks.n, self.sink_tokens)),
            (True, self.sink_tokens, self.marks.quant_end),
            (False, self.marks.hot_start, max(self.marks.n, self.marks.hot_start)),
        )
        return [
            (i, side, cold, start, stop, kind if cold else hot)
            for i, f in enumerate(self.layers)
            for cold, start, stop in spans
            for side, kind, hot in (("k", f.type_k, f.hot_k), ("v", f.type_v, f.hot_v))
        ]

    def head_dim(self, side: str) -> int:
        return self.head_dim_k if side == "k" else self.head_dim_v

    def section_bytes(self, section: tuple[int, str, bool, int, int, str]) -> int:
        _, side, _, start, stop, kind = section
        return (stop - start) * self.n_kv_heads * cache_type(kind).row_bytes(self.head_dim(side))

    def payload_bytes(self) -> int:
        return 4 * self.marks.n + sum(self.section_bytes(s) for s in self.sections())

    def to_json(self) -> bytes:
        fields = asdict(self) | {"version": VERSION} | asdict(self.marks)
        del fields["marks"]
        return json.dumps(fields).encode()

    @classmethod
    def from_json(cls, text: bytes) -> Header:
        """Checked field by field: types, ranges and how the marks stand to each other."""
        fields: dict[str, Any] = json.loads(text)
        if not isinstance(fields, dict) or fields.get("version") != VERSION:
            raise SessionError("it is of another version of the format")
        for name in _INTS:
            if type(fields.get(name)) is not int or not 0 <= fields[name] <= MAX_TOKENS:
                raise SessionError(f"its header has no valid {name}")
        window = fields.get("hot_window")
        if window is not None and (type(window) is not int or not 0 <= window <= MAX_TOKENS):
            raise SessionError("its header has no valid hot_window")
        if not isinstance(fields.get("fingerprint"), str) or not isinstance(fields.get("layers"), list):
            raise SessionError("its header is incomplete")
        layers = tuple(LayerFormat(**layer) for layer in fields["layers"])
        marks = Marks(fields["n"], fields["hot_start"], fields["quant_end"], fields["degraded_end"])
        sinks = fields["sink_tokens"]
        aligned = all((mark - sinks) % TILE == 0 for mark in (marks.hot_start, marks.quant_end))
        end = max(marks.n, sinks)
        if not (aligned and sinks <= marks.hot_start <= marks.quant_end <= end and marks.degraded_end <= end):
            raise SessionError("its marks contradict each other")
        return cls(
            fields["fingerprint"], fields["n_kv_heads"], fields["head_dim_k"], fields["head_dim_v"], layers, sinks,
            window, marks,
        )  # fmt: skip


@contextmanager
def writing_session(path: Path) -> Iterator[HashedWriter]:
    """A session that appears at `path`, its checksum at the end, when the block ends, or not at all. SessionError."""
    with writing(path, "session", SessionError) as file:
        writer = HashedWriter(file)
        yield writer
        file.write(writer.hash.digest())


class HashedWriter:
    """Writes and hashes."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.hash = file, hashlib.blake2b(digest_size=DIGEST_BYTES)

    def write(self, data: bytes | NDArray[Any]) -> None:
        view = np.ascontiguousarray(data).data.cast("B") if isinstance(data, np.ndarray) else data
        self.hash.update(view)
        self._file.write(view)


class SessionReader:
    """An opened session: `header` is checked, the size fits it, the checksum is right. Use as a context manager."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.exists() and not path.is_file():  # opening a pipe would wait for ever
            raise SessionError(f"session {path}: it is not a regular file; nothing was restored")
        try:
            self._file = path.open("rb")
            try:
                self.header = self._open()
            except BaseException:
                self._file.close()
                raise
        except SessionError as error:
            raise SessionError(f"session {path}: {error}; nothing was restored") from None
        except (MixkvError, OSError, ValueError, TypeError, RecursionError, struct.error) as error:
            reason = getattr(error, "strerror", None) or error
            raise SessionError(f"session {path} cannot be read: {reason}; nothing was restored") from None

    def _open(self) -> Header:
        size = os.fstat(self._file.fileno()).st_size
        lead = self._file.read(len(MAGIC) + 8)
        if lead[: len(MAGIC)] != MAGIC:
            raise SessionError("it is not a session file")
        (header_bytes,) = struct.unpack("<Q", lead[len(MAGIC) :])
        if header_bytes > min(MAX_HEADER, size):
            raise SessionError("its header is damaged")
        header = Header.from_json(self._file.read(header_bytes))
        self._start = len(lead) + header_bytes
        wanted = self._start + header.payload_bytes() + DIGEST_BYTES
        if size != wanted:
            raise SessionError(f"it has {size} bytes instead of {wanted}: it was cut off or damaged")
        self._check_digest(size - DIGEST_BYTES)
        return header

    def _check_digest(self, n: int) -> None:
        digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
        self._file.seek(0)
        while n > 0:
            piece = self._file.read(min(n, 1 << 20))
            if not piece:
                raise SessionError("it ends early")
            digest.update(piece)
            n -= len(piece)
        if digest.digest() != self._file.read(DIGEST_BYTES):
            raise SessionError("its checksum is wrong: it was damaged")
        self._file.seek(self._start)

    def tokens(self) -> NDArray[np.int32]:
        """The token ids (n,); to be read first."""
        return np.frombuffer(self._exactly(4 * self.header.marks.n), np.int32)

    def section(self, section: tuple[int, str, bool, int, int, str]) -> NDArray[Any]:
        """The next piece of the payload: (n, n_kv_heads, head_dim) in a hot type, or (..., row_bytes) uint8."""
        _, side, cold, start, stop, kind = section
        data = np.frombuffer(self._exactly(self.header.section_bytes(section)), np.uint8)
        rows = data.reshape(stop - start, self.header.n_kv_heads, -1) if len(data) else None
        if rows is None:
            width = cache_type(kind).row_bytes(self.header.head_dim(side))
            rows = np.empty((0, self.header.n_kv_heads, width), np.uint8)
        return rows if cold else rows.view(np.float32 if kind == "f32" else np.float16)

    def _exactly(self, n: int) -> bytes:
        data = self._file.read(n)
        if len(data) != n:
            raise SessionError(f"session {self.path} ends early; nothing was restored")
        return data

    def __enter__(self) -> SessionReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
