"""ChatStream: a reply as it comes, taken apart into content, reasoning and calls of tools."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace

from mixkv.engine.chat.parser import ReplyParser
from mixkv.engine.chat.reply import ChatCompletion, ChatDelta, ChatMessage, Usage
from mixkv.engine.generation import Generation
from mixkv.engine.results import GenerationStats, TokenLogprob
from mixkv.engine.tokenizer.base import Tokenizer


class ChatStream:
    """Iterate over it for ChatDeltas, the last of which has a finish_reason; afterwards (or in between) `message`,
    `finish_reason`, `usage` and `stats` hold. `close` ends it early. What ends a `Generation` ends it in the same way.
    """

    def __init__(
        self, generation: Generation, parser: ReplyParser, tokenizer: Tokenizer, *,
        remember: Callable[[list[int]], None], drop_blanks: bool = False,
    ) -> None:  # fmt: skip
        """remember: is told the reply's tokens. drop_blanks: those at the content's beginning are the format's."""
        self.finish_reason: str | None = None
        self._generation, self._parser, self._tokenizer = generation, parser, tokenizer
        self._remember = remember
        self._drop_blanks, self._begun = drop_blanks, not drop_blanks
        self._deltas: deque[ChatDelta] = deque()

    def __iter__(self) -> Iterator[ChatDelta]:
        return self

    def __next__(self) -> ChatDelta:
        while not self._deltas:
            chunk = next(self._generation)
            self._take(chunk.text, chunk.finish_reason)
        return self._deltas.popleft()

    def close(self) -> None:
        """End it here. Twice does no harm."""
        self._deltas.clear()
        self._generation.close()
        if self.finish_reason is None:
            self._remember(self._generation.tokens)

    @property
    def message(self) -> ChatMessage:
        """What came so far."""
        message = self._parser.message()
        return replace(message, content=message.content.lstrip()) if self._drop_blanks and message.content else message

    @property
    def usage(self) -> Usage:
        """Tokens so far."""
        generation = self._generation
        return Usage(len(generation.prompt), len(generation.tokens), generation.job.reused)

    @property
    def stats(self) -> GenerationStats:
        """What it cost so far."""
        return self._generation.stats

    @property
    def stop(self) -> str | None:
        """The stop string that ended it: one of the caller's, or of the template's."""
        return self._generation.stop

    @property
    def logprobs(self) -> list[TokenLogprob]:
        """Log probabilities of the tokens so far, thoughts and calls among them, where asked for."""
        return self._generation.logprobs

    def attended(self) -> AbstractContextManager[None]:
        """See `Generation.attended`."""
        return self._generation.attended()

    def completion(self) -> ChatCompletion:
        """Run to the end and return the whole."""
        whole = self._generation.completion()
        self._take(whole.text, whole.finish_reason)
        self._deltas.clear()
        assert self.finish_reason is not None
        return ChatCompletion(self.message, self.finish_reason, self.usage, whole.stats)

    def _take(self, text: str, reason: str | None) -> None:
        if reason is not None and (end := self._generation.end_token) is not None:
            text = text.removesuffix(self._tokenizer.decode([end], skip_special=False))  # not what was said
        self._add(self._parser.feed(text))
        if reason is not None:
            last = self._parser.finish(reason)
            self.finish_reason = last.finish_reason
            self._add(last)
            self._remember(self._generation.tokens)

    def _add(self, delta: ChatDelta) -> None:
        if not self._begun and delta.content:
            delta = replace(delta, content=delta.content.lstrip())
            self._begun = bool(delta.content)
        if delta:
            self._deltas.append(delta)
