"""What is no call stays content, and nothing that a model wrote vanishes."""

# ruff: noqa: RUF001

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reply_cases import CASES, J_PING, OBJECTS
from reply_tools import Case, format_named, joined, parse

NOT_CALLS = {
    "hermes": [
        "<tool_call>no JSON</tool_call>",
        "<tool_call></tool_call>",
        "<tool_call>",
        "<tool_call>\n{",
        '<tool_call>{"name": "pong", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "pin", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "pings", "arguments": {}}</tool_call>',
        '<tool_call>{"name": ["ping"], "arguments": {}}</tool_call>',
        '<tool_call>{"function": "ping", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "ping", "arguments": [1]}</tool_call>',
        '<tool_call>{"name": "ping", "arguments": "a.b"}</tool_call>',
        '<tool_call>{"name": "ping", "arguments": "{\\"host\\": "}</tool_call>',
        '<tool_call>{"arguments": {"host": "a.b"}}</tool_call>',
        '<tool_call>{"arguments": {"host": "a.b"}, "name": "pong"}</tool_call>',
        '<tool_call>{"name": "ping" "arguments": {}}</tool_call>',
        '<tool_call>{"name": "ping", "name": "ping"}</tool_call>',
        '<tool_call>{"name": "ping", "host": "a.b"}</tool_call>',
        "<tool_call>{'name': 'ping', 'arguments': {}}</tool_call>",
        "<tool_calls>[]</tool_calls>",
        f"So: {OBJECTS[1]}",
        f"So:\n```json\n{OBJECTS[1]}\n```",
    ],
    "qwen-coder": [
        "<tool_call><function=pong></function></tool_call>",
        "<tool_call>\n<function=ping>\nhost: a.b\n</function></tool_call>",
        "<tool_call>\n<function=ping>\n<parameter>a.b</parameter></function></tool_call>",
        "<function=",
        "<function=ping",
        f"<tool_call>{OBJECTS[1]}</tool_call>",
    ],
    "mistral": [
        "[TOOL_CALLS]",
        "[TOOL_CALLS]ping",
        '[TOOL_CALLS]ping{"host": "a.b"}',
        '[TOOL_CALLS]pong[ARGS]{"host": "a.b"}',
        "[TOOL_CALLS][]",
        "[TOOL_CALLS]ping[ARGS]a.b",
    ],
    "llama": [
        '{"name": "pong", "parameters": {}}',
        '{"name": "ping"}',
        '{"title": "A story", "name": "ping"}',
        'It is {"name": "ping", "parameters": {"host": "a.b"}}',
        '<|python_tag|>print("a.b")',
        '<|python_tag|>ping.run(host="a.b")',
        "{",
    ],
    "gemma": [
        "<|tool_call>ping{}<tool_call|>",
        "<|tool_call>call:pong{}<tool_call|>",
        "<|tool_call>call:ping(host)<tool_call|>",
    ],
    "lfm": [
        "<|tool_call_start|>[pong()]<|tool_call_end|>",
        "<|tool_call_start|>[ping('a.b')]<|tool_call_end|>",
        "<|tool_call_start|>ping(host='a.b')<|tool_call_end|>",
        "<|tool_call_start|>[]<|tool_call_end|>",
    ],
    "harmony": [
        "<|channel|>commentary to=functions.pong <|constrain|>json<|message|>{}",
        "<|channel|>commentary to=functions.ping",
        " to=functions.ping<|channel|>",
    ],
    "deepseek-r1": ["<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>ping\n```json\na.b\n```"],
    "kimi": ["<|tool_calls_section_begin|><|tool_call_begin|>functions.ping<|tool_call_argument_begin|>{}"],
    "glm": ["<tool_call>pong</tool_call>", "<tool_call>ping a.b</tool_call>", "<tool_call>ping<arg_key>host"],
    "dsml": ['<｜DSML｜tool_calls><｜DSML｜invoke name="ping"><｜DSML｜parameter name="host" string="maybe">a.b'],
    "functionary-v3.2": ["pong\n{}", "ping {}", ">>>pong\n{}", "ping\nno"],
    "cohere": ['<|START_ACTION|>[{"tool_name": "ping"}]<|END_ACTION|>', "<|START_ACTION|>[]<|END_ACTION|>"],
    "apertus": ['<|tools_prefix|>[{"pong": {}}]<|tools_suffix|>', '<|tools_prefix|>[{"ping": 3}]<|tools_suffix|>'],
}


@pytest.mark.parametrize(("format", "text"), [(name, text) for name, texts in NOT_CALLS.items() for text in texts])
def test_what_is_nearly_a_call_is_content(format: str, text: str) -> None:
    """A near miss that is an error ends a conversation; one that vanishes leaves an empty reply."""
    for before in ("", "So: "):
        for pieces in ([before + text], list(before + text)):
            message, deltas = parse(format_named(format), pieces)
            assert (message.content, message.tool_calls) == (before + text, ())
            assert joined(deltas) == message and deltas[-1].finish_reason == "stop"


DROPPED = ("muse",)
"""Formats whose tags hold words that say nothing more: the recipient, who is named again in the call."""
WORD = "XYZZY"


@given(st.sampled_from([case for case in CASES if case.format not in DROPPED]), st.data())
def test_nothing_that_a_model_wrote_vanishes(case: Case, data: st.DataObject) -> None:
    """A word that stands anywhere in a reply, also where it breaks a call or a tag, is in one of the fields."""
    at = data.draw(st.integers(0, len(case.text)), label="at")
    text = case.text[:at] + WORD + case.text[at:]
    message, deltas = parse(case.reply_format, [text], thinking_open=case.thinking_open)
    fields = [message.content or "", message.reasoning or "", *(c.arguments + c.id for c in message.tool_calls)]
    assert any(WORD in text for text in fields)
    assert joined(deltas) == message


@given(st.sampled_from(CASES), st.data())
def test_any_text_is_a_reply(case: Case, data: st.DataObject) -> None:
    """Tags in any order, half tags and anything between them: no error, and the same however it is cut."""
    pieces = st.one_of(
        st.sampled_from(
            ["<think>", "</think>", "{", "}", '"', "[", "]", ",", ":", "\n", " ", "ping", '"name"', J_PING]
        ),
        st.text(max_size=3),
        st.integers(0, len(case.text)).flatmap(
            lambda start: st.integers(1, 40).map(lambda n: case.text[start : start + n])
        ),
    )
    text = "".join(data.draw(st.lists(pieces, max_size=12), label="text"))
    open_ = data.draw(st.booleans(), label="thinking_open")
    whole, _ = parse(case.reply_format, [text], thinking_open=open_)
    message, deltas = parse(case.reply_format, list(text), thinking_open=open_)
    assert message == whole == joined(deltas)
    without, _ = parse(case.reply_format, [text], None, thinking_open=open_)
    assert without.tool_calls == ()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_without_tools_calls_are_content(case: Case) -> None:
    """A model that writes a call where none was offered would have it executed, or swallowed."""
    message, _ = parse(case.reply_format, [case.text], None, thinking_open=case.thinking_open)
    assert not message.tool_calls and message.reasoning == case.reasoning
    for name, _ in case.calls:
        assert name in (message.content or "")
