"""One file from the hub to the disk: begun where an earlier try ended, and kept only if its checksum is right.

Know before you change this room: huggingface_hub's own download throws an unfinished file away, so the bytes are read
here, through its session. What is on disk is always a beginning of the file; whatever ends the process leaves it, and
the next try goes on from there. Nothing gets the name of finished contents before size and checksum were seen.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixkv.kernels.errors import HubError

TRIES = 5
"""Without one new byte; then it is given up."""
LATER = frozenset({408, 416, 429, 500, 502, 503, 504})
"""Answers after which another try makes sense."""
CHUNK = 1 << 20
TIMEOUT_SECONDS = 10.0


@dataclass(frozen=True)
class RemoteFile:
    """A file as the hub lists it. digest: SHA-256 of the contents in 64 digits, or Git's SHA-1 of them in 40."""

    name: str
    size: int
    digest: str

    def hasher(self) -> Any:
        """A hash that has seen nothing of the contents."""
        if len(self.digest) == 64:
            return hashlib.sha256()
        return hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)


def transport_errors() -> tuple[type[Exception], ...]:
    """What the session raises where the network fails: the package's HTTP library differs by version."""
    libraries = [sys.modules[name] for name in ("httpx", "httpx2") if name in sys.modules]
    return tuple(error for library in libraries for error in (library.HTTPError, library.InvalidURL))


def download(
    file: RemoteFile, part: Path, url: str, headers: Mapping[str, str], *, report: Callable[[int], None], pause: float
) -> None:
    """Complete `part` to the whole of `file`. report: bytes of it there are so far. pause: seconds before a new try.

    Raises HubError: where the network fails or the disk is full, and what there is stays; where the contents are not
    those that the hub lists, and they are removed.
    """
    with _Part.opened(part, file) as out:
        report(out.n_bytes)
        tries, most = TRIES, out.n_bytes
        while out.n_bytes < file.size:
            try:
                reason = _receive(url, headers, out, report)
            except transport_errors() as error:
                reason = str(error) or type(error).__name__
            tries = TRIES if out.n_bytes > most else tries - 1  # to begin again and come as far is no progress
            most = max(most, out.n_bytes)
            if out.n_bytes < file.size and not tries:
                raise HubError(
                    f"the download of {file.name} broke off after {out.n_bytes} of {file.size} bytes: {reason}; what "
                    "there is was kept: start again when the network is better, and it goes on from there"
                )
            if out.n_bytes < file.size:
                time.sleep(pause)
        if out.n_bytes != file.size or out.hash.hexdigest() != file.digest:
            part.unlink()
            raise HubError(
                f"{file.name} arrived damaged: its {out.n_bytes} bytes have another checksum than the hub lists; they "
                "were removed: download it again, and if that happens again, ask whoever published it"
            )
        os.fsync(out.descriptor)


def _receive(url: str, headers: Mapping[str, str], out: _Part, report: Callable[[int], None]) -> str:
    """Append what one request gives, at most the rest; why it was not all. Raises HubError where the hub says no."""
    from huggingface_hub import get_session

    wanted = {**headers, "Accept-Encoding": "identity"}
    if out.n_bytes:
        wanted["Range"] = f"bytes={out.n_bytes}-"
    with get_session().stream("GET", url, headers=wanted, timeout=TIMEOUT_SECONDS, follow_redirects=True) as response:
        if response.status_code not in (200, 206):
            why = f"the hub answered {response.status_code} {response.headers.get('X-Error-Message', '')[:200]}".strip()
            if response.status_code not in LATER:
                raise HubError(f"{out.file.name} cannot be downloaded: {why}")
            if response.status_code == 416:
                out.restart()
            return why
        if response.status_code == 200:
            out.restart()  # whoever answers knows no parts of files
        for piece in response.iter_bytes():
            out.append(piece)
            report(min(out.n_bytes, out.file.size))
            if out.n_bytes > out.file.size:
                break
    return "the connection was closed"


class _Part:
    """A file that grows, and the hash of what is in it."""

    def __init__(self, path: Path, descriptor: int, file: RemoteFile) -> None:
        self.path, self.descriptor, self.file = path, descriptor, file
        self.n_bytes, self.hash = 0, file.hasher()

    @classmethod
    @contextmanager
    def opened(cls, path: Path, file: RemoteFile) -> Iterator[_Part]:
        """With what an earlier try left, as far as that can be of this file."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            part = cls(path, descriptor, file)
            if os.fstat(descriptor).st_size > file.size:
                part.restart()
            while piece := os.read(descriptor, CHUNK):
                part.hash.update(piece)
                part.n_bytes += len(piece)
            yield part
        finally:
            os.close(descriptor)

    def append(self, piece: bytes) -> None:
        """Write behind what there is. Raises HubError where the disk does not take it."""
        try:
            rest = memoryview(piece)
            while rest:
                n_written = os.write(self.descriptor, rest)
                self.n_bytes += n_written
                self.hash.update(rest[:n_written])
                rest = rest[n_written:]
        except OSError as error:
            raise HubError(
                f"{self.path}: cannot write: {error.strerror}; {self.n_bytes} of {self.file.size} bytes of "
                f"{self.file.name} were kept: make room and start again, and it goes on from there"
            ) from None

    def restart(self) -> None:
        """Forget what there is."""
        os.ftruncate(self.descriptor, 0)
        os.lseek(self.descriptor, 0, os.SEEK_SET)
        self.n_bytes, self.hash = 0, self.file.hasher()
