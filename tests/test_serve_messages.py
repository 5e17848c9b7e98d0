"""Anthropic's form: requests become the same conversation, answers the same text, streams add up to both."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from chat_cases import CHATML, TAGS, chat_model

pytest.importorskip("starlette", reason="the server's packages are not installed")
pytest.importorskip("llguidance", reason="llguidance is not installed")

from serve_tools import HI, answer, events, serving

import mixkv
from mixkv.server.anthropic import chat_arguments
from mixkv.server.body import Fields

PATH = "/v1/messages"
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 12}
SCHEMA = {
    "type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}}, "required": ["n"],
    "additionalProperties": False, "x-guidance": {"whitespace_flexible": False},
}  # fmt: skip
TOOL = {"name": "get_n", "description": "d", "input_schema": SCHEMA}


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
    with (
        mixkv.load(chat_model(tmp_path_factory.mktemp("serve") / "chat.gguf", CHATML, TAGS), n_parallel=2) as loaded,
        serving(loaded) as served,
    ):
        yield served


def put_together(found: list[Any]) -> dict[str, Any]:
    """The message that a stream's events make, as Anthropic's clients do it."""
    assert [name for name, _ in found[:1]] == ["message_start"] and found[-1] == (
        "message_stop", {"type": "message_stop"},
    )  # fmt: skip
    message: dict[str, Any] = found[0][1]["message"]
    open_block, texts = None, ""
    for name, body in found[1:-1]:
        assert body["type"] == name
        if name == "content_block_start":
            assert open_block is None and body["index"] == len(message["content"])
            open_block, texts = body["index"], ""
            message["content"].append(body["content_block"])
        elif name == "content_block_delta":
            assert body["index"] == open_block
            block, delta = message["content"][-1], body["delta"]
            key = delta["type"].removesuffix("_delta")
            if key != "input_json":
                block[key] += delta[key]
            else:
                texts += delta["partial_json"]
        elif name == "content_block_stop":
            if message["content"][-1]["type"] == "tool_use":
                message["content"][-1]["input"] = json.loads(texts)
            assert body["index"] == open_block
            open_block = None
        else:
            assert name == "message_delta" and open_block is None
            message |= body["delta"]
            message["usage"] = body["usage"]
    return message


def test_an_answer_is_that_of_chat(client: Any, llm: mixkv.LLM) -> None:
    wanted = llm.chat([{"role": "system", "content": "Be brief."}, *HI], **GREEDY)
    body = answer(client, PATH, model="x", system="Be brief.", messages=HI, **GREEDY)
    assert body["content"] == [{"type": "text", "text": wanted.message.content}]
    assert (body["type"], body["role"], body["stop_reason"]) == ("message", "assistant", "max_tokens")
    usage = body["usage"]
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] == wanted.usage.prompt_tokens
    assert usage["output_tokens"] == 12 and usage["cache_read_input_tokens"] > 0


def test_a_stream_adds_up_to_the_whole(client: Any) -> None:
    whole = answer(client, PATH, messages=HI, seed=4, max_tokens=16)
    streamed = put_together(events(client, PATH, messages=HI, seed=4, max_tokens=16))
    assert (streamed["content"], streamed["stop_reason"]) == (whole["content"], whole["stop_reason"])
    assert streamed["usage"]["output_tokens"] == whole["usage"]["output_tokens"]


def test_a_stop_sequence_is_named(client: Any) -> None:
    body = answer(client, PATH, messages=HI, temperature=0, max_tokens=200, stop_sequences=["zzz", "e"])
    assert (body["stop_reason"], body["stop_sequence"]) == ("stop_sequence", "e")


def test_calls_are_blocks(caller: Any) -> None:
    asked: dict[str, Any] = {"messages": HI, "tools": [TOOL], "tool_choice": {"type": "tool", "name": "get_n"},
                             "thinking": {"type": "disabled"}, "max_tokens": 200, "seed": 3}  # fmt: skip
    whole = answer(caller, PATH, **asked)
    (call,) = whole["content"]
    assert (call["type"], call["name"], set(call["input"]), whole["stop_reason"]) == (
        "tool_use", "get_n", {"n"}, "tool_use",
    )  # fmt: skip
    assert put_together(events(caller, PATH, **asked))["content"] == whole["content"]
    result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call["id"], "content": "4"}]}
    turn = [*HI, {"role": "assistant", "content": whole["content"]}, result]
    assert answer(caller, PATH, messages=turn, tools=[TOOL], **GREEDY)["usage"]["output_tokens"] > 0


def test_thoughts_are_blocks(caller: Any) -> None:
    asked: dict[str, Any] = {"messages": HI, "thinking": {"type": "enabled", "budget_tokens": 1024}, "max_tokens": 8,
                             "seed": 3}  # fmt: skip
    whole = answer(caller, PATH, **asked)
    assert whole["content"][0]["type"] == "thinking" and whole["content"][0]["thinking"]
    assert put_together(events(caller, PATH, **asked))["content"] == whole["content"]


def test_tokens_are_counted_as_they_are_computed(client: Any) -> None:
    usage = answer(client, PATH, messages=HI, system="x", **GREEDY)["usage"]
    count = answer(client, f"{PATH}/count_tokens", model="x", messages=HI, system="x")["input_tokens"]
    assert count == usage["input_tokens"] + usage["cache_read_input_tokens"]


def test_a_conversation_keeps_all_its_parts() -> None:
    """Results before the text beside them, thoughts, calls; without the client's header that changes every time."""
    body = {
        "system": [{"type": "text", "text": "x-anthropic-billing-header: 1"}, {"type": "text", "text": "S"}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "hm", "signature": ""}, {"type": "redacted_thinking", "data": "x"},
                {"type": "text", "text": "I look."}, {"type": "tool_use", "id": "i1", "name": "f", "input": {"é": 1}},
            ]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "i1", "is_error": True,
                 "content": [{"type": "text", "text": "no"}]},
                {"type": "text", "text": "so?"},
            ]},
            {"role": "system", "content": "new rules"},
        ],
        "tool_choice": {"type": "any"}, "tools": [{"name": "f", "input_schema": {}}],
    }  # fmt: skip
    found = chat_arguments(Fields(body))
    call = {"id": "i1", "type": "function", "function": {"name": "f", "arguments": '{"é": 1}'}}
    assert found["messages"] == [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "a\nb"},
        {"role": "assistant", "content": "I look.", "reasoning_content": "hm", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "i1", "content": "Error: no"},
        {"role": "user", "content": "so?"},
        {"role": "system", "content": "new rules"},
    ]
    assert found["tool_choice"] == "required"
    assert found["tools"] == [{"type": "function", "function": {"name": "f", "parameters": {}}}]
