"""Who is let in: keys, hosts, pages of other hosts; and that nothing of keys and prompts is written down."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_process import run

pytest.importorskip("starlette", reason="the server's packages are not installed")

from serve_tools import GREEDY, HI, answer, serving

import mixkv
from mixkv.cli.serve import ServeFlags
from mixkv.server.app import PAGES

CHAT = "/v1/chat/completions"
PAGE = Path(__file__).resolve().parents[1] / "docs" / "serving.md"


@pytest.fixture(scope="module")
def llm() -> Iterator[mixkv.LLM]:
    with mixkv.load(n_ctx=256) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def locked(llm: mixkv.LLM) -> Iterator[Any]:
    with serving(llm, keys=("first-key", "zweiter-schlüssel")) as served:
        yield served


@pytest.mark.parametrize(("name", "value", "status"), [
    ("Authorization", b"Bearer first-key", 200), ("authorization", b"bearer first-key", 200),
    ("x-api-key", b"first-key", 200), ("x-api-key", "zweiter-schlüssel".encode(), 200),
    ("Authorization", b"Bearer first-ke", 401), ("Authorization", b"Bearer first-key2", 401),
    ("Authorization", b"first-key", 401), ("Authorization", b"Basic first-key", 401),
    ("Authorization", b"Bearer ", 401),
    ("Authorization", b"Bearer", 401), ("x-api-key", b"", 401), ("x-api-key", b"\xff\xfe", 401),
    ("x", b"first-key", 401),
    ("x-api-key", b"FIRST-KEY", 401), ("Cookie", b"key=first-key", 401),
])  # fmt: skip
def test_keys(locked: Any, name: str, value: bytes, status: int) -> None:
    response = locked.post(CHAT, json={"messages": HI, **GREEDY}, headers={name: value})
    assert response.status_code == status
    if status == 401:
        assert response.json()["error"]["code"] == "invalid_api_key" and "first" not in response.text


def test_nothing_but_health_is_open_without_a_key(locked: Any) -> None:
    """Pages that are not there either: what there is, is nobody's business."""
    assert locked.get("/health").status_code == 200
    for path in ("/props", "/v1/models", "/metrics", "/nowhere", "/health/../props", "/health/"):
        assert locked.get(path).status_code == 401, path
    error = locked.post("/v1/messages", json={}).json()
    assert (error["type"], error["error"]["type"]) == ("error", "authentication_error")


@pytest.mark.parametrize(("headers", "status"), [
    ({"Host": "evil.example"}, 403), ({"Host": "evil.example:8080"}, 403), ({"Host": "localhost.evil.example"}, 403),
    ({"Host": "[::1"}, 403), ({"Host": ""}, 403), ({"Host": "127.0.0.1:8080"}, 200), ({"Host": "[::1]:80"}, 200),
    ({"Host": "LOCALHOST"}, 200),
    ({"Origin": "https://evil.example"}, 403), ({"Origin": "null"}, 403), ({"Origin": "http://localhost.evil"}, 403),
    ({"Origin": "http://localhost:3000"}, 200), ({"Origin": "http://127.0.0.1"}, 200),
])  # fmt: skip
def test_pages_of_other_hosts_cannot_use_it(llm: mixkv.LLM, headers: dict[str, str], status: int) -> None:
    """A page may send requests to this machine, also under a name of its own that leads here: it must not compute."""
    with serving(llm) as client:
        response = client.post(CHAT, json={"messages": HI, **GREEDY}, headers=headers)
        assert response.status_code == status
        allowed = response.headers.get("access-control-allow-origin")
        assert allowed == (headers["Origin"] if "Origin" in headers and status == 200 else None)


def test_pages_of_this_machine_may_ask_first(locked: Any) -> None:
    """The question before a request has no key."""
    ask = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    response = locked.options(CHAT, headers={"Origin": "http://localhost:3000", **ask})
    assert response.status_code == 204
    assert response.headers["access-control-allow-origin"] == "http://localhost:3000"
    assert "authorization" in response.headers["access-control-allow-headers"]
    other = locked.options(CHAT, headers={"Origin": "http://evil.example", **ask})
    assert "access-control-allow-origin" not in other.headers, "its browser then sends nothing"


def test_behind_a_proxy_its_own_page_has_another_name(locked: Any) -> None:
    """A page of another host has no key; one that has may ask."""
    headers = {"Origin": "https://ai.example", "Host": "ai.example"}
    assert locked.get("/v1/models", headers=headers).status_code == 401
    assert locked.get("/v1/models", headers={**headers, "x-api-key": "first-key"}).status_code == 200


def test_a_server_for_everybody_has_any_name(llm: mixkv.LLM) -> None:
    with serving(llm, hosts=("*",)) as client:
        assert client.get("/health", headers={"Host": "box.lan"}).status_code == 200
        assert client.get("/health", headers={"Origin": "http://evil.example"}).status_code == 403


def test_our_own_mistakes_say_nothing_of_a_prompt(
    llm: mixkv.LLM, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """500 with no details, and a line that says where; the exception's text could hold the prompt."""

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("SECRET prompt")

    monkeypatch.setattr(llm, "chat_stream", broken)
    with serving(llm) as client, caplog.at_level(logging.DEBUG):
        response = client.post(CHAT, json={"messages": HI})
        assert response.status_code == 500 and "SECRET" not in response.text
        assert "internal error: RuntimeError at" in caplog.text and "SECRET" not in caplog.text
        monkeypatch.undo()
        assert answer(client, CHAT, messages=HI, **GREEDY)


@pytest.mark.parametrize(("words", "says"), [
    (["--host", "0.0.0.0"], "give --api-key or --api-key-file"),
    (["--host", "::"], "give --api-key"),
    (["--host", "8.8.8.8", "--api-key", "k"], "cannot listen there"),
    (["--host", "no such host.invalid", "--api-key", "k"], "cannot listen there"),
    (["--port", "70000"], "--port 70000"),
    (["-np", "0"], "-np 0"),
    (["--api-key", ""], "--api-key is empty"),
    (["--api-key", "geheim,"], "--api-key is empty"),
    (["--api-key", "geheim", "--no-api-key"], "contradicts"),
    (["--api-key-file", "/does/not/exist"], "/does/not/exist"),
    (["--chat-template", "magic"], "no chat template is called"),
    (["--chat-template", "chatml", "--chat-template-file", "x"], "give one of them"),
])  # fmt: skip
def test_a_command_line_that_cannot_be(words: list[str], says: str) -> None:
    """Status 2, one line, and no key in it."""
    result = run("serve", "-c", "256", "-q", *(words if "--port" in words else ["--port", "0", *words]))
    assert result.status == 2 and says in result.complaint and "geheim" not in result.complaint


def test_an_empty_file_of_keys_is_no_open_door(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("\n  \n", encoding="utf-8")
    result = run("serve", "--port", "0", "--api-key-file", str(tmp_path / "keys"))
    assert result.status == 2 and "there is no key in it" in result.complaint


@pytest.mark.skipif(not PAGE.exists(), reason="the documents are not here")
def test_every_flag_and_every_path_is_in_the_documents() -> None:
    """A flag that is not written down does not exist for anybody."""
    page = PAGE.read_text(encoding="utf-8")
    names = [field.metadata["names"][0].partition("/")[0] for field in dataclasses.fields(ServeFlags)]
    assert [name for name in names if f"`{name}" not in page] == []
    paths = [path.partition("{")[0].rstrip("/") for _, path, _ in PAGES]
    assert [path for path in paths if f"{path}`" not in page] == []
