"""What comes over a socket and is no request, or only a part of one: the server drops it and answers the next."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

pytest.importorskip("starlette", reason="the server's packages are not installed")

from serve_tools import GREEDY, HI, Process, answer

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
LIMIT_SECONDS = 30


@pytest.fixture(scope="module")
def server() -> Iterator[Process]:
    with Process("-c", "256", "-np", "1", "--max-body", "1") as process:
        yield process
        _, said = process.end()
        assert said.count(b"\n") == 1 and b"Traceback" not in said, said


def sent(server: Process, raw: bytes, *, close: bool) -> bytes:
    """The answer to raw bytes. close: the client goes away behind them without waiting for one."""
    url = urlsplit(server.url)
    with socket.create_connection((url.hostname or "", url.port or 0), timeout=LIMIT_SECONDS) as client:
        client.sendall(raw)
        got = b""
        while not close and (part := client.recv(65536)):
            got += part
            if b"\r\n\r\n" in got:
                break
        return got


@pytest.mark.parametrize(
    "raw",
    [
        b"\x00" * 1000 + b"\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /health HTTP/9.9\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nno colon\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 200_000 + b"\r\n\r\n",
        HEAD + b"Content-Length: many\r\n\r\n{}",
        HEAD + b"Content-Length: -5\r\n\r\n{}",
        HEAD + b"Content-Length: 5\r\nContent-Length: 7\r\n\r\n{}",
        HEAD + b"Content-Length: 99999999999\r\n\r\n{}",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        HEAD + b"Transfer-Encoding: magic\r\n\r\n{}",
    ],
    ids=lambda raw: repr(raw[-60:])[:70],
)
def test_what_is_no_http(server: Process, raw: bytes) -> None:
    """A status of 400 or more, or no answer at all; never a page of HTML."""
    got = sent(server, raw, close=False)
    assert not got or got.split(b" ", 2)[1][:1] in (b"4", b"5"), got
    assert b"<html" not in got.lower()
    assert answer(server.client, "/v1/chat/completions", messages=HI, **GREEDY)["usage"]["completion_tokens"] == 12


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"POST /v1/chat",
        HEAD,
        HEAD + b'Content-Length: 500\r\n\r\n{"messages": ',
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{",
        HEAD + b'Content-Length: 73\r\n\r\n{"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 99999999}',
        HEAD + b"Expect: 100-continue\r\nContent-Length: 500\r\n\r\n",
    ],
    ids=lambda raw: repr(raw[-60:])[:70],
)
def test_who_leaves_in_the_middle(server: Process, raw: bytes) -> None:
    """Nothing stays behind that counts as running."""
    sent(server, raw, close=True)
    server.until(lambda: server.metric("generations_running") == 0)
    assert answer(server.client, "/v1/chat/completions", messages=HI, **GREEDY)["usage"]["completion_tokens"] == 12
