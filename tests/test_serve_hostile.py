"""Bad requests: each has its status and one line that says what is wrong, and the server goes on answering."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the server's packages are not installed")
pytest.importorskip("llguidance", reason="llguidance is not installed")

from serve_tools import GREEDY, HI, answer, serving

import mixkv
from mixkv.server.body import MAX_DEPTH, parse
from mixkv.server.errors import ApiError

CHAT, TEXT, ANTHROPIC = "/v1/chat/completions", "/v1/completions", "/v1/messages"
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with mixkv.load(n_ctx=256, n_parallel=2) as llm, serving(llm, max_body=1 << 20) as served:
        yield served


def refused(client: Any, status: int, says: str, method: str, path: str, **request: Any) -> dict[str, Any]:
    """The error of a request, checked: its status, one line of JSON, and that the server lives."""
    response = client.request(method, path, **request)
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body: dict[str, Any] = response.json()
    error: dict[str, Any] = body["error"]
    assert says in error["message"] and "\n" not in error["message"] and "Traceback" not in response.text, error
    if path.startswith(ANTHROPIC):
        assert body["type"] == "error" and set(error) >= {"type", "message"}
    else:
        assert set(error) >= {"message", "type", "param", "code"}
    assert client.get("/health").status_code == 200
    return error


BODIES: list[tuple[str, bytes, str]] = [
    ("nothing", b"", "no body"),
    ("blanks", b"  \n", "no body"),
    ("not JSON", b"{messages}", "not JSON"),
    ("cut off", b'{"messages": [', "not JSON"),
    ("two objects", b"{}{}", "not JSON"),
    ("a list", b"[]", "must be a JSON object, not an array"),
    ("a text", b'"hi"', "must be a JSON object, not a string"),
    ("null", b"null", "must be a JSON object, not null"),
    ("not UTF-8", b'{"messages": "\xff\xfe"}', "not UTF-8"),
    ("UTF-16", '{"messages": []}'.encode("utf-16"), "not UTF-8"),
    ("a BOM", b"\xef\xbb\xbf{}", "not JSON"),
    ("NaN", b'{"messages": [], "temperature": NaN}', "finite number"),
    ("infinity", b'{"messages": [], "temperature": -Infinity}', "finite number"),
    ("beyond a float", b'{"messages": [], "temperature": 1e999}', "finite number"),
    ("a number of many digits", b'{"seed": ' + b"9" * 5000 + b"}", "too large"),
    ("deep lists", b'{"messages": ' + b"[" * 150 + b"]" * 150 + b"}", "within each other"),
    ("very deep lists", b"[" * 200_000, "within each other"),
    ("deep objects", b'{"a":' * 150 + b"1" + b"}" * 150, "within each other"),
    ("a control character", b'{"messages": "\x00"}', "not JSON"),
]


@pytest.mark.parametrize("path", [CHAT, TEXT, ANTHROPIC, "/tokenize"])
@pytest.mark.parametrize(("raw", "says"), [case[1:] for case in BODIES], ids=[case[0] for case in BODIES])
def test_what_is_no_request(client: Any, path: str, raw: bytes, says: str) -> None:
    refused(client, 400, says, "POST", path, content=raw)


CHATS: list[tuple[dict[str, Any], str]] = [
    ({"messages": None}, "messages is missing"),
    ({"messages": "hi"}, "messages must be an array, not a string"),
    ({"messages": []}, "messages is empty"),
    ({"messages": ["hi"]}, "message 0 must be a dict"),
    ({"messages": [{}]}, "role None"),
    ({"messages": [{"role": "root", "content": "x"}]}, "role 'root'"),
    ({"messages": [{"role": "\ud800", "content": "x"}]}, "role"),
    ({"messages": [{"role": ["user"], "content": "x"}]}, "role"),
    ({"messages": [{"role": "user"}]}, "no content"),
    ({"messages": [{"role": "user", "content": 7}]}, "content must be text"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}]},
     "reads text alone"),
    ({"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]}, "not JSON"),
    ({"model": 5}, "model must be a string"),
    ({"stream": "yes"}, "stream must be a boolean"),
    ({"stream": True, "stream_options": []}, "stream_options must be an object"),
    ({"n": 0}, "n must be a whole number from 1"),
    ({"n": 10_000}, "n must be a whole number from 1"),
    ({"n": "2"}, "n must be a whole number"),
    ({"n": True}, "n must be a whole number"),
    ({"temperature": "hot"}, "temperature = 'hot'"),
    ({"temperature": -1}, "temperature must be between 0"),
    ({"temperature": 1e300}, "temperature must be between 0"),
    ({"top_p": 1.5}, "top_p = 1.5"),
    ({"top_k": 2.5}, "top_k = 2.5"),
    ({"min_p": []}, "min_p = []"),
    ({"seed": -7}, "seed = -7"),
    ({"seed": 2**70}, "seed = "),
    ({"seed": "one"}, "seed = 'one'"),
    ({"max_tokens": 0}, "max_tokens must be a whole number from 1"),
    ({"max_tokens": -5}, "max_tokens must be a whole number from 1"),
    ({"max_tokens": 1e30}, "max_tokens must be a whole number"),
    ({"max_completion_tokens": "all"}, "max_completion_tokens must be a whole number"),
    ({"stop": ""}, "stop = ''"),
    ({"stop": [1]}, "stop = [1]"),
    ({"stop": ["x"] * 100}, "stop has more than"),
    ({"logit_bias": 5}, "logit_bias must be an object"),
    ({"logit_bias": {"word": 1}}, "logit_bias has the key"),
    ({"logit_bias": {"5": "much"}}, "logit_bias of token 5"),
    ({"logit_bias": {"999999999": 1}}, "999999999"),
    ({"top_logprobs": 2}, "top_logprobs needs logprobs"),
    ({"logprobs": True, "top_logprobs": 1000}, "top_logprobs must be a whole number from 0"),
    ({"logprobs": 3}, "logprobs must be a boolean"),
    ({"response_format": "json"}, "response_format must be an object"),
    ({"response_format": {"type": "xml"}}, "response_format"),
    ({"response_format": {"type": "json_schema"}}, "json_schema"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "nothing"}}}}, "nothing"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"not": {}}}}}, "not"),
    ({"grammar": "root ::= ("}, "grammar"),
    ({"grammar": "root ::= [a]", "json_schema": {}}, "both say what the text may be"),
    ({"regex": "("}, "regex"),
    ({"tools": {}}, "tools must be an array"),
    ({"tools": [1]}, "tool 0 must be a dict"),
    ({"tools": [{"type": "web_search"}]}, "functions alone"),
    ({"tools": [TOOL], "tool_choice": "maybe"}, "tool_choice is 'maybe'"),
    ({"tools": [TOOL], "tool_choice": 5}, "tool_choice must be"),
    ({"tool_choice": "required"}, "there are no tools"),
    ({"chat_template_kwargs": "x"}, "chat_template_kwargs must be an object"),
    ({"chat_template_kwargs": {"enable_thinking": "no"}}, "enable_thinking must be a boolean"),
    ({"chat_template": "{{ messages }}"}, "chat_template is not supported"),
    ({"functions": [{}]}, "functions is not supported"),
    ({"modalities": ["audio"]}, "modalities"),
    ({"continue_final_message": True}, "assistant"),
    ({"mirostat": 3}, "mirostat = 3"),
    ({"samplers": ["magic"]}, "samplers"),
    ({"repeat_penalty": 0}, "repeat_penalty = 0"),
    ({"draft": "model"}, "draft = 'model'"),
]  # fmt: skip


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("fields", "says"), CHATS, ids=[str(case[0])[:60] for case in CHATS])
def test_chats_that_cannot_be(client: Any, fields: dict[str, Any], says: str, stream: bool) -> None:
    """Also of a stream: the error comes instead of its headers."""
    body = {"messages": HI, "max_tokens": 4, "stream": stream, **fields}
    error = refused(client, 400, says, "POST", CHAT, content=json.dumps(body))
    assert error["type"] == "invalid_request_error"


OTHERS: list[tuple[str, dict[str, Any], str]] = [
    (TEXT, {}, "prompt must be"),
    (TEXT, {"prompt": []}, "prompt must be"),
    (TEXT, {"prompt": 5}, "prompt must be"),
    (TEXT, {"prompt": ["a", 1]}, "prompt must be"),
    (TEXT, {"prompt": [[]]}, "prompt must be"),
    (TEXT, {"prompt": [[[1]]]}, "prompt must be"),
    (TEXT, {"prompt": ["a"] * 1000}, "prompt must be"),
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
