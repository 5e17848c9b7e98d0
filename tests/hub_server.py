"""A small hub on this machine: repositories of bytes, served over HTTP as the real one does, with faults on demand.

`LocalHub()` is a context manager. `put(repo, files)` publishes; `faults` says what goes wrong; `asked` is what was
asked for, in order.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

for name in ("NO_PROXY", "no_proxy"):  # read when a session is made: nothing of a test leaves this machine
    os.environ[name] = "127.0.0.1,localhost"

LFS_FROM = 1000
"""Bytes from which a file has a SHA-256; smaller ones have Git's SHA-1."""


@dataclass
class Faults:
    """What goes wrong. Zero and None: nothing."""

    break_after: int = 0  # bytes of contents, then the connection is closed; of each answer
    breaks: int = 1 << 30  # how many answers break off
    stall_after: int = 0  # bytes of contents, then nothing comes for a while
    stall_seconds: float = 60.0
    no_ranges: bool = False  # every answer begins at the first byte
    surplus: bytes = b""  # behind the contents
    status: int = 0  # the answer to everything that asks for contents
    api_status: int = 0  # the answer to everything else
    api_body: bytes | None = None
    token: str | None = None  # who has another one sees nothing
    gated: bool = False
    elsewhere: str | None = None  # contents are there: another server's address
    sha: str | None = None  # instead of the commit
    sizes: dict[str, int] = field(default_factory=dict)  # announced instead of the true ones
    digests: dict[str, str] = field(default_factory=dict)


class LocalHub:
    """The server, its repositories, and what it was asked."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.faults = Faults()
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        self.stalled, self.stop = threading.Event(), threading.Event()
        hub = self

        class Handler(_Handler):
            def do_GET(self) -> None:
                hub.asked.append(("GET", self.path, {k.lower(): v for k, v in self.headers.items()}))
                self.answer(hub)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]  # who asked has gone
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> LocalHub:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self._server.shutdown()
        self._server.server_close()

    def put(self, repo: str, files: dict[str, bytes]) -> None:
        """Publish a repository, or a new commit of it."""
        self.repos[repo] = files

    def commit(self, repo: str) -> str:
        """Another one for every content."""
        return hashlib.sha1(repr(sorted(self.repos[repo].items())).encode()).hexdigest()

    def environment(self, home: Path, **more: str) -> dict[str, str]:
        """The environment of a process that takes this for the hub."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGINGFACE_"))}
        return {**kept, "HF_ENDPOINT": self.url, "HF_HOME": str(home), **more}

    def ranges(self) -> list[str | None]:
        """Of each question for contents the range that was asked for."""
        return [headers.get("range") for _, path, headers in self.asked if "/resolve/" in path]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, hub: LocalHub) -> None:
        path = unquote(urlsplit(self.path).path)
        faults = hub.faults
        if faults.token is not None and self.headers.get("Authorization") != f"Bearer {faults.token}":
            return self.refuse(401, "RepoNotFound")
        if path == "/api/models":
            return self.say(200, json.dumps([{"id": repo, "modelId": repo} for repo in hub.repos]).encode())
        if path.startswith("/api/models/"):
            return self._list(hub, path.removeprefix("/api/models/").removesuffix("/revision/main"))
        if "/resolve/" in path:
            repo, _, rest = path[1:].partition("/resolve/")
            return self._contents(hub, hub.repos.get(repo, {}).get(rest.partition("/")[2]))
        self.refuse(404, "EntryNotFound")

    def _list(self, hub: LocalHub, repo: str) -> None:
        faults = hub.faults
        if faults.api_status or faults.api_body is not None:
            return self.say(faults.api_status or 200, faults.api_body or b"{}")
        if faults.gated:
            return self.refuse(403, "GatedRepo")
        if repo not in hub.repos:
            return self.refuse(401, "RepoNotFound")
        siblings: list[dict[str, Any]] = []
        for name, data in hub.repos[repo].items():
            size = faults.sizes.get(name, len(data))
            git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            entry: dict[str, Any] = {"rfilename": name, "size": size, "blobId": faults.digests.get(name, git)}
            if size >= LFS_FROM:
                digest = faults.digests.get(name, hashlib.sha256(data).hexdigest())
                entry |= {"blobId": git, "lfs": {"sha256": digest, "size": size, "pointerSize": 130}}
            siblings.append(entry)
        listing = {"id": repo, "modelId": repo, "sha": faults.sha or hub.commit(repo), "siblings": siblings}
        self.say(200, json.dumps(listing).encode())

    def _contents(self, hub: LocalHub, data: bytes | None) -> None:
        faults = hub.faults
        if faults.status:
            return self.say(faults.status, b"no")
        if data is None:
            return self.refuse(404, "EntryNotFound")
        if faults.elsewhere is not None:
            return self.say(302, b"", Location=faults.elsewhere + self.path)
        begin, status, more = 0, 200, {}
        asked = self.headers.get("Range", "")
        if asked and not faults.no_ranges:
            begin = int(asked.removeprefix("bytes=").rstrip("-"))
            if begin >= len(data):
                return self.say(416, b"")
            status, more = 206, {"Content-Range": f"bytes {begin}-{len(data) - 1}/{len(data)}"}
        body = data[begin:] + faults.surplus
        if faults.stall_after:
            return self._stall(hub, body)
        if faults.break_after and faults.breaks:
            faults.breaks -= 1
            return self.say(status, body, only=faults.break_after - 1, **more)
        self.say(status, body, **more)

    def _stall(self, hub: LocalHub, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: hub.faults.stall_after])
        self.wfile.flush()
        hub.stalled.set()
        if not hub.stop.wait(hub.faults.stall_seconds):
            self.wfile.write(body[hub.faults.stall_after :])

    def refuse(self, status: int, code: str) -> None:
        self.say(status, b"{}", **{"X-Error-Code": code, "X-Error-Message": "Repository not found."})

    def say(self, status: int, body: bytes, only: int | None = None, **headers: str) -> None:
        """only: bytes of the body that are sent before the connection closes; all are announced."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body if only is None else body[:only])
        self.close_connection = only is not None
