"""What holds a reply to a form: response_format and tool_choice, as settings of sampling."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mixkv.engine.chat.formats import ReplyFormat
from mixkv.engine.chat.messages import Json
from mixkv.engine.decode import Processor
from mixkv.kernels.errors import InputError
from mixkv.models.batch import F32

ToolChoice = str | Mapping[str, Any]


def checked_choice(choice: ToolChoice | None, tools: Sequence[Json] | None) -> str | Json:
    """What may be chosen: "auto", "none", "required", or {"type": "function", "function": {"name": ...}}, for which a
    tool's name is enough.

    InputError for anything else, and for calls that are asked for without tools, or of one that is not there.
    """
    if choice is None or choice == "auto" or choice == "none":
        return choice or "auto"
    names = [tool["function"]["name"] for tool in tools or ()]
    if choice == "required":
        if not names:
            raise InputError('tool_choice is "required", but there are no tools')
        return "required"
    name: object = choice
    if isinstance(choice, Mapping):
        function = choice.get("function", choice)
        name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str) or name not in names:
        known = f"the tools are {', '.join(names)}" if names else "there are no tools"
        raise InputError(f'tool_choice is {choice!r}: expected "auto", "none", "required" or a tool\'s name; {known}')
    return {"type": "function", "function": {"name": name}}


def constraint_options(
    format: ReplyFormat, tools: list[Json] | None, choice: str | Json, response_format: Mapping[str, Any] | None,
    controls: Mapping[str, int],
) -> dict[str, Any]:  # fmt: skip
    """The settings of SamplingParams that hold a reply to what was asked for; none where it is free. controls: the
    tokenizer's `control_tokens`."""
    schema = _schema(response_format)
    if choice == "required" or isinstance(choice, dict):
        if schema is not None:
            raise InputError("tool_choice asks for a call and response_format for JSON: give one of them")
        return {"grammar": format.tool_grammar(tools or [], choice, controls)}
    if schema is None:
        return {}
    if tools:
        raise InputError(
            'response_format leaves no room for calls of tools: leave tools out, or give tool_choice="none"'
        )
    return {"json_schema": schema}


def _schema(response_format: Mapping[str, Any] | None) -> Json | None:
    if response_format is None:
        return None
    kind = response_format.get("type") if isinstance(response_format, Mapping) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return dict(response_format.get("schema") or {"type": "object"})
    if kind == "json_schema":
        inner = response_format.get("json_schema", response_format)
        schema = inner.get("schema") if isinstance(inner, Mapping) else None
        if not isinstance(schema, Mapping):
            raise InputError('response_format: expected {"type": "json_schema", "json_schema": {"schema": {...}}}')
        return dict(schema)
    raise InputError(
        f'response_format is {str(response_format)[:80]!r}: its "type" must be "text", "json_object" or "json_schema"'
    )


class AfterThoughts(Processor):
    """A constraint for a model that may think first or not: it holds at once, but that thinking may be opened in its
    place, and then from where thinking has ended.

    opening: the tokens that open thinking. now, later: make the constraint that holds at once, and the one that waits
    for the end of thinking.
    """

    def __init__(self, opening: Sequence[int], now: Callable[[], Processor], later: Callable[[], Processor]) -> None:
        self.ended = False
        self._opening, self._later = list(opening), later
        self._inner, self._begun = now(), False

    def mask(self, logits: F32) -> F32:
        """See `Processor`."""
        if self._begun and not self._opening:
            return self._inner.mask(logits)
        masked = np.full_like(logits, -np.inf) if self._begun else self._inner.mask(logits).copy()
        masked[self._opening[0]] = logits[self._opening[0]]
        return masked

    def accept(self, token: int) -> None:
        """See `Processor`."""
        if not self._begun:
            if token == self._opening[0]:
                self._inner = self._later()
            else:
                self._opening = []
        self._begun, self._opening = True, self._opening[1:]
        self._inner.accept(token)
        self.ended = self._inner.ended

    def forced(self) -> Sequence[int]:
        """See `Processor`."""
        if self._begun:
            return self._opening or self._inner.forced()
        return ()
