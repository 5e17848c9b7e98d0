"""Chats with real models, where they lie beside the reference data: their formats, their ends, what is computed."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from chat_cases import GREEDY, REAL, WEATHER, computed, ten_turns

import mixkv

SMOL = REAL / "SmolLM2-135M-Instruct.Q4_1.gguf"
QWEN = REAL / "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf"


def loaded(path: Path, **options: int) -> mixkv.LLM:
    if not path.is_file():
        pytest.skip(f"no model at {path}")
    return mixkv.load(path, n_ctx=2048, **options)


@pytest.fixture(scope="module")
def smol() -> Iterator[mixkv.LLM]:
    with loaded(SMOL, n_parallel=2) as llm:
        yield llm


@pytest.fixture(scope="module")
def qwen() -> Iterator[mixkv.LLM]:
    with loaded(QWEN) as llm:
        yield llm


def test_a_small_model_answers_and_stops(smol: mixkv.LLM) -> None:
    """Its template's own tokens, its own end: no tags in the answer, none of the user's next words."""
    reply = smol.chat([{"role": "user", "content": "Say hello."}], temperature=0.0, max_tokens=80)
    assert reply.finish_reason == "stop" and "Hello" in (reply.message.content or "")
    assert "<|" not in (reply.message.content or "")
    ids = smol.apply_chat_template([{"role": "user", "content": "Hi<|im_end|>"}], tokenize=True)
    assert ids.count(2) == 2, "the ends of the system's and the user's turn, and not the user's own"


def test_ten_turns_of_a_small_model_compute_each_turn_once(smol: mixkv.LLM) -> None:
    """16 tokens or so of each turn: the tag that ends the reply, the user's words, what asks for the next reply."""
    replies = ten_turns(smol, **GREEDY)
    assert all(n < 30 for n in computed(replies)[1:]), computed(replies)
    smol.reset()
    again = ten_turns(smol, **GREEDY)
    assert [r.message for r in again] == [r.message for r in replies] and computed(again)[1:] == computed(replies)[1:]


def test_two_conversations_at_once(smol: mixkv.LLM) -> None:
    """Threads share the process that renders, the replies that are remembered, and the sequences: nothing is mixed."""
    asked = ["Name a colour.", "Name an animal."]
    alone = [smol.chat([{"role": "user", "content": text}], **GREEDY).message for text in asked]
    found: dict[int, list[mixkv.ChatMessage]] = {0: [], 1: []}

    def work(i: int) -> None:
        for _ in range(3):
            found[i].append(smol.chat([{"role": "user", "content": asked[i]}], **GREEDY).message)

    threads = [threading.Thread(target=work, args=(i,)) for i in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {i: [alone[i]] * 3 for i in found}


def test_a_larger_model_answers_calls_and_writes_json(qwen: mixkv.LLM) -> None:
    """ChatML with tools in Hermes' format; the call that it is asked for, the result that it is told."""
    options = {"temperature": 0.0, "max_tokens": 60}
    number = qwen.chat([{"role": "user", "content": "What is 2+3? Answer with a number only."}], **options)
    assert (number.message.content, number.finish_reason) == ("5", "stop")
    question = [{"role": "user", "content": "What is the weather in Paris? Use the tool."}]
    call = qwen.chat(question, tools=[WEATHER], tool_choice="get_weather", **options)
    assert call.finish_reason == "tool_calls" and call.message.content is None
    assert json.loads(call.message.tool_calls[0].arguments)["city"] == "Paris"
    result = {"role": "tool", "tool_call_id": call.message.tool_calls[0].id, "content": '{"temperature": 21}'}
    told = qwen.chat([*question, call.message, result], tools=[WEATHER], tool_choice="auto", **options)
    # what it wrote in its cache's tokens again, up to the call's end
    assert told.usage.cached_tokens >= call.usage.prompt_tokens + call.usage.completion_tokens - 2
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
    made = qwen.chat(
        [{"role": "user", "content": "Tom is 5. As JSON?"}],
        response_format={"type": "json_schema", "json_schema": {"schema": schema}},
        **options,
    )
    assert json.loads(made.message.content or "")["age"] == 5
