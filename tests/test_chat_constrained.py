"""response_format and tool_choice hold a reply to a form, from where thinking has ended."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from chat_cases import CHATML, HELLO, TAGS, Begin, Script, chat_model

import mixkv
from mixkv.engine.chat.constrain import AfterThoughts
from mixkv.engine.decode import Processor
from mixkv.models.batch import F32

pytest.importorskip("llguidance", reason="llguidance is not installed")

HOT: dict[str, Any] = {"temperature": 1.5, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "max_tokens": 300}
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}, "n": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["city", "n"], "additionalProperties": False, "x-guidance": {"whitespace_flexible": False},
}  # fmt: skip
WANTED = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA}}
TOOLS = [
    {"type": "function", "function": {"name": name, "description": "d", "parameters": SCHEMA}}
    for name in ("get_weather", "get_time")
]


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[mixkv.LLM]:
    with mixkv.load(chat_model(tmp_path_factory.mktemp("held") / "chat.gguf", CHATML, TAGS)) as loaded:
        yield loaded


def fits(text: str | None) -> bool:
    value = json.loads(text or "")
    return set(value) == {"city", "n"} and value["city"] in ("Paris", "Rome") and value["n"] in range(10)


@pytest.mark.parametrize("seed", range(4))
def test_a_response_format_holds_the_content(llm: mixkv.LLM, seed: int) -> None:
    """A random model at a high temperature: whatever it would have written, this is JSON of the schema."""
    reply = llm.chat(HELLO, response_format=WANTED, enable_thinking=False, seed=seed, **HOT)
    assert fits(reply.message.content) and reply.finish_reason == "stop" and reply.message.reasoning is None


@pytest.mark.parametrize("seed", range(4))
def test_it_begins_where_thinking_ends(llm: mixkv.LLM, seed: int) -> None:
    """A grammar that holds the thoughts too makes a model that thinks write them as JSON, or never begin."""
    begin = Begin(llm.tokenizer, "hm {not json</think>")
    opened = llm.chat(HELLO, response_format=WANTED, enable_thinking=True, processors=[begin], seed=seed, **HOT)
    assert opened.message.reasoning == "hm {not json" and fits(opened.message.content)
    begin = Begin(llm.tokenizer, "<think>hm {not json</think>")
    by_itself = llm.chat(HELLO, response_format=WANTED, processors=[begin], seed=seed, **HOT)
    assert by_itself.message.reasoning == "hm {not json" and fits(by_itself.message.content)


def test_a_model_that_does_not_think_is_held_at_once(llm: mixkv.LLM) -> None:
    """To wait for the end of thoughts that never begin is to hold nothing."""
    think = llm.tokenizer.token_to_id("<think>")
    assert think is not None
    reply = llm.chat(HELLO, response_format=WANTED, logit_bias={think: -100.0}, seed=1, **HOT)
    assert fits(reply.message.content) and reply.message.reasoning is None


@pytest.mark.parametrize("choice", ["required", "get_time", {"type": "function", "function": {"name": "get_time"}}])
@pytest.mark.parametrize("thinking", [True, False])
def test_calls_that_are_asked_for_are_made(llm: mixkv.LLM, choice: Any, thinking: bool) -> None:
    """The model has never seen a call: required and named ones come all the same, in the template's format."""
    begin = [Begin(llm.tokenizer, "hm</think>")] if thinking else []
    reply = llm.chat(HELLO, tools=TOOLS, tool_choice=choice, enable_thinking=thinking, processors=begin, seed=2, **HOT)
    assert reply.message.content is None and reply.message.reasoning == ("hm" if thinking else None)
    calls = reply.message.tool_calls
    assert calls and all(fits(call.arguments) for call in calls[:-1]) and calls[0].name in ("get_weather", "get_time")
    if choice != "required":
        assert [call.name for call in calls] == ["get_time"] and reply.finish_reason == "tool_calls"
        assert fits(calls[0].arguments)


def test_a_template_without_calls_cannot_be_held_to_them(llm: mixkv.LLM) -> None:
    """One line, not a grammar of nothing."""
    with pytest.raises(mixkv.ConfigError, match="shows no way to call tools"), pytest.warns(mixkv.MixkvWarning):
        llm.chat(HELLO, tools=TOOLS, tool_choice="required", chat_template="chatml")


def test_one_thing_is_asked_for_at_a_time(llm: mixkv.LLM) -> None:
    """A json_schema beside a response_format, of which one would win unseen."""
    with pytest.raises(mixkv.ConfigError, match="both say what the text may be"):
        llm.chat(HELLO, response_format=WANTED, regex="a+")


class Only(Processor):
    """Allows one token, and notes what it is told."""

    def __init__(self, token: int) -> None:
        self.token, self.told = token, list[int]()

    def mask(self, logits: F32) -> F32:
        return Script.mask(self, logits)  # type: ignore[arg-type]

    @property
    def _ids(self) -> list[int]:
        return [self.token]

    def accept(self, token: int) -> None:
        self.told.append(token)


def allowed(processor: Processor) -> list[int]:
    return np.flatnonzero(np.isfinite(processor.mask(np.zeros(9, np.float32)))).tolist()


def test_a_tag_of_several_tokens_is_written_to_its_end() -> None:
    """`<|channel>thought`: a model that began it and went on otherwise would neither think nor be held."""
    now, later = Only(3), Only(4)
    thinks = AfterThoughts([7, 8], lambda: now, lambda: later)
    assert allowed(thinks) == [3, 7] and thinks.forced() == ()
    thinks.accept(7)
    assert allowed(thinks) == [8] and list(thinks.forced()) == [8]
    thinks.accept(8)
    assert allowed(thinks) == [4] and later.told == [7, 8] and now.told == []
    held = AfterThoughts([7, 8], lambda: now, lambda: later)
    held.accept(3)
    assert allowed(held) == [3] and now.told == [3]
