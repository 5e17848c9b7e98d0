"""A conversation, and the turns of it: replies, calls of tools, and what of a turn that breaks off counts.

Know before you change this room: `messages` changes only when a turn has come to its end, or was stopped with something
said. A turn that fails leaves the conversation as it was.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixkv.cli.chat_input import Input
from mixkv.cli.chat_options import ChatSettings
from mixkv.cli.chat_tools import Tool, shown_call
from mixkv.cli.chat_view import View
from mixkv.cli.terminal import Terminal
from mixkv.engine.sampling import SamplingParams
from mixkv.kernels.errors import InputError, TemplateError

if TYPE_CHECKING:
    from mixkv.engine.chat.reply import ChatMessage, ToolCall, Usage
    from mixkv.engine.chat.stream import ChatStream
    from mixkv.engine.llm import LLM
    from mixkv.engine.results import GenerationStats

Json = dict[str, Any]
SHOWN = 200
"""Characters of a tool's result that are shown."""
PLAIN = "plain"
"""The built-in template of plain turns, for files without one."""
ROUNDS = 10
"""Replies of one turn that may call tools."""
TOO_LONG = "/undo takes back the last turn, /clear starts over, a larger -c holds more"


class Conversation:
    """Messages as OpenAI's API has them, and how replies to them are made. last: what the newest reply cost."""

    def __init__(self, llm: LLM, settings: ChatSettings, params: SamplingParams, system: str = "") -> None:
        self.llm, self.settings, self.params = llm, settings, params
        self.thinking = settings.thinking
        self.messages: list[Json] = [{"role": "system", "content": system}] if system else []
        self.tools: dict[str, Tool] = {}
        self.last: tuple[GenerationStats, Usage] | None = None

    @property
    def system(self) -> str | None:
        """The system prompt; None where there is none."""
        first = self.messages[0] if self.messages else {}
        return str(first["content"]) if first.get("role") == "system" else None

    @property
    def begin(self) -> int:
        """Where the last turn begins: at the user's last message; the end where there is none."""
        users = [i for i, message in enumerate(self.messages) if message["role"] == "user"]
        return users[-1] if users else len(self.messages)

    @property
    def template(self) -> str | Path | None:
        """The one to use; None: the file's."""
        if self.settings.template is None and not self.llm.chat_template_names:
            return PLAIN
        return self.settings.template

    def check(self) -> None:
        """Raise what is wrong with the template and its variables by themselves, before anything is said."""
        if self.settings.template is not None or self.settings.variables:
            with suppress(TemplateError):  # it may want another conversation than this
                self.llm.apply_chat_template([{"role": "user", "content": "Hello"}], **self.options())

    def options(self) -> Json:
        """Arguments of `LLM.chat` and `apply_chat_template`."""
        return {
            "tools": [tool.schema for tool in self.tools.values()] or None, "enable_thinking": self.thinking,
            "chat_template": self.template, "chat_template_kwargs": self.settings.variables,
        }  # fmt: skip

    def reply(self, messages: Sequence[Json], progress: Any = None) -> ChatStream:
        """The reply to messages. InputError says what to do where they do not fit into the context."""
        try:
            return self.llm.chat_stream(
                messages, params=self.params, progress=progress, thinking_budget=self.settings.budget, **self.options()
            )
        except InputError:
            n = len(self.llm.apply_chat_template(messages, tokenize=True, **self.options()))
            if n <= self.llm.n_ctx:
                raise
            raise InputError(
                f"the conversation would have {n} tokens, but the context holds {self.llm.n_ctx}: {TOO_LONG}"
            ) from None


class Session:
    """A conversation at a terminal or in a pipe."""

    def __init__(self, talk: Conversation, view: View, input: Input, terminal: Terminal) -> None:
        self.talk, self.view, self.input, self.terminal = talk, view, input, terminal
        self._allowed: list[Tool] = []  # of this very file: another one's function is asked about anew
        self._regenerated = 0

    def ask(self, text: str, before: Sequence[Json] | None = None) -> None:
        """A turn of the user's, behind `before` (None: what was said), and what follows from it."""
        self._turn([*(self.talk.messages if before is None else before), {"role": "user", "content": text}])

    def offer(self, tools: dict[str, Tool]) -> None:
        """Offer these tools to the model and no others. InputError where its template does not show any."""
        options = self.talk.options() | {"tools": [tool.schema for tool in tools.values()]}
        messages = [{"role": "user", "content": "Hello"}]
        shown = self.talk.llm.apply_chat_template(messages, **options)
        if shown == self.talk.llm.apply_chat_template(messages, **options | {"tools": None}):
            raise InputError("the chat template does not show tools to the model: none are offered")
        self.talk.tools = tools

    def again(self) -> None:
        """Another reply to the last turn; the old one stays where this fails or brings nothing."""
        self._regenerated += 1
        seed, params = self.talk.params.seed, self.talk.params
        if seed is not None:  # the same seed would say the same
            self.talk.params = replace(params, seed=seed + self._regenerated)
        try:
            self._turn(self.talk.messages[: self.talk.begin + 1])
        finally:
            self.talk.params = params

    def _turn(self, messages: list[Json]) -> None:
        from mixkv.engine.chat.messages import message_dict

        for round in range(ROUNDS + 1):
            try:
                message, calls = self._reply(messages, with_calls=round < ROUNDS)
            except BaseException:
                if round:  # tools were called: that cannot be undone by forgetting it
                    self.talk.messages = messages
                raise
            if message is None:
                if round == 0:
                    self.terminal.say("(stopped before anything was said: the turn is taken back)")
                    return
                break
            messages.append(message_dict(message))
            if not calls:
                break
            stopped = self._call(calls, messages)
            if stopped:
                break
        self.talk.messages = messages

    def _reply(self, messages: list[Json], *, with_calls: bool) -> tuple[ChatMessage | None, Sequence[ToolCall]]:
        """Show a reply as it comes. The message, None if it was stopped before anything came, and its calls."""
        stream, out, interrupted = None, self.view.reply(), False
        try:
            with self.terminal.progress("reading") as report:
                stream = self.talk.reply(messages, report)
                first = next(stream)
            for delta in chain([first], stream):
                out.show(delta, stream.usage.completion_tokens)
        except StopIteration:
            pass
        except KeyboardInterrupt:
            interrupted = True
        except BaseException:
            if stream is not None and out.begun:
                out.end(stream.usage.completion_tokens)
            raise
        if stream is None:
            return None, ()
        stream.close()
        calls = stream.finish_reason == "tool_calls" and not interrupted
        out.end(stream.usage.completion_tokens, final=not calls)
        self.talk.last = stream.stats, stream.usage
        self._say_if_full(stream)
        message = stream.message if calls and with_calls else replace(stream.message, tool_calls=())
        if calls and not with_calls:
            self.terminal.note(f"the model asked for tools {ROUNDS} times in a row: stopped; say how to go on")
            interrupted = True
        if message.content or message.reasoning or message.tool_calls or not (
            interrupted or stream.finish_reason in (None, "interrupted")
        ):  # fmt: skip
            return message, message.tool_calls
        return None, ()

    def _say_if_full(self, stream: ChatStream) -> None:
        usage, limit = stream.usage, self.talk.params.max_tokens
        cut = stream.finish_reason == "length" and (limit is None or usage.completion_tokens < limit)
        if cut:
            self.terminal.note(f"the context of {self.talk.llm.n_ctx} tokens is full: {TOO_LONG}")

    def _call(self, calls: Sequence[ToolCall], messages: list[Json]) -> bool:
        """Make the calls that the user allows; their results are messages. Whether Ctrl-C was pressed."""
        stopped = False
        for call in calls:
            result = "not called: the user stopped here"
            if not stopped:
                try:
                    result = self._result(call)
                except KeyboardInterrupt:
                    print(file=sys.stderr)
                    stopped = True
            messages.append({"role": "tool", "tool_call_id": call.id, "name": call.name, "content": result})
        return stopped

    def _result(self, call: ToolCall) -> str:
        tool = self.talk.tools.get(call.name)
        self.view.tell(f"call: {shown_call(call.name, call.arguments)}")
        if tool is None:
            return f"error: there is no tool {call.name!r}; there are {', '.join(self.talk.tools)}"
        if tool not in self._allowed and not self._allows(tool):
            return "not called: the user did not allow it"
        result = tool.call(call.arguments)
        self.view.tell(f"result: {result if len(result) <= SHOWN else result[:SHOWN] + ' ...'}")
        return result

    def _allows(self, tool: Tool) -> bool:
        """Ask the user; no answer is a no."""
        while True:
            answer = self.input.answer(f"run {tool.name}? [y]es, [n]o, [a]lways: ")
            if answer in ("a", "always"):
                self._allowed.append(tool)
            if answer in (None, "n", "no", "y", "yes", "a", "always"):
                return answer not in (None, "n", "no")
