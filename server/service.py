"""What the endpoints share: the LLM, its settings, threads, counters; and how generations become items of answers."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mixkv.engine.llm import LLM
from mixkv.engine.results import Chunk, GenerationStats, TokenLogprob
from mixkv.engine.sampling import SamplingParams
from mixkv.server.body import Json
from mixkv.server.metrics import Metrics
from mixkv.server.settings import ServerSettings
from mixkv.server.work import Give, Leave, Work, Workers

LEAST_LOGPROB = -9999.0
"""For tokens that cannot be: JSON has no infinities."""


@dataclass(frozen=True)
class Begun:
    """The first item: the prompt is read, `n` tokens of it. echo: its text, where that is wanted."""

    n: int
    echo: str = ""


@dataclass(frozen=True)
class Piece:
    """What came: a ChatDelta or a Chunk, and the log probabilities of the tokens in it, where asked for."""

    delta: Any
    logprobs: list[TokenLogprob]


@dataclass(frozen=True)
class Ended:
    """The last item. message: a ChatMessage, or the text; stop: the stop string that ended it."""

    message: Any
    finish_reason: str
    stats: GenerationStats
    logprobs: list[TokenLogprob]
    stop: str | None = None


@dataclass
class Usage:
    """Tokens of an answer: of its prompts, each counted once, and of its choices."""

    prompt: int = 0
    cached: int = 0
    generated: int = 0

    def add(self, stats: GenerationStats, *, prompt: bool) -> None:
        """Count a choice; prompt: the first one of its prompt."""
        if prompt:
            self.prompt += stats.prompt_tokens
            self.cached += stats.reused_tokens
        self.generated += stats.generated_tokens

    def openai(self) -> Json:
        return {
            "prompt_tokens": self.prompt, "completion_tokens": self.generated,
            "total_tokens": self.prompt + self.generated, "prompt_tokens_details": {"cached_tokens": self.cached},
        }  # fmt: skip


class Service:
    """An LLM that answers requests."""

    def __init__(self, llm: LLM, settings: ServerSettings, chat_template: str | Path | None = None) -> None:
        self.llm, self.settings, self.chat_template = llm, settings, chat_template
        self.workers = Workers(llm.n_parallel, settings.queue)
        self.metrics = Metrics(self.workers)
        self.started = int(time.time())

    @cached_property
    def fingerprint(self) -> str:
        from mixkv import __version__

        return f"mixkv-{__version__}"

    def head(self, kind: str, object: str) -> Json:
        """What every answer of OpenAI's form begins with."""
        return {
            "id": f"{kind}-{uuid.uuid4().hex}", "object": object, "created": int(time.time()),
            "model": self.settings.alias, "system_fingerprint": self.fingerprint,
        }  # fmt: skip

    def chat_work(self, arguments: Json, params: SamplingParams) -> Work:
        """A reply to a conversation: Begun, Pieces of ChatDeltas, Ended."""

        def work(give: Give, leave: Leave) -> None:
            stream = self.llm.chat_stream(
                **arguments, chat_template=self.chat_template, params=params, processors=[leave], progress=leave.check
            )
            with stream.attended():
                try:
                    give(Begun(stream.usage.prompt_tokens))
                    sent = 0
                    for delta in stream:
                        new = stream.logprobs[sent:]
                        sent += len(new)
                        give(Piece(delta, new))
                finally:
                    stream.close()
            assert stream.finish_reason is not None
            self.metrics.count(stream.stats)
            give(Ended(stream.message, stream.finish_reason, stream.stats, stream.logprobs, stream.stop))

        return work

    def text_work(self, prompt: str | list[int], params: SamplingParams, *, echo: bool = False) -> Work:
        """A text that goes on: Begun, Pieces of Chunks, Ended."""

        def work(give: Give, leave: Leave) -> None:
            generation = self.llm.stream(
                prompt, parse_special=True, params=params, processors=[leave], progress=leave.check
            )
            with generation.attended():
                try:
                    shown = prompt if isinstance(prompt, str) else self.llm.tokenizer.decode(prompt)
                    give(Begun(len(generation.prompt), shown if echo else ""))
                    for chunk in generation:
                        give(Piece(chunk, _of_chunk(chunk)))
                finally:
                    generation.close()
            assert generation.finish_reason is not None
            self.metrics.count(generation.stats)
            give(Ended(generation.text, generation.finish_reason, generation.stats, generation.logprobs))

        return work

    def token_text(self, token: int) -> str:
        """What a token prints, as far as it is UTF-8."""
        return self.llm.tokenizer.piece(token).decode("utf-8", "replace")

    def content_logprobs(self, entries: Iterable[TokenLogprob]) -> list[Json]:
        """As `choices[].logprobs.content` has them."""

        def one(token: int, logprob: float) -> Json:
            piece = self.llm.tokenizer.piece(token)
            text = piece.decode("utf-8", "replace")
            return {"token": text, "logprob": finite(logprob), "bytes": list(piece)}

        return [
            {**one(entry.token, entry.logprob), "top_logprobs": [one(token, value) for token, value in entry.top]}
            for entry in entries
        ]


def _of_chunk(chunk: Chunk) -> list[TokenLogprob]:
    if chunk.token is None or chunk.logprob is None:
        return []
    return [TokenLogprob(chunk.token, chunk.logprob, chunk.top_logprobs or ())]


def finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else LEAST_LOGPROB


def timings(stats: GenerationStats) -> Json:
    """llama-server's `timings`."""
    computed = stats.prompt_tokens - stats.reused_tokens
    return {
        "cache_n": stats.reused_tokens, "prompt_n": computed, "prompt_ms": stats.prompt_seconds * 1e3,
        "prompt_per_second": stats.prompt_tokens_per_second, "predicted_n": stats.generated_tokens,
        "predicted_ms": stats.decode_seconds * 1e3, "predicted_per_second": stats.decode_tokens_per_second,
    }  # fmt: skip
