"""What a generation gives back: chunks while it runs, a Completion at its end, and what it cost."""

from __future__ import annotations

from dataclasses import dataclass

from mixkv.engine.state.stats import CacheStats
from mixkv.kernels.errors import MixkvError


@dataclass(frozen=True)
class Chunk:
    """One step of a stream.

    text: what may be shown now; it can be empty (half a character, the beginning of a stop string) and can belong to
    earlier tokens. token: the new token's id, None for the last chunk where the generation ended without one.
    logprob: its natural log probability under the model, before sampling; None unless asked for. top_logprobs: the
    most probable tokens with theirs, best first. finish_reason: None but on the last chunk. error: of a prompt in a
    batch that failed, on its last chunk, whose finish_reason is "error".
    """

    text: str
    token: int | None = None
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] | None = None
    finish_reason: str | None = None
    error: MixkvError | None = None


@dataclass(frozen=True)
class TokenLogprob:
    """A generated token's natural log probability, and the most probable tokens with theirs, best first."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class GenerationStats:
    """What one generation cost. Seconds are wall time; reused tokens were in the cache from an earlier call."""

    load_seconds: float
    prompt_tokens: int
    reused_tokens: int
    prompt_seconds: float
    generated_tokens: int
    decode_seconds: float
    seed: int | None
    cache: CacheStats

    @property
    def prompt_tokens_per_second(self) -> float:
        """Speed of reading the part of the prompt that was not in the cache yet."""
        return _rate(self.prompt_tokens - self.reused_tokens, self.prompt_seconds)

    @property
    def decode_tokens_per_second(self) -> float:
        """Speed of generating; the first token belongs to the prompt's time."""
        return _rate(max(0, self.generated_tokens - 1), self.decode_seconds)


def _rate(n: int, seconds: float) -> float:
    return n / seconds if n > 0 and seconds > 0 else 0.0


@dataclass(frozen=True)
class Completion:
    """A finished generation.

    text: without the prompt and without the stop string. tokens: every generated id, those that form a stop string
    included. finish_reason: "stop" (end of text, or a stop string), "length" (max_tokens or the context), or
    "interrupted"; "error" for a prompt in a batch that failed, with its `error`. stop: the stop string that was found.
    """

    text: str
    tokens: list[int]
    finish_reason: str
    logprobs: list[TokenLogprob] | None
    stats: GenerationStats
    stop: str | None = None
    error: MixkvError | None = None

    def __str__(self) -> str:
        return self.text
