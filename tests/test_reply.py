"""Replies taken apart: every format, whole, cut anywhere and cut short."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reply_cases import CASES
from reply_tools import Case, joined, parse

from mixkv.engine.chat.formats import ReplyFormat
from mixkv.engine.chat.table import TABLE


def cut(text: str, borders: list[int]) -> list[str]:
    return [text[a:b] for a, b in pairwise([0, *sorted(borders), len(text)])]


def test_every_format_has_a_case_and_is_found_by_its_own_marks() -> None:
    """A line of the table that no text stands for, or that another line shadows, would never be tried."""
    assert {case.format for case in CASES} == {row.name for row in TABLE}
    for row in TABLE:
        for marks in row.marks:
            assert ReplyFormat.of_template(" ".join(marks)).name == row.name


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_reply_of_each_format(case: Case) -> None:
    """Calls that a format's model writes would be shown as text, or with other arguments."""
    message, deltas = parse(case.reply_format, [case.text], thinking_open=case.thinking_open)
    assert tuple((call.name, json.loads(call.arguments)) for call in message.tool_calls) == case.calls
    assert (message.content, message.reasoning) == (case.content, case.reasoning)
    assert deltas[-1].finish_reason == ("tool_calls" if case.calls else "stop")
    ids = [call.id for call in message.tool_calls]
    assert len(set(ids)) == len(ids) and (tuple(ids) == case.ids if case.ids else all(len(id) == 9 for id in ids))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_reply_cut_anywhere_is_the_same(case: Case) -> None:
    """A tag that is cut by a token's border would be shown, a text between two pieces lost."""
    format, text = case.reply_format, case.text
    whole, _ = parse(format, [text], thinking_open=case.thinking_open)
    for pieces in (list(text), *(cut(text, [i]) for i in range(len(text) + 1))):
        message, deltas = parse(format, pieces, thinking_open=case.thinking_open)
        assert message == whole == joined(deltas)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_reply_may_end_anywhere(case: Case) -> None:
    """A reply that has no more tokens in the middle of a call: what came is told, the calls before it are whole."""
    for length in range(len(case.text)):
        message, deltas = parse(case.reply_format, [case.text[:length]], thinking_open=case.thinking_open)
        assert joined(deltas) == message
        whole = [(call.name, json.loads(call.arguments)) for call in message.tool_calls[:-1]]
        assert whole == list(case.calls[: len(whole)])


@given(st.sampled_from(CASES), st.data())
def test_a_reply_cut_short_anywhere_and_cut_up_is_the_same(case: Case, data: st.DataObject) -> None:
    """Where the reply ends early, too, the pieces' borders must not matter: what waited comes at the end."""
    text = case.text[: data.draw(st.integers(0, len(case.text)), label="length")]
    borders = data.draw(st.lists(st.integers(0, len(text)), max_size=6), label="borders")
    format = case.reply_format
    whole, _ = parse(format, [text], thinking_open=case.thinking_open, finish_reason="length")
    message, deltas = parse(format, cut(text, borders), thinking_open=case.thinking_open, finish_reason="length")
    assert message == whole == joined(deltas)
    assert deltas[-1].finish_reason == "length"
