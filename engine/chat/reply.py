"""What a chat model's reply is made of, whole (ChatMessage, ChatCompletion) and piece by piece (ChatDelta)."""

from __future__ import annotations

from dataclasses import dataclass

from mixkv.engine.results import GenerationStats


@dataclass(frozen=True)
class ToolCall:
    """A call of one of the caller's functions. arguments: JSON text of an object, as the model wrote it."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class ChatMessage:
    """A reply. content: None where it holds nothing but calls; reasoning: what was thought, None where nothing was."""

    content: str | None
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    role: str = "assistant"


@dataclass(frozen=True)
class ToolCallDelta:
    """A piece of call `index`. id and name stand in its first piece alone; the pieces' arguments together are JSON."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


@dataclass(frozen=True)
class ChatDelta:
    """A piece of a reply: what came to each field. finish_reason: on the last one alone."""

    content: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()
    finish_reason: str | None = None

    def __bool__(self) -> bool:
        return bool(self.content or self.reasoning or self.tool_calls or self.finish_reason)


@dataclass(frozen=True)
class Usage:
    """Tokens: of the prompt, of the reply, and how many of the prompt were in the cache."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True)
class ChatCompletion:
    """A finished reply. finish_reason: "stop", "length", "tool_calls" or "interrupted"."""

    message: ChatMessage
    finish_reason: str
    usage: Usage
    stats: GenerationStats
