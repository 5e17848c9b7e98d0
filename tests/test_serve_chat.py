"""POST /v1/chat/completions gives what LLM.chat gives, whole and in pieces, in the form that clients read."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chat_cases import CHATML, TAGS, chat_model

pytest.importorskip("starlette", reason="the server's packages are not installed")
pytest.importorskip("llguidance", reason="llguidance is not installed")

from serve_tools import GREEDY, HI, answer, events, parsed, serving

import mixkv

PATH = "/v1/chat/completions"
SCHEMA = {
    "type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}}, "required": ["n"],
    "additionalProperties": False, "x-guidance": {"whitespace_flexible": False},
}  # fmt: skip
TOOLS = [{"type": "function", "function": {"name": "get_n", "description": "d", "parameters": SCHEMA}}]
HOT: dict[str, Any] = {"temperature": 1.5, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "max_tokens": 200, "seed": 3}


@pytest.fixture(scope="module")
def llm() -> Iterator[mixkv.LLM]:
    with mixkv.load(n_ctx=512, n_parallel=2) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def client(llm: mixkv.LLM) -> Iterator[Any]:
    with serving(llm) as served:
        yield served


@pytest.fixture(scope="module")
def caller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Of a model whose template knows thinking and tools."""
    with (
        mixkv.load(chat_model(tmp_path_factory.mktemp("serve") / "chat.gguf", CHATML, TAGS), n_parallel=2) as loaded,
        serving(loaded) as served,
    ):
        yield served


@pytest.mark.parametrize("sampling", [GREEDY, {"seed": 11, "max_tokens": 20}, {"seed": 2, "stop": ["e"], "top_k": 0}])
def test_an_answer_is_that_of_chat(client: Any, llm: mixkv.LLM, sampling: dict[str, Any]) -> None:
    """A default of the server's own, a lost field or another prompt would change the text."""
    wanted = llm.chat(HI, **sampling)
    body = answer(client, PATH, messages=HI, **sampling)
    choice = body["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": wanted.message.content, "refusal": None}
    assert choice["finish_reason"] == wanted.finish_reason
    assert body["usage"]["prompt_tokens"] == wanted.usage.prompt_tokens
    assert body["usage"]["completion_tokens"] == wanted.usage.completion_tokens
    assert (body["object"], body["model"], choice["index"], choice["logprobs"]) == ("chat.completion", "demo", 0, None)


def test_a_stream_adds_up_to_the_whole(client: Any) -> None:
    """The role comes first, the reason last, then the usage without choices, then [DONE]."""
    whole = answer(client, PATH, messages=HI, seed=5, max_tokens=20)
    *chunks, usage, done = events(
        client, PATH, messages=HI, seed=5, max_tokens=20, stream_options={"include_usage": True}
    )
    assert done == "[DONE]" and usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    assert all(chunk["usage"] is None and chunk["object"] == "chat.completion.chunk" for chunk in chunks)
    assert len({chunk["id"] for chunk in chunks}) == 1
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""} and deltas[-1] == {}
    assert "".join(delta.get("content", "") for delta in deltas) == whole["choices"][0]["message"]["content"]
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + [whole["choices"][0]["finish_reason"]]
    *chunks, done = events(client, PATH, messages=HI, **GREEDY)
    assert done == "[DONE]" and all(chunk["choices"] and "usage" not in chunk for chunk in chunks)


def test_choices_have_seeds_one_after_the_other(client: Any) -> None:
    """Else n answers are one answer n times; the prompt is counted once."""
    alone = [answer(client, PATH, messages=HI, seed=seed, max_tokens=12) for seed in (7, 8, 9)]
    body = answer(client, PATH, messages=HI, seed=7, max_tokens=12, n=3)
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    texts = [choice["message"]["content"] for choice in body["choices"]]
    assert texts == [one["choices"][0]["message"]["content"] for one in alone] and len(set(texts)) > 1
    assert body["usage"]["prompt_tokens"] == alone[0]["usage"]["prompt_tokens"]
    assert body["usage"]["completion_tokens"] == sum(one["usage"]["completion_tokens"] for one in alone)
    pieces = ["", "", ""]
    for chunk in events(client, PATH, messages=HI, seed=7, max_tokens=12, n=3)[:-1]:
        pieces[chunk["choices"][0]["index"]] += chunk["choices"][0]["delta"].get("content", "")
    assert pieces == texts


def test_log_probabilities_are_those_of_the_tokens(client: Any, llm: mixkv.LLM) -> None:
    """One for each token, streamed or not, and none lost where a token has no text yet."""
    stream = llm.chat_stream(HI, **GREEDY, logprobs=2)
    assert list(stream)
    whole = answer(client, PATH, messages=HI, **GREEDY, logprobs=True, top_logprobs=2)
    content = whole["choices"][0]["logprobs"]["content"]
    assert [entry["logprob"] for entry in content] == [entry.logprob for entry in stream.logprobs]
    assert [bytes(entry["bytes"]) for entry in content] == [llm.tokenizer.piece(e.token) for e in stream.logprobs]
    assert all(len(entry["top_logprobs"]) == 2 and entry["top_logprobs"][0] in [
        {key: entry[key] for key in ("token", "logprob", "bytes")}] for entry in content)  # fmt: skip
    stop = "".join(entry["token"] for entry in content[4:8])  # tokens that have no text that is shown
    for more in ({}, {"stop": stop}):
        asked = {"messages": HI, **GREEDY, "logprobs": True, "top_logprobs": 2, **more}
        content = answer(client, PATH, **asked)["choices"][0]["logprobs"]["content"]
        parts = [chunk["choices"][0]["logprobs"] for chunk in events(client, PATH, **asked)[:-1]]
        assert [entry for part in parts if part for entry in part["content"]] == content


def test_the_next_turn_takes_the_last_one_from_the_cache(client: Any) -> None:
    first = answer(client, PATH, messages=HI, **GREEDY)
    turn = [*HI, first["choices"][0]["message"], {"role": "user", "content": "And then?"}]
    second = answer(client, PATH, messages=turn, **GREEDY)
    cached = second["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert cached >= first["usage"]["total_tokens"] - 2 and second["timings"]["cache_n"] == cached


def test_tokens_can_be_banned(client: Any, llm: mixkv.LLM) -> None:
    """OpenAI's object with ids as text, and llama-server's pairs."""
    text = answer(client, PATH, messages=HI, **GREEDY)["choices"][0]["message"]["content"]
    token = llm.chat_stream(HI, **GREEDY)
    list(token)
    first = str(token._generation.tokens[0])
    for bias in ({first: -100}, [[int(first), False]]):
        other = answer(client, PATH, messages=HI, **GREEDY, logit_bias=bias)["choices"][0]["message"]["content"]
        assert other != text


@pytest.mark.parametrize("form", [
    {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}},
    {"response_format": {"type": "json_object", "schema": SCHEMA}}, {"json_schema": SCHEMA},
])  # fmt: skip
def test_a_format_is_kept(client: Any, form: dict[str, Any]) -> None:
    body = answer(client, PATH, messages=HI, **form, **HOT)
    assert set(json.loads(body["choices"][0]["message"]["content"])) == {"n"}
    assert body["choices"][0]["finish_reason"] == "stop"


def test_calls_come_as_clients_read_them(caller: Any) -> None:
    """arguments as text, ids, the reason in the plural; in a stream the name stands once, with its index."""
    asked = {"messages": HI, "tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False, **HOT}
    asked["chat_template_kwargs"] = {"enable_thinking": False}
    asked["tool_choice"] = {"type": "function", "function": {"name": "get_n"}}
    choice = answer(caller, PATH, **asked)["choices"][0]
    (call,) = choice["message"]["tool_calls"]
    assert (choice["finish_reason"], call["type"], call["function"]["name"]) == ("tool_calls", "function", "get_n")
    assert set(json.loads(call["function"]["arguments"])) == {"n"} and choice["message"]["content"] is None
    chunks = events(caller, PATH, **asked)[:-1]
    parts = [p for chunk in chunks for p in chunk["choices"][0]["delta"].get("tool_calls", [])]
    assert all(part["index"] == 0 for part in parts)
    assert [part["function"]["name"] for part in parts if "name" in part["function"]] == ["get_n"]
    assert [part["id"] for part in parts if "id" in part] == [call["id"]]
    assert "".join(part["function"]["arguments"] for part in parts) == call["function"]["arguments"]
    turn = [*HI, choice["message"], {"role": "tool", "tool_call_id": call["id"], "content": "4"}]
    assert answer(caller, PATH, messages=turn, tools=TOOLS, **GREEDY)["usage"]["prompt_tokens"] > 0


def test_thoughts_stand_beside_the_content(caller: Any) -> None:
    """In `reasoning_content`, as DeepSeek's API began it, whole and in pieces."""
    asked = {"messages": HI, "chat_template_kwargs": {"enable_thinking": True}, **HOT, "max_tokens": 8}
    message = answer(caller, PATH, **asked)["choices"][0]["message"]
    assert message["reasoning_content"]
    deltas = [chunk["choices"][0]["delta"] for chunk in events(caller, PATH, **asked)[:-1]]
    assert "".join(d.get("reasoning_content", "") for d in deltas) == message["reasoning_content"]


def test_a_sampling_of_the_servers_holds_where_a_request_says_nothing(llm: mixkv.LLM) -> None:
    params = mixkv.SamplingParams(temperature=0.0, max_tokens=5)
    with serving(llm, sampling=params) as client:
        body = answer(client, PATH, messages=HI)
        assert body["choices"][0]["message"]["content"] == llm.chat(HI, params=params).message.content
        assert answer(client, PATH, messages=HI, max_completion_tokens=2)["usage"]["completion_tokens"] == 2


def test_fields_of_other_programs_and_nulls_do_no_harm(client: Any) -> None:
    """Clients send what they know of other servers, and null for what they leave out."""
    plain = answer(client, PATH, messages=HI, **GREEDY)["choices"]
    more = {"user": "me", "store": False, "metadata": {}, "model": "gpt-4o", "seed": None, "stop": None, "tools": None,
            "n": None, "whatever": [1], "tool_choice": "auto", "response_format": {"type": "text"}}  # fmt: skip
    assert answer(client, PATH, messages=HI, **GREEDY, **more)["choices"] == plain


def test_a_template_of_the_servers_own(llm: mixkv.LLM, tmp_path: Path) -> None:
    from starlette.testclient import TestClient

    from mixkv.server.app import make_app
    from mixkv.server.settings import ServerSettings

    with TestClient(make_app(llm, ServerSettings("a"), chat_template="chatml"), base_url="http://localhost") as client:
        prompt = client.post("/apply-template", json={"messages": HI}).json()["prompt"]
        assert "<|im_start|>user" in prompt
        body = client.post(PATH, json={"messages": HI, **GREEDY}).json()
        assert body["choices"][0]["message"]["content"] == llm.chat(
            HI, chat_template="chatml", **GREEDY
        ).message.content  # fmt: skip


def test_silence_has_pings(llm: mixkv.LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients give up on a stream that is silent while a long prompt is read."""
    wanted, at_once = llm.chat(HI, **GREEDY).message.content, llm.chat_stream

    def slow(*given: Any, **options: Any) -> mixkv.ChatStream:
        time.sleep(0.2)
        return at_once(*given, **options)

    monkeypatch.setattr(llm, "chat_stream", slow)
    with serving(llm, ping_seconds=0.01) as client:
        text = client.post(PATH, json={"messages": HI, **GREEDY, "stream": True}).text
        assert text.startswith(": ping\n\n")
        pieces = [event["choices"][0]["delta"].get("content", "") for event in parsed(text)[:-1]]
        assert "".join(pieces) == wanted
        named = client.post("/v1/messages", json={"messages": HI, "max_tokens": 3, "stream": True}).text
        assert parsed(named)[0] == ("ping", {"type": "ping"})


@pytest.mark.parametrize(("path", "end"), [(PATH, "data: [DONE]"), ("/v1/messages", "}}")])
def test_what_fails_behind_the_headers_is_an_event(
    llm: mixkv.LLM, monkeypatch: pytest.MonkeyPatch, path: str, end: str
) -> None:
    """The status is sent by then: a stream that merely ends would look like a short answer."""

    def late(*_: object, **__: object) -> None:
        time.sleep(0.1)
        raise mixkv.InputError("nothing comes of this")

    monkeypatch.setattr(llm, "chat_stream", late)
    with serving(llm, ping_seconds=0.001) as client:
        response = client.post(path, json={"messages": HI, "max_tokens": 3, "stream": True})
        assert response.status_code == 200 and '"message":"nothing comes of this"' in response.text
        assert response.text.rstrip().endswith(end)
