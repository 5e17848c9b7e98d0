"""A reply's text, as it comes, taken apart into content, reasoning and calls of tools."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from mixkv.engine.chat.calls import CallReader
from mixkv.engine.chat.formats import ReplyFormat
from mixkv.engine.chat.reply import ChatDelta, ChatMessage, ToolCall, ToolCallDelta
from mixkv.engine.chat.source import Source, Waits
from mixkv.kernels.errors import NoMatch

PARAGRAPH = "\n\n"
"""Between two parts of a text with a call or a thought between them."""
ID_LETTERS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
ID_LENGTH = 9
"""Letters and digits of a call's id where the model wrote none: as many as Mistral's templates insist on."""


class _Text:
    """One of a reply's two texts. Spaces beside tags are none of it: those at the end wait for what comes."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.new: list[str] = []
        self.bare = True
        """Nothing stands since the beginning or the last tag."""
        self._spaces = ""
        self._after_tag = False

    def add(self, text: str) -> None:
        if self.bare and self._after_tag:
            text = text.lstrip()
            if text and self.parts:
                self._put(PARAGRAPH)
        kept = text.rstrip()
        if kept:
            self._put(self._spaces + kept)
            self.bare, self._spaces = False, ""
        self._spaces += text[len(kept) :]

    def tag(self) -> None:
        """A tag came before or after."""
        self.bare = self._after_tag = True
        self._spaces = ""

    def end(self) -> None:
        if self._spaces:
            self._put(self._spaces)

    def _put(self, text: str) -> None:
        self.parts.append(text)
        self.new.append(text)

    def take(self) -> str:
        new, self.new = "".join(self.new), []
        return new


@dataclass
class _Call:
    """A call that is being read. parts: its arguments; new: of those, what the next delta brings."""

    id: str
    name: str
    parts: list[str]
    new: list[str]
    told: bool = False


class ReplyParser:
    """Takes a reply apart as its text comes, with special tokens written out, in pieces of any size.

    What comes out does not depend on where the pieces were cut. Text waits only as long as it may be a tag's beginning;
    arguments of calls are passed on as they come. Text that looks like a call and turns out to be none is content; a
    call is one from where its name, which is one of the tools', and its arguments' beginning are read, and what is
    wrong after that is content again. Nothing else is lost but the tags and the spaces beside them.

    thinking_open: the prompt has opened thinking already. tools: the request's; None: no calls are looked for. seed:
    text that makes the calls' ids differ from those of other replies.
    """

    def __init__(
        self,
        format: ReplyFormat,
        *,
        thinking_open: bool = False,
        tools: Sequence[dict[str, Any]] | None = None,
        seed: str = "",
    ) -> None:
        self.format, self._seed = format, seed
        self._source = Source()
        self._content, self._reasoning = _Text(), _Text()
        self._calls: list[_Call] = []
        self._reader = CallReader(self._source, tools or (), self._begin_call, self._add_arguments)
        self._forms = format.calls if tools else ()
        self._firsts = {form.literal[0] for form in self._forms if form.literal and not form.first}
        self._firsts |= {tag[0] for tag in (*format.silent, *(format.thinking or ())[:1])}
        self._run = self._read(thinking_open)
        next(self._run)

    def feed(self, text: str) -> ChatDelta:
        """What a piece of the reply brings."""
        self._source.text += text
        next(self._run)
        return self._taken()

    def finish(self, finish_reason: str) -> ChatDelta:
        """What was waiting, and why the reply ended: "tool_calls" in place of "stop" where there are calls."""
        self._source.ended = True
        for _ in self._run:
            raise AssertionError("nothing more comes")
        if self._calls and finish_reason == "stop":
            finish_reason = "tool_calls"
        return replace(self._taken(), finish_reason=finish_reason)

    def message(self) -> ChatMessage:
        """All that came so far: the deltas put together."""
        content, reasoning = "".join(self._content.parts), "".join(self._reasoning.parts)
        return ChatMessage(
            content=content or (None if self._calls else ""),
            reasoning=reasoning or None,
            tool_calls=tuple(ToolCall(call.id, call.name, "".join(call.parts)) for call in self._calls),
        )

    def _taken(self) -> ChatDelta:
        calls = []
        for index, call in enumerate(self._calls):
            if not call.told:
                calls.append(ToolCallDelta(index, call.id, call.name, "".join(call.new)))
            elif call.new:
                calls.append(ToolCallDelta(index, arguments="".join(call.new)))
            call.told, call.new = True, []
        return ChatDelta(content=self._content.take(), reasoning=self._reasoning.take(), tool_calls=tuple(calls))

    def _begin_call(self, name: str, id: str | None) -> None:
        if id in [call.id for call in self._calls]:
            id = None
        self._calls.append(_Call(id or self._new_id(len(self._calls), name), name, [], []))

    def _add_arguments(self, text: str) -> None:
        self._calls[-1].parts.append(text)
        self._calls[-1].new.append(text)

    def _new_id(self, index: int, name: str) -> str:
        digest = hashlib.sha256(f"{self._seed}\0{index}\0{name}".encode("utf-8", "surrogatepass")).digest()
        return "".join(ID_LETTERS[byte % len(ID_LETTERS)] for byte in digest[:ID_LENGTH])

    # The reply from its beginning to its end

    def _read(self, thinking_open: bool) -> Waits[None]:
        source, content = self._source, self._content
        if thinking_open and self.format.thinking:
            yield from self._think(self.format.thinking[1])
        while character := (yield from source.peek()):
            source.forget()
            begins = content.bare and not character.isspace()
            if (begins or character in self._firsts) and (yield from self._tag(begins)):
                content.tag()
                continue
            start, stop = source.pos, source.pos + 1
            while not begins and stop < len(source.text) and not self._may_begin(source.text[stop]):
                stop += 1
            source.pos = stop
            content.add(source.text[start:stop])
        content.end()

    def _may_begin(self, character: str) -> bool:
        return character in self._firsts or (self._content.bare and not character.isspace())

    def _tag(self, begins: bool) -> Waits[bool]:
        """Reads what comes next if it is a tag, with what belongs to it."""
        source, thinking, start = self._source, self.format.thinking, self._source.pos
        if thinking and (begins or self._content.bare) and (yield from source.skip(thinking[0])):
            self._content.tag()
            yield from self._think(thinking[1])
            return True
        for form in self._forms:
            if (form.first and not begins) or not (yield from source.at(form.literal)):
                continue
            try:
                yield from self._reader.read(form)
                return True
            except NoMatch:
                source.pos = start if self._reader.kept is None else self._reader.kept
                if source.pos > start:
                    return True
        for tag in (*self.format.silent, *(self.format.leads if begins and not self._content.parts else ())):
            if (yield from source.skip(tag)):
                return True
        return False

    def _think(self, close: str) -> Waits[None]:
        """Thoughts up to their end; a second opening of them is dropped."""
        source, text = self._source, self._reasoning
        text.tag()
        opening = self.format.thinking[0] if self.format.thinking else ""
        if not (yield from source.skip(opening)):
            yield from source.spaces()
            yield from source.skip(opening)
        while (yield from source.peek()):
            source.forget()
            if (yield from source.skip(close)):
                text.tag()
                self._content.tag()
                return
            start, stop = source.pos, source.text.find(close[0], source.pos + 1)
            source.pos = len(source.text) if stop < 0 else stop
            text.add(source.text[start : source.pos])
        text.end()
