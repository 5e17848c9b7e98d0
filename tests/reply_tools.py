"""Tools that replies call, and what the tests of replies have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mixkv.engine.chat.formats import ReplyFormat
from mixkv.engine.chat.parser import ReplyParser
from mixkv.engine.chat.reply import ChatDelta, ChatMessage, ToolCall
from mixkv.engine.chat.table import TABLE

TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather of a place",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "Where"},
                    "days": {"type": "integer", "description": "How many"},
                    "exact": {"type": "boolean", "description": "Whether"},
                    "more": {
                        "type": "object",
                        "description": "What else",
                        "properties": {"a": {"type": "array", "items": {"type": "integer"}}, "b": {"type": "string"}},
                    },
                },
                "required": ["city"],
            },
        },
    },
    {
        "type": "function",
        "function": {
            "name": "ping",
            "description": "Whether a host answers",
            "parameters": {
                "type": "object",
                "properties": {"host": {"type": "string", "description": "Which"}},
                "required": ["host"],
            },
        },
    },
]
CITY = 'Zürich "☂"\n</a> \\ </tool_calls>'
"""A value with all that could be taken for something else."""
WEATHER = {"city": CITY, "days": 3, "exact": True, "more": {"a": [1, 2], "b": "it's 3"}}
PING = {"host": "a.b"}
BOTH = (("get_weather", WEATHER), ("ping", PING))


@dataclass(frozen=True)
class Case:
    """A reply in a format. calls: names and arguments; ids: those that the format carries."""

    format: str
    text: str
    content: str | None = None
    reasoning: str | None = None
    calls: tuple[tuple[str, dict[str, Any]], ...] = BOTH
    ids: tuple[str, ...] = ()
    thinking_open: bool = False
    tag: str = "<think>"
    name: str = ""

    @property
    def reply_format(self) -> ReplyFormat:
        """The format, with the thoughts whose tag the template shows."""
        return format_named(self.format, self.tag)

    def __str__(self) -> str:
        return self.name or self.format


def format_named(name: str, tag: str = "<think>") -> ReplyFormat:
    """A line of the table, with the thoughts that the tag begins where it has none of its own."""
    row = next(row for row in TABLE if row.name == name)
    return ReplyFormat.of_template(" ".join(row.marks[0]) + tag)


def parse(
    format: ReplyFormat,
    pieces: list[str],
    tools: list[dict[str, Any]] | None = TOOLS,
    *,
    thinking_open: bool = False,
    finish_reason: str = "stop",
) -> tuple[ChatMessage, list[ChatDelta]]:
    """The message and the deltas of a reply that comes in pieces."""
    parser = ReplyParser(format, tools=tools, thinking_open=thinking_open)
    deltas = [parser.feed(piece) for piece in pieces]
    deltas.append(parser.finish(finish_reason))
    return parser.message(), deltas


def joined(deltas: list[ChatDelta]) -> ChatMessage:
    """What a client puts together from the deltas."""
    calls: dict[int, list[str]] = {}
    for delta in deltas:
        for piece in delta.tool_calls:
            assert (piece.index not in calls) == (piece.id is not None) == (piece.name is not None)
            calls.setdefault(piece.index, [piece.id or "", piece.name or "", ""])[2] += piece.arguments
    assert list(calls) == list(range(len(calls)))
    content = "".join(delta.content for delta in deltas)
    return ChatMessage(
        content or (None if calls else ""),
        "".join(delta.reasoning for delta in deltas) or None,
        tuple(ToolCall(*call) for call in calls.values()),
    )
