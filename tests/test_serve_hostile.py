"""Bad requests: each has its status and one line that says what is wrong, and the server goes on answering."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the server's packages are not installed")
pytest.importorskip("llguidance", reason="llguidance is not installed")

from serve_tools import GREEDY, HI, answer, refused, serving

import mixkv

CHAT, TEXT, ANTHROPIC = "/v1/chat/completions", "/v1/completions", "/v1/messages"
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with mixkv.load(n_ctx=256, n_parallel=2) as llm, serving(llm, max_body=1 << 20) as served:
        yield served


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
    ({"logit_bias": {"word": 1}}, "logit_bias has the key 'word'"),
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


def test_afterwards_it_answers_as_before(client: Any) -> None:
    """Runs last: nothing above has taken a place for good."""
    for _ in range(4):
        assert answer(client, CHAT, messages=HI, **GREEDY)["usage"]["completion_tokens"] == 12
    text = client.get("/metrics").text
    assert "mixkv_generations_running 0.0" in text and "mixkv_generations_waiting 0.0" in text
    assert 'status="500"' not in text
