"""`mixkv serve` as a process: streams, clients that go away, the queue, signals."""

from __future__ import annotations

import json
import signal
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cli_process import run

pytest.importorskip("starlette", reason="the server's packages are not installed")

import httpx
from serve_tools import GREEDY, HI, Process, answer, environment, events

import mixkv

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
ENDLESS: dict[str, Any] = {"messages": HI, "ignore_eos": True, "temperature": 0}
"""With the context of these servers this computes for minutes."""
LONG = ["-c", "65536", "-np", "1", "--queue", "2"]


@pytest.fixture
def server() -> Iterator[Process]:
    with Process(*LONG) as process:
        yield process


def test_it_answers_and_leaves_when_told(server: Process) -> None:
    with mixkv.load(n_ctx=256) as llm:
        wanted = llm.chat(HI, **GREEDY).message.content
    assert answer(server.client, CHAT, messages=HI, **GREEDY)["choices"][0]["message"]["content"] == wanted
    pieces = [e["choices"][0]["delta"] for e in events(server.client, CHAT, messages=HI, **GREEDY)[:-1]]
    assert "".join(piece.get("content", "") for piece in pieces) == wanted
    status, said = server.end()
    assert status == 0 and said.count(b"\n") == 1, said


def test_pieces_come_while_the_rest_is_computed(server: Process) -> None:
    """Else a stream is an answer with a delay."""
    with server.client.stream("POST", CHAT, json={**ENDLESS, "stream": True}) as response:
        lines = response.iter_lines()
        assert json.loads(next(lines).removeprefix("data: "))["choices"][0]["delta"]["role"] == "assistant"
        for _ in range(20):
            next(lines)
        assert server.metric("generations_running") == 1
    server.until(lambda: server.metric("generations_running") == 0)


def test_answers_are_the_same_in_a_crowd() -> None:
    """Nine clients of three sequences: some wait, some are computed together, each gets what it gets alone."""
    asked: list[dict[str, Any]] = [
        {"messages": [{"role": "user", "content": text}], "seed": i, "max_tokens": 24, "stream": i % 2 == 0}
        for i, text in enumerate(["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"])
    ]
    with Process("-c", "512", "-np", "3") as server:

        def text(body: dict[str, Any]) -> str:
            with httpx.Client(base_url=server.url, timeout=60) as client:
                if not body["stream"]:
                    content: str = answer(client, CHAT, **body)["choices"][0]["message"]["content"]
                    return content
                found = [e["choices"][0]["delta"].get("content", "") for e in events(client, CHAT, **body)[:-1]]
                return "".join(found)

        with ThreadPoolExecutor(9) as crowd:
            together = list(crowd.map(text, asked))
        assert together == [text(body) for body in asked]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("prompt", ["short", "long"])
def test_a_client_that_goes_away_is_no_longer_computed(server: Process, stream: bool, prompt: str) -> None:
    """In the middle of its text or of its prompt; nothing of it is counted as finished."""
    content = "word " * 30000 if prompt == "long" else "Hi"
    body = {**ENDLESS, "messages": [{"role": "user", "content": content}], "stream": stream}
    with httpx.Client(base_url=server.url) as gone:
        asked = gone.build_request("POST", CHAT, json=body, timeout=httpx.Timeout(60, read=0.5))
        with pytest.raises(httpx.ReadTimeout):
            response = gone.send(asked, stream=True)
            if stream:
                next(response.iter_lines())
                response.close()
                raise httpx.ReadTimeout("closed")
    server.until(lambda: server.metric("generations_running") == 0)
    assert server.metric("generated_tokens_total") == 0
    assert answer(server.client, CHAT, messages=HI, **GREEDY)["usage"]["completion_tokens"] == 12


def test_who_waits_can_leave_and_who_comes_too_late_is_told(server: Process) -> None:
    """The queue is bounded: 503 with Retry-After; a client that leaves it takes nothing along."""
    with httpx.Client(base_url=server.url, timeout=None) as client:
        first = client.send(client.build_request("POST", CHAT, json={**ENDLESS, "stream": True}), stream=True)
        lines = first.iter_lines()
        next(lines)
        for _ in range(2):
            with pytest.raises(httpx.ReadTimeout):  # these leave at once
                server.client.post(TEXT, json={"prompt": "a"}, timeout=httpx.Timeout(60, read=0.3))
        server.until(lambda: server.metric("generations_waiting") == 0)
        assert server.metric("generations_running") == 1, "the others' leaving did not end the one that runs"
        full = server.client.post(CHAT, json={"messages": HI, "n": 3})
        first.close()
    assert full.status_code == 503 and int(full.headers["Retry-After"]) > 0
    assert full.json()["error"]["type"] == "overloaded_error"
    server.until(lambda: server.metric("generations_running") == 0)
    assert len(answer(server.client, CHAT, messages=HI, n=3, **GREEDY)["choices"]) == 3, "an idle server takes it"


def test_what_runs_may_finish() -> None:
    """SIGTERM: the answer that is under way comes whole; then the process leaves."""
    with Process("-c", "4096", "-np", "1") as server:
        body = {"messages": HI, "max_tokens": 1500, "ignore_eos": True, "stream": True}
        with httpx.Client(base_url=server.url, timeout=60).stream("POST", CHAT, json=body) as response:
            lines = response.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]" and '"finish_reason":"length"' in rest[-2]
        assert server.process.wait(60) == 0


def test_what_runs_too_long_is_ended() -> None:
    with Process(*LONG, "--drain-seconds", "1") as server, httpx.Client(base_url=server.url, timeout=60) as client:
        with client.stream("POST", CHAT, json={**ENDLESS, "stream": True}) as response:
            next(response.iter_lines())
            status, said = server.end()
        assert status == 0 and b"Traceback" not in said, said


def test_ctrl_c_ends_it() -> None:
    with Process(*LONG) as server:
        status, said = server.end(signal.SIGINT)
        assert status == 130 and said.count(b"\n") == 1, said


def test_a_port_that_is_taken() -> None:
    """One line before a model is read."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = run("serve", "-m", "/does/not/exist", "--port", str(taken.getsockname()[1]))
    assert result.status == 2 and "cannot listen there: Address already in use" in result.complaint


def test_keys_come_from_files_and_the_environment(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("of-file\n", encoding="utf-8")
    words = ["-c", "256", "-a", "mine", "--api-key-file", str(tmp_path / "keys")]
    with Process(*words, env=environment(MIXKV_API_KEY="of-env,other")) as server:
        codes = {}
        for key in ("of-file", "of-env", "other", "none"):
            response = server.client.get("/v1/models", headers={"Authorization": f"Bearer {key}"})
            codes[key] = response.status_code
        assert codes == {"of-file": 200, "of-env": 200, "other": 200, "none": 401}
        body = {"messages": [{"role": "user", "content": "tell-nobody"}], "max_tokens": 2}
        assert answer(_with_key(server, "of-file"), CHAT, **body)["model"] == "mine"
        _, said = server.end()
        assert b"of-" not in said.replace(str(tmp_path).encode(), b"") and b"tell-nobody" not in said


def _with_key(server: Process, key: str) -> httpx.Client:
    server.client.headers["x-api-key"] = key
    return server.client


def test_without_its_packages_it_says_which() -> None:
    """One line, and not a traceback of an import."""
    code = """if True:
        import sys, importlib.abc
        class Hide(importlib.abc.MetaPathFinder):
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in ("starlette", "uvicorn"):
                    raise ModuleNotFoundError(name)
        import importlib.util
        there = importlib.util.find_spec
        importlib.util.find_spec = lambda name, *_: None if name in ("starlette", "uvicorn") else there(name, *_)
        from mixkv.cli.main import main
        sys.meta_path.insert(0, Hide())
        sys.exit(main(["serve"]))"""
    result = run(line=[sys.executable, "-P", "-c", code])
    assert result.status == 2
    assert "mixkv serve needs starlette, uvicorn: pip install 'mixkv[server]'" in result.complaint
