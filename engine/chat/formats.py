"""How a model writes a reply, found from its chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mixkv.engine.chat.patterns import Calls
from mixkv.engine.chat.table import TABLE, THINKING, Tags


@dataclass(frozen=True)
class ReplyFormat:
    """How a model writes a reply.

    name: of the format of calls, "plain" where the template shows none; thinking: what opens and closes thoughts, None
    where there are none; calls: the ways in which calls are written, what the template shows first; silent: tags that
    say nothing, around a text; leads: the same, where they are plain words that mean it at a reply's beginning alone;
    again: what a model writes between its thoughts and what follows them.
    """

    name: str = "plain"
    thinking: Tags | None = None
    calls: tuple[Calls, ...] = ()
    silent: tuple[str, ...] = ()
    leads: tuple[str, ...] = ()
    again: str = ""

    @classmethod
    def of_template(cls, source: str) -> ReplyFormat:
        """The format that a chat template shows, by the texts that it writes."""
        thinking = next((tags for tags in THINKING if tags[0] in source or tags[1] in source), None)
        for row in TABLE:
            if any(all(mark in source for mark in marks) for marks in row.marks):
                return cls(row.name, row.thinking or thinking, row.calls, row.silent, row.leads, row.again)
        return cls(thinking=thinking)

    def tool_grammar(
        self, tools: Sequence[dict[str, Any]], choice: str | dict[str, Any], specials: Mapping[str, int] | None = None
    ) -> str:
        """A Lark grammar of llguidance's that holds what follows a prompt, or the thoughts after it, to calls of tools.

        choice: "required" (one call or more), or {"type": "function", "function": {"name": ...}} (one call of it).
        specials: the tokenizer's special tokens; where a tag is one of them, the grammar asks for that token.
        Arguments follow the tool's schema; in formats where they are no JSON, its names, types, enums and what is
        required, not lengths or patterns of strings. ConfigError where the format has no calls, or the choice is none.
        """
        from mixkv.engine.chat.grammar import tool_grammar

        return tool_grammar(self, tools, choice, specials or {})
