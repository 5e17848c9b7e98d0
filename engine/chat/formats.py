"""How models write replies: one table, and which line of it a chat template asks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mixkv.engine.chat.patterns import (
    GEMMA, NAME, SPACES, WORD, Arguments, CallObject, Calls, Identity, Keywords, Maybe, Parameters,
)  # fmt: skip

Tags = tuple[str, str]


@dataclass(frozen=True)
class ReplyFormat:
    """How a model writes a reply. name: of the tools' format, "plain" where there is none; thinking: what opens and
    closes thoughts; calls: the ways in which calls are written; silent: tags that belong to the text and say nothing."""

    name: str = "plain"
    thinking: Tags | None = None
    calls: tuple[Calls, ...] = ()
    silent: tuple[str, ...] = ()

    @classmethod
    def of_template(cls, source: str) -> ReplyFormat:
        """The format that a chat template shows."""
        for row in TABLE:
            if any(all(mark in source for mark in marks) for marks in row.marks):
                return cls(row.name, row.thinking or _thinking(source), row.calls, row.silent)
        return cls(thinking=_thinking(source))

    def tool_grammar(self, tools: list[dict[str, Any]], choice: str | dict[str, Any]) -> str:
        """A Lark grammar of llguidance's that holds a reply to calls of the tools. choice: "required", or
        {"type": "function", "function": {"name": ...}}."""
        from mixkv.engine.chat.grammar import tool_grammar

        return tool_grammar(self, tools, choice)


@dataclass(frozen=True)
class Row:
    """A line of the table. marks: texts of which one set stands in the templates; thinking, silent: where the format
    brings them along."""

    name: str
    marks: tuple[tuple[str, ...], ...]
    calls: tuple[Calls, ...]
    thinking: Tags | None = None
    silent: tuple[str, ...] = ()


THINKING: tuple[Tags, ...] = (
    ("[THINK]", "[/THINK]"),
    ("<|channel>thought", "<channel|>"),
    ("<seed:think>", "</seed:think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]"),
    ("<mm:think>", "</mm:think>"),
    ("<think:opensource>", "</think:opensource>"),
    ("<think>", "</think>"),
)


def _thinking(source: str) -> Tags | None:
    return next((tags for tags in THINKING if tags[0] in source or tags[1] in source), None)


def _invoke(prefix: str = "", *, typed: str | None = None) -> tuple[str | Any, ...]:
    """`<invoke name="f"> <parameter name="a">1</parameter> ... </invoke>`."""
    a, b = f"<{prefix}", f"</{prefix}"
    parameters = Parameters(f'{a}parameter name="', ('">',), (f"{b}parameter>",), f"{b}invoke>", typed)
    return (f'{a}invoke name="', NAME, '">', parameters)


FUNCTION = ("<function=", NAME, ">", Parameters("<parameter=", (">",), ("</parameter>",), "</function>", trimmed=True))


def _list(begin: str, end: str, form: CallObject = CallObject()) -> Calls:  # noqa: B008
    return Calls((begin, SPACES, "["), (SPACES, form), (SPACES, "]", SPACES, end), (SPACES, ","))


TABLE: tuple[Row, ...] = (
    Row("hermes", (("<tool_call>",),), (Calls(("<tool_call>",), (SPACES, CallObject()), (SPACES, "</tool_call>")),)),
)
