"""More bad requests: of other endpoints, paths and methods that are not there, what is too long, large or deep."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the server's packages are not installed")
pytest.importorskip("llguidance", reason="llguidance is not installed")

from serve_tools import GREEDY, HI, answer, refused, serving

import mixkv
from mixkv.server.body import MAX_DEPTH, parse
from mixkv.server.errors import ApiError

CHAT, TEXT, ANTHROPIC = "/v1/chat/completions", "/v1/completions", "/v1/messages"
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with mixkv.load(n_ctx=256, n_parallel=2) as llm, serving(llm, max_body=1 << 20) as served:
        yield served


OTHERS: list[tuple[str, dict[str, Any], str]] = [
    (TEXT, {}, "prompt must be"),
    (TEXT, {"prompt": []}, "prompt must be"),
    (TEXT, {"prompt": 5}, "prompt must be"),
    (TEXT, {"prompt": ["a", 1]}, "prompt must be"),
    (TEXT, {"prompt": [[]]}, "prompt must be"),
    (TEXT, {"prompt": [[[1]]]}, "prompt must be"),
    (TEXT, {"prompt": ["a"] * 1000}, "prompt must be"),
    (TEXT, {"prompt": ["a"] * 100, "n": 16}, "more than 256"),
    (TEXT, {"prompt": [-1]}, "no vocabulary has"),
    (TEXT, {"prompt": [10**30]}, "no vocabulary has"),
    (TEXT, {"prompt": [100_000]}, "out of range"),
    (TEXT, {"prompt": [True]}, "prompt must be"),
    (TEXT, {"prompt": "a", "suffix": "b"}, "suffix is not supported"),
    (TEXT, {"prompt": "a", "best_of": 4}, "best_of is not supported"),
    (TEXT, {"prompt": "a", "logprobs": 10_000}, "logprobs must be"),
    (TEXT, {"prompt": "a", "echo": 1}, "echo must be a boolean"),
    ("/tokenize", {}, "content is missing"),
    ("/tokenize", {"content": ["a"]}, "content must be a string"),
    ("/detokenize", {"tokens": "a"}, "tokens must be an array"),
    ("/detokenize", {"tokens": ["a"]}, "tokens must be a list of token ids"),
    ("/detokenize", {"tokens": [-1]}, "outside the vocabulary"),
    ("/detokenize", {"tokens": [2**80]}, "outside the vocabulary"),
    ("/apply-template", {"messages": [{"role": "x"}]}, "role"),
    (ANTHROPIC, {"messages": HI}, "max_tokens is missing"),
    (ANTHROPIC, {"max_tokens": 1}, "messages is missing"),
    (ANTHROPIC, {"max_tokens": 1, "messages": [5]}, "messages.0 must be an object"),
    (ANTHROPIC, {"max_tokens": 1, "messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
    (ANTHROPIC, {"max_tokens": 1, "messages": [{"role": "user", "content": []}]}, "messages.0.content"),
    (ANTHROPIC, {"max_tokens": 1, "messages": [{"role": "user", "content": [{"type": "image"}]}]}, "text blocks alone"),
    (ANTHROPIC, {"max_tokens": 1, "messages": [{"role": "user", "content": [{"type": "tool_result"}]}]}, "tool_use_id"),
    (ANTHROPIC, {"max_tokens": 1, "messages": [{"role": "assistant", "content": [{"type": "tool_use"}]}]}, "input"),
    (ANTHROPIC, {"max_tokens": 1, "messages": HI, "system": 5}, "system must be"),
    (ANTHROPIC, {"max_tokens": 1, "messages": HI, "tools": [{"name": "f"}]}, "input_schema"),
    (ANTHROPIC, {"max_tokens": 1, "messages": HI, "tools": [{"type": "bash_20250124", "name": "b"}]}, "are not there"),
    (ANTHROPIC, {"max_tokens": 1, "messages": HI, "tool_choice": {"type": ["x"]}}, "tool_choice.type"),
    (ANTHROPIC, {"max_tokens": 1, "messages": HI, "thinking": {"type": 1}}, "thinking.type"),
    (ANTHROPIC, {"max_tokens": 1, "messages": HI, "temperature": -0.1}, "temperature"),
    (ANTHROPIC, {"max_tokens": 1, "messages": HI, "stop_sequences": "x"}, "stop_sequences must be an array"),
    (f"{ANTHROPIC}/count_tokens", {"messages": []}, "messages is missing or empty"),
]


@pytest.mark.parametrize(("path", "body", "says"), OTHERS, ids=[f"{c[0]} {c[1]}"[:70] for c in OTHERS])
def test_other_requests_that_cannot_be(client: Any, path: str, body: dict[str, Any], says: str) -> None:
    refused(client, 400, says, "POST", path, json=body)


@pytest.mark.parametrize(("status", "method", "path"), [
    (405, "GET", CHAT), (405, "DELETE", CHAT), (405, "PUT", "/health"), (405, "POST", "/v1/models"),
    (405, "GET", ANTHROPIC), (405, "TRACE", TEXT), (404, "GET", "/"), (404, "POST", "/v1/embeddings"),
    (404, "GET", "/../../etc/passwd"), (404, "GET", "/v1/models/../../../etc/passwd"), (404, "GET", "//health"),
    (404, "GET", "/%2e%2e/%2e%2e/etc/passwd"), (404, "GET", "/v1/models/%00"), (404, "POST", CHAT + "/"),
    (404, "GET", "/health/../props/x"), (404, "GET", "/v1/models/" + "x" * 5000), (404, "GET", "/HEALTH"),
])  # fmt: skip
def test_paths_and_methods_that_are_not_there(client: Any, status: int, method: str, path: str) -> None:
    refused(client, status, "", method, path)


def test_a_prompt_beyond_the_context_is_told_both_lengths(client: Any) -> None:
    """Clients that cut their history down look for these."""
    long = [{"role": "user", "content": "word " * 2000}]
    for path, body in ((CHAT, {"messages": long}), (TEXT, {"prompt": "word " * 2000})):
        error = refused(client, 400, "the context holds 256", "POST", path, json=body)
        assert error["type"] == "exceed_context_size_error" and error["code"] == "context_length_exceeded"
        assert error["n_prompt_tokens"] > 1000 and error["n_ctx"] == 256
    refused(client, 400, "the context holds 256", "POST", ANTHROPIC, json={"max_tokens": 5, "messages": long})


def test_a_body_that_is_too_large_is_not_read(client: Any) -> None:
    """Whether its length is told before or not."""
    big = b'{"prompt": "' + b"x" * (1 << 20) + b'"}'
    refused(client, 413, "larger than 1048576 bytes", "POST", TEXT, content=big)
    refused(client, 413, "larger than", "POST", TEXT, content=iter([big[:1000], big[1000:], b" " * 1000]))
    refused(client, 413, "larger than", "POST", ANTHROPIC, content=big)


def test_as_deep_as_is_allowed() -> None:
    deep = b"[" * (MAX_DEPTH - 1) + b"]" * (MAX_DEPTH - 1)
    assert parse(b'{"a": ' + deep + b"}")
    with pytest.raises(ApiError, match="within each other"):
        parse(b'{"a": [' + deep + b"]}")


def test_afterwards_it_answers_as_before(client: Any) -> None:
    """Runs last: nothing above has taken a place for good."""
    for _ in range(4):
        assert answer(client, CHAT, messages=HI, **GREEDY)["usage"]["completion_tokens"] == 12
    text = client.get("/metrics").text
    assert "mixkv_generations_running 0.0" in text and "mixkv_generations_waiting 0.0" in text
    assert 'status="500"' not in text
