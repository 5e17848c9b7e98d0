"""A server in this process, or as a process of its own, and what its streams say."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import cli_process
import httpx
from starlette.testclient import TestClient

import mixkv
from mixkv.server.app import make_app
from mixkv.server.settings import ServerSettings

HI = [{"role": "user", "content": "Hello there"}]
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 12}


@contextmanager
def serving(llm: mixkv.LLM, **settings: Any) -> Iterator[TestClient]:
    """A client of a server of this LLM."""
    app = make_app(llm, ServerSettings(**{"alias": "demo", **settings}))
    with TestClient(app, base_url="http://localhost", raise_server_exceptions=False) as client:
        yield client


def answer(client: Any, path: str, **body: Any) -> dict[str, Any]:
    """The answer to a request that is all right."""
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def refused(client: Any, status: int, says: str, method: str, path: str, **request: Any) -> dict[str, Any]:
    """The error of a request, checked: its status, one line of JSON, and that the server lives."""
    response = client.request(method, path, **request)
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body: dict[str, Any] = response.json()
    error: dict[str, Any] = body["error"]
    assert says in error["message"] and "\n" not in error["message"] and "Traceback" not in response.text, error
    if path.startswith("/v1/messages"):
        assert body["type"] == "error" and set(error) >= {"type", "message"}
    else:
        assert set(error) >= {"message", "type", "param", "code"}
    assert client.get("/health").status_code == 200
    return error


def events(client: Any, path: str, **body: Any) -> list[Any]:
    """The events of a stream: (name, object) where they have names; [DONE] is the last where there is one."""
    response = client.post(path, json={**body, "stream": True})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["x-accel-buffering"] == "no"
    return parsed(response.text)


def parsed(text: str) -> list[Any]:
    found: list[Any] = []
    assert text.endswith("\n\n")
    for part in text[:-2].split("\n\n"):
        if part.startswith(":"):
            continue
        named = re.fullmatch(r"(?:event: (\S+)\n)?data: ([^\n]*)", part)
        assert named, part
        value = named[2] if named[2] == "[DONE]" else json.loads(named[2])
        found.append((named[1], value) if named[1] else value)
    return found


class Process:
    """`mixkv serve` on a free port."""

    def __init__(self, *words: str, **options: Any) -> None:
        self.process = cli_process.start("serve", "--port", "0", *words, **options)
        assert self.process.stderr is not None
        self.said = b""
        while not (found := re.search(rb" at (http://\S+)\n", self.said)):
            line = self.process.stderr.readline()
            assert line, self.said
            self.said += line
        self.url = found[1].decode()
        self.client = httpx.Client(base_url=self.url, timeout=cli_process.LIMIT_SECONDS)

    def metric(self, name: str) -> float:
        found = re.search(rf"^mixkv_{name} (\S+)$", self.client.get("/metrics").text, re.M)
        assert found, name
        return float(found[1])

    def until(self, holds: Callable[[], bool]) -> None:
        """Wait for something that is bound to come."""
        for _ in range(int(cli_process.LIMIT_SECONDS / 0.05)):
            if holds():
                return
            time.sleep(0.05)
        raise AssertionError("it did not come")

    def end(self, number: int = signal.SIGTERM) -> tuple[int, bytes]:
        """Its exit status, and all that it wrote."""
        self.client.close()
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=cli_process.LIMIT_SECONDS)
        assert out == b""
        return self.process.returncode, self.said + err

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.client.close()
            self.process.kill()
            self.process.communicate()


def environment(**changes: str) -> dict[str, str]:
    return {**os.environ, **changes}
