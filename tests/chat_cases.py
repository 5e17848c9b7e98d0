"""Conversations that every template is given, and tools for tests of chats: vocabularies, models, scripted replies."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from conftest import SHARED
from gguf_tools import tiny_llama, write_gguf

import mixkv
from mixkv.engine.decode import Processor
from mixkv.engine.tokenizer import Tokenizer, build_tokenizer, make_vocabulary
from mixkv.models.batch import F32

REAL = SHARED.resolve().parent / "models"
"""Real models, where somebody has put some beside the reference data."""
NOW = datetime.datetime(2026, 11, 25, 12, 0, 0).timestamp()
CONTROL, NORMAL, USER_DEFINED, UNKNOWN, BYTE = 3, 1, 4, 2, 6

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Current weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Name of the city"},
                "days": {"type": "integer", "description": "How many days", "default": 1},
            },
            "required": ["city"],
        },
    },
}
PLAIN = [
    {"role": "user", "content": "Hello, who are you?"},
    {"role": "assistant", "content": "A model."},
    {"role": "user", "content": '  What is 1 < 2 & "é"?\n'},
]
SYSTEM = [{"role": "system", "content": "Be brief."}, *PLAIN]
CALL = {
    "id": "abcdefghi", "type": "function",
    "function": {"name": "get_weather", "arguments": {"city": "Paris", "days": 2}},
}  # fmt: skip
TURN = [
    {"role": "user", "content": "Weather in Paris?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "abcdefghi", "name": "get_weather", "content": '{"temperature": 21}'},
    {"role": "assistant", "content": "It is 21 degrees."},
    {"role": "user", "content": "Thanks"},
]
THOUGHT = [
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi.", "reasoning_content": "They greet me."},
    {"role": "user", "content": "Bye"},
]
CASES: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "plain": (PLAIN, {}),
    "system": (SYSTEM, {}),
    "thinking_on": (THOUGHT, {"enable_thinking": True}),
    "thinking_off": (THOUGHT, {"enable_thinking": False}),
    "tools": (PLAIN[:1], {"tools": [WEATHER]}),
    "tool_turn": (TURN, {"tools": [WEATHER]}),
}
"""name -> (messages, options of render)."""


TAGS = ("<|im_start|>", "<|im_end|>", "<think>", "</think>", "<tool_call>", "</tool_call>")
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% for c in m.tool_calls %}<tool_call>\n"
    "{{ {'name': c.function.name, 'arguments': c.function.arguments} | tojson }}\n</tool_call>{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined %}<think>\n{% if not enable_thinking %}\n</think>\n\n{% endif %}{% endif %}"
    "{% endif %}{# tools #}"
)
THINKING_CHATML = CHATML.replace("{# tools #}", "{% if tools %}{{ tools | tojson }}{% endif %}")
"""The same, which shows tools."""
HELLO = [{"role": "user", "content": "hello"}]
GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 24}


def vocabulary(
    special: Sequence[str] = (), user_defined: Sequence[str] = (), bos: int = 1, **changes: Any
) -> dict[str, Any]:
    """Arguments of make_vocabulary: 256 bytes, a few letters, <s> and </s>, and the control tokens in `special`."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *"▁ehilo", *special, *user_defined]
    types = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * 6, *[CONTROL] * len(special)]
    types += [USER_DEFINED] * len(user_defined)
    return {
        "tokens": [token.encode() for token in tokens],
        "types": np.array(types, np.int32),
        "scores": np.array([0.0] * 259 + [-1.0] * (len(tokens) - 259), np.float32),
        "special": {"bos": bos, "eos": 2, "unknown": 0},
        "add_space_prefix": False,
    } | changes


def tokenizer(special: Sequence[str] = (), user_defined: Sequence[str] = (), **changes: Any) -> Tokenizer:
    """A tokenizer of such a vocabulary."""
    arguments = vocabulary(special, user_defined, **changes)
    return build_tokenizer(make_vocabulary("llama", arguments.pop("tokens"), **arguments))


def chat_model(
    path: Path, template: str | None, special: Sequence[str] = (), *, n_ctx: int = 2048, **metadata: Any
) -> Path:  # fmt: skip
    """A tiny random llama with such a vocabulary and a chat template; metadata: further keys of the file."""
    meta, tensors = tiny_llama()
    words = vocabulary(special)
    n = len(words["tokens"])
    meta |= {
        "tokenizer.ggml.tokens": words["tokens"], "tokenizer.ggml.scores": words["scores"],
        "tokenizer.ggml.token_type": words["types"], "tokenizer.ggml.add_space_prefix": False,
        "llama.context_length": n_ctx, **metadata,
    }  # fmt: skip
    if template is not None:
        meta["tokenizer.chat_template"] = template
    rng = np.random.default_rng(3)
    for name in ("token_embd.weight", "output.weight"):
        tensors[name] = rng.standard_normal((n, 32)).astype(np.float32) / np.sqrt(np.float32(32))
    return write_gguf(path, meta, tensors)


class Script(Processor):
    """Makes a model write a text, whatever it would have written: its tokens, then the token that ends it."""

    def __init__(self, words: Tokenizer, text: str, end: int | None = None) -> None:
        self._ids = [*words.encode(text, add_special=False, parse_special=True)]
        self._ids.append(words.eos_id if end is None else end)  # type: ignore[arg-type]

    def mask(self, logits: F32) -> F32:
        only = np.full_like(logits, -np.inf)
        only[self._ids[0]] = 0.0
        return only

    def accept(self, token: int) -> None:
        assert token == self._ids.pop(0)


class Begin(Script):
    """Makes a reply begin with a text; what follows is the model's own."""

    def __init__(self, words: Tokenizer, text: str) -> None:
        super().__init__(words, text)
        del self._ids[-1]

    def mask(self, logits: F32) -> F32:
        return super().mask(logits) if self._ids else logits

    def accept(self, token: int) -> None:
        if self._ids:
            super().accept(token)


def ten_turns(llm: mixkv.LLM, **options: Any) -> list[mixkv.ChatCompletion]:
    """A conversation, each turn going on from the one before."""
    messages: list[Any] = [{"role": "system", "content": "Be brief."}]
    replies = []
    for i in range(10):
        messages.append({"role": "user", "content": f"This is question number {i}: what comes next?"})
        replies.append(llm.chat(messages, **options))
        messages.append(replies[-1].message)
    return replies


def computed(replies: list[mixkv.ChatCompletion]) -> list[int]:
    """Tokens of each prompt that were not in the cache."""
    return [r.usage.prompt_tokens - r.usage.cached_tokens for r in replies]
