"""The session file: a header that says everything, the payload it implies, a checksum over both.

    magic (8) | header length u64 | header JSON | tokens int32 (n) | groups ... | BLAKE2b-256 of all before (32)

What a group of layers has in it says session_group.py, by its kind. Checkpoints are left out: a restored sequence has
none but the length it was saved at. The header fixes the file's size to the byte, which is compared before anything is
read or allocated.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from mixkv.engine.atomic_file import writing
from mixkv.engine.session_group import GroupHeader, Section, group_from_json, whole
from mixkv.kernels.errors import MixkvError, SessionError

MAGIC = b"MIXKVSE1"
VERSION = 3
"""Raised when the format changes, or what the fingerprint in it covers."""
MAX_HEADER = 1 << 20
DIGEST_BYTES = 32


@dataclass(frozen=True)
class Header:
    """What a session is of: a model, n tokens, and what each group of layers keeps of them, in the model's order."""

    fingerprint: str
    n: int
    groups: tuple[GroupHeader, ...]

    def sections(self) -> list[tuple[int, Section]]:
        """(number of the group, section) of every piece of the payload, in order."""
        return [(i, section) for i, group in enumerate(self.groups) for section in group.sections(self.n)]

    def payload_bytes(self) -> int:
        return 4 * self.n + sum(section.n_bytes for _, section in self.sections())

    def to_json(self) -> bytes:
        groups = [group.to_json() for group in self.groups]
        return json.dumps({"version": VERSION, "fingerprint": self.fingerprint, "n": self.n, "groups": groups}).encode()

    @classmethod
    def from_json(cls, text: bytes) -> Header:
        """Checked field by field."""
        fields: Any = json.loads(text)
        if not isinstance(fields, dict) or fields.get("version") != VERSION:
            raise SessionError("it is of another version of the format")
        n = whole(fields, "n")
        if not isinstance(fields.get("fingerprint"), str) or not isinstance(fields.get("groups"), list):
            raise SessionError("its header is incomplete")
        return cls(fields["fingerprint"], n, tuple(group_from_json(group, n) for group in fields["groups"]))


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
        view = np.ascontiguousarray(data).reshape(-1).view(np.uint8).data if isinstance(data, np.ndarray) else data
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
        return np.frombuffer(self._exactly(4 * self.header.n), np.int32)

    def section(self, section: Section) -> NDArray[Any]:
        """The next piece of the payload: (n, n_kv_heads, head_dim) in a hot type, or (..., row_bytes) uint8."""
        dtype = np.dtype(np.uint8 if section.cold else np.float32 if section.kind == "f32" else np.float16)
        return np.frombuffer(self._exactly(section.n_bytes), dtype).reshape(section.shape)

    def _exactly(self, n: int) -> bytes:
        data = self._file.read(n)
        if len(data) != n:
            raise SessionError(f"session {self.path} ends early; nothing was restored")
        return data

    def __enter__(self) -> SessionReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
