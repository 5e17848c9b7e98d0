"""ChatTemplate: from messages to a prompt. What a template wants of its input is found out by trying."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from mixkv.engine.chat.encode import control_ids, encode_rendered
from mixkv.engine.chat.formats import ReplyFormat
from mixkv.engine.chat.marks import Rendered, choose_mark, rendered_with_marks
from mixkv.engine.chat.messages import Json, Message, Wants, checked_messages, checked_tools, shaped
from mixkv.engine.chat.sandbox import RENDERER, TOO_SLOW, Outcome
from mixkv.engine.chat.worker import SECONDS
from mixkv.engine.tokenizer.base import Tokenizer
from mixkv.kernels.errors import InputError, TemplateError

_OWN = ("messages", "tools", "add_generation_prompt", "bos_token", "eos_token", "raise_exception", "strftime_now")
_PROBE = "probe-text"
_PROBE_CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "probe_name", "arguments": {}}}
_PROBE_TOOL = {
    "type": "function",
    "function": {
        "name": "probe_name",
        "description": "A probe.",
        "parameters": {"type": "object", "properties": {"probe_key": {"type": "string", "description": "A key."}}},
    },
}


@dataclass(frozen=True)
class Prompt:
    """What a conversation became. ids: the prompt. opening: the text behind the conversation, which asks for a reply;
    for a message that is continued, what stands of it already."""

    rendered: Rendered
    ids: list[int]
    opening: str

    def is_open(self, thinking: tuple[str, str] | None) -> bool:
        """Whether it has opened thinking, with the first of these tags, and not closed it with the second."""
        return thinking is not None and self.opening.rfind(thinking[0]) > self.opening.rfind(thinking[1])


class ChatTemplate:
    """A template and the vocabulary that it is for. name: what messages call it. stop: texts that end a reply, for a
    template without control tokens. now: the time that it is told, seconds since 1970; None: the clock's."""

    def __init__(
        self, source: str, tokenizer: Tokenizer, *, name: str = "template", stop: tuple[str, ...] = (),
        now: float | None = None,
    ) -> None:  # fmt: skip
        self.source, self.name, self.stop, self.now = source, name, stop, now
        self._tokenizer = tokenizer
        self._budget = threading.local()  # .left: seconds of computing that the prompt being made may still take
        self._fixed = {
            "bos_token": _text_of(tokenizer, tokenizer.bos_id),
            "eos_token": _text_of(tokenizer, tokenizer.eos_id),
        }

    @cached_property
    def reply_format(self) -> ReplyFormat:
        """How the model writes its replies."""
        return ReplyFormat.of_template(self.source)

    @cached_property
    def knows_tools(self) -> bool:
        """Whether it does anything with tools."""
        return re.search(r"\btools\b", self.source) is not None

    def render(
        self, messages: Sequence[Message], *, tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True, continue_final_message: bool = False, enable_thinking: bool | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> Rendered:  # fmt: skip
        """The conversation as text.

        add_generation_prompt: end with what asks for a reply. continue_final_message: end within the last message,
        which is to go on. enable_thinking: None leaves it to the template. variables: whatever else it may ask for.

        InputError for wrong messages, TemplateError for a template that fails, takes too much or refuses them.
        """
        self._budget.left = SECONDS
        return self._any(messages, tools, add_generation_prompt, continue_final_message, enable_thinking, variables)

    def _any(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None, add_generation_prompt: bool,
        continue_final_message: bool, enable_thinking: bool | None, variables: Mapping[str, Any] | None,
    ) -> Rendered:  # fmt: skip
        variables = self._checked(variables)
        if continue_final_message:
            return self._continued(messages, tools, enable_thinking, variables)
        return self._render(checked_messages(messages), tools, add_generation_prompt, enable_thinking, variables)

    def prompt(
        self, messages: Sequence[Message], *, tools: Sequence[Mapping[str, Any]] | None = None,
        continue_final_message: bool = False, enable_thinking: bool | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> Prompt:  # fmt: skip
        """The conversation as ids, for a reply."""
        self._budget.left = SECONDS
        variables = self._checked(variables)
        rendered = self._any(messages, tools, True, continue_final_message, enable_thinking, variables)
        text = rendered.text
        if continue_final_message:
            before = messages[:-1]
            said = self._try(before, tools, False, enable_thinking, variables) if before else ""
        else:
            said = self._try(messages, tools, False, enable_thinking, variables)
        opening = text[_common(text, said) :]
        if not opening:  # a template that always asks for a reply
            last = (checked_messages(messages)[-1]["content"] or "").strip()
            opening = text.rpartition(last)[2] if last else text
        return Prompt(rendered, encode_rendered(rendered, self._tokenizer), opening)

    def encode(self, rendered: Rendered) -> list[int]:
        """Ids of a rendering: control tokens that the template wrote are tokens, those in messages text; one BOS."""
        return encode_rendered(rendered, self._tokenizer)

    # How it is done

    def _try(self, messages: Sequence[Message], tools: Any, add: bool, thinking: bool | None, variables: Json) -> str:
        """The text, or "" where the template does not like such a conversation."""
        try:
            return self._render(checked_messages(messages), tools, add, thinking, variables).text
        except TemplateError:
            return ""

    def _render(
        self, messages: list[Json], tools: Sequence[Mapping[str, Any]] | None, add: bool, thinking: bool | None,
        variables: Json,
    ) -> Rendered:  # fmt: skip
        parts, without_tools = self._wants
        wants = Wants(parts=parts, short_ids=self._wants_short_ids)
        if any("tool_calls" in message for message in messages):
            as_text, null = self._wants_of_calls
            wants = replace(wants, text_arguments=as_text, null=null)
        value: Json = {"messages": shaped(messages, wants), "tools": checked_tools(tools), **variables}
        if value["tools"] is None and without_tools:
            del value["tools"]
        if thinking is not None:
            value |= {"enable_thinking": thinking, "thinking": thinking} | value
        mark = choose_mark(value, self.source)

        def render(value: Json) -> str:
            return self._outcome({**value, "add_generation_prompt": add}).checked()

        tokenizer = self._tokenizer
        return rendered_with_marks(
            render, value, tokenizer.control_tokens, mark, lambda text: control_ids(text, tokenizer)
        )

    def _continued(
        self, messages: Sequence[Message], tools: Any, thinking: bool | None, variables: Json
    ) -> Rendered:  # fmt: skip
        checked = checked_messages(messages)
        last = checked[-1]
        fields = ["content"] if last["content"] else [key for key in ("reasoning_content", "reasoning", "thinking")
                                                      if last.get(key)]  # fmt: skip
        if last["role"] != "assistant" or "tool_calls" in last or not fields:
            raise InputError(
                "continue_final_message: the last message must be the assistant's, with content (or reasoning) and "
                "without tool calls"
            )
        end = choose_mark(checked, self.source, tools, variables) + "END"
        for key in fields:
            last[key] += end
        rendered = self._render(checked, tools, False, thinking, variables)
        before, found, _ = rendered.marked.rpartition(end)
        if not found:
            raise TemplateError("the chat template changes the last message, so that it cannot be continued")
        return replace(rendered, marked=before)

    def _outcome(self, variables: Json) -> Outcome:
        left = getattr(self._budget, "left", SECONDS)
        if left <= 0:
            return TOO_SLOW
        everything = {"documents": None, **self._fixed, **variables}
        outcome = RENDERER.render(self.source, everything, self.now, seconds=left)
        self._budget.left = left - outcome.seconds
        return outcome

    @staticmethod
    def _checked(variables: Mapping[str, Any] | None) -> Json:
        if variables is not None and not isinstance(variables, Mapping):
            raise InputError(f"chat_template_kwargs must be a dict of variables, not a {type(variables).__name__}")
        for name in variables or ():
            if name in _OWN:
                raise InputError(f"chat_template_kwargs may not set {name!r}: the template gets it from here")
        return dict(variables or {})

    def _probe(self, **variables: Any) -> str:
        """What it makes of something small; "" where it fails. TemplateError for one that takes too much."""
        outcome = self._outcome({"add_generation_prompt": False, **variables})
        return outcome.checked() if outcome.bounded else outcome.text or ""

    @cached_property
    def _wants(self) -> tuple[bool, bool]:
        """Whether content is to be a list of parts, and whether tools are to be left out rather than None."""
        for no_tools in ({"tools": None}, {}):
            for content in (_PROBE, [{"type": "text", "text": _PROBE}]):
                if _PROBE in self._probe(messages=[{"role": "user", "content": content}], **no_tools):
                    return content is not _PROBE, not no_tools
        return False, False

    @cached_property
    def _wants_of_calls(self) -> tuple[bool, bool]:
        """Whether it puts arguments into the text as they are (a dict would fail there, or be written as Python), and
        whether it takes null for a content that is not there (and does not write "None")."""
        parts, _ = self._wants

        def written(arguments: object, null: bool = False) -> str:
            call = {**_PROBE_CALL, "function": {"name": "probe_name", "arguments": arguments}}
            turns: list[Json] = [
                {"role": "user", "content": _PROBE},
                {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "name": "probe_name", "tool_call_id": call["id"], "content": "42"},
            ]
            wants = Wants(parts=parts, null=null, text_arguments=isinstance(arguments, str))
            return self._probe(messages=shaped(turns, wants), tools=[_PROBE_TOOL])

        as_object, as_text = {"probe_key": "probe_value"}, '{"probe_key": "probe_value"}'
        text = written(as_object)
        wants_text = ("probe_value" not in text or "{'probe_key'" in text) and "probe_value" in written(as_text)
        text, with_null = (written(as_text if wants_text else as_object, null) for null in (False, True))
        wrong = any(with_null.count(word) > text.count(word) for word in ("None", "null"))
        return wants_text, "probe_value" in with_null and not wrong

    @property
    def _wants_short_ids(self) -> bool:
        """Mistral's templates refuse ids of any other length."""
        return re.search(r"length\s*!=\s*9\b", self.source) is not None


def _text_of(tokenizer: Tokenizer, token_id: int | None) -> str:
    """How a control token is written; "" for none, and for a default that is ordinary text in this vocabulary."""
    if token_id is None or not tokenizer.is_control(token_id):
        return ""
    return tokenizer.piece(token_id).decode("utf-8", "replace")


def _common(a: str, b: str) -> int:
    """How many characters the two begin with alike."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[low:middle] == b[low:middle] else (low, middle - 1)
    return low
