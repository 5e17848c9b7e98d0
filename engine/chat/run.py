"""From a conversation to a running reply: template, prompt, what is in the cache, what holds the reply to a form."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mixkv.engine.chat.api import ChatMethods, Tools
from mixkv.engine.chat.budget import ThinkingBudget
from mixkv.engine.chat.constrain import AfterThoughts, ToolChoice, checked_choice, constraint_options
from mixkv.engine.chat.formats import ReplyFormat
from mixkv.engine.chat.library import warn_caller
from mixkv.engine.chat.messages import Message, checked_tools
from mixkv.engine.chat.parser import ReplyParser
from mixkv.engine.chat.stream import ChatStream
from mixkv.engine.decode import Processor
from mixkv.engine.loaded import Loaded
from mixkv.engine.sampling import SamplingParams
from mixkv.engine.sequence import Progress
from mixkv.engine.tokenizer.base import Tokenizer
from mixkv.kernels.errors import InputError


def start(
    llm: ChatMethods, messages: Sequence[Message], *, tools: Tools | None, tool_choice: ToolChoice | None,
    response_format: Mapping[str, Any] | None, enable_thinking: bool | None, chat_template: str | Path | None,
    chat_template_kwargs: Mapping[str, Any] | None, continue_final_message: bool, params: SamplingParams,
    progress: Progress | None, processors: Sequence[Processor], thinking_budget: int | None = None,
) -> ChatStream:  # fmt: skip
    """See `ChatMethods.chat`."""
    shared = llm._shared
    offered = checked_tools(tools)
    choice = checked_choice(tool_choice, offered)
    if choice == "none":
        offered = None
    template = shared.chat_templates.choose(chat_template, tools=offered is not None)
    if offered and not template.knows_tools:
        warn_caller(f"the chat template ({template.name}) does not show tools to the model")
    format = template.reply_format
    prompt = template.prompt(
        messages, tools=offered, continue_final_message=continue_final_message, enable_thinking=enable_thinking,
        variables=chat_template_kwargs,
    )  # fmt: skip
    ids = prompt.ids
    if shared.prefix_reuse == "on":
        ids = shared.chat_templates.replies.as_generated(ids, llm._cached_tokens())
    held = constraint_options(format, offered, choice, response_format, shared.tokenizer.control_tokens)
    chosen = replace(params, skip_special_tokens=False, stop=(*params.stop, *template.stop), **held)
    thinking = prompt.is_open(format.thinking)
    starts_after = format.thinking[1] if thinking and format.thinking and chosen.constraint else None
    if chosen.constraint and not thinking and enable_thinking is not False and not continue_final_message:
        opening = _opening_tokens(format, prompt.opening, shared.tokenizer)
        if opening:
            processors = (_after_thoughts(shared, chosen, format, opening), *processors)
            chosen = replace(chosen, json_schema=None, regex=None, grammar=None)
    if thinking_budget is not None:
        processors = (*processors, *_budget(thinking_budget, format, shared.tokenizer, opened=thinking))
    generation = llm._generation(ids, False, progress, chosen, {}, processors, starts_after=starts_after)
    seed = hashlib.sha256(np.asarray(prompt.ids, np.int64).tobytes()).hexdigest()
    return ChatStream(
        generation, ReplyParser(format, thinking_open=thinking, tools=offered, seed=seed), shared.tokenizer,
        remember=lambda tokens: shared.chat_templates.replies.add(prompt.ids, ids, tokens),
        drop_blanks=not continue_final_message and not prompt.rendered.marked[-1:].isspace(),
    )  # fmt: skip


def _budget(limit: int, format: ReplyFormat, tokenizer: Tokenizer, *, opened: bool) -> list[Processor]:
    """What bounds thinking; nothing where the model does not think."""
    if not isinstance(limit, int) or limit < 0:
        raise InputError(f"thinking_budget is {limit!r}: give a number of tokens, 0 or more, or None for no bound")
    if format.thinking is None:
        return []
    close = tokenizer.encode_parts(tokenizer.split(format.thinking[1], parse_special=True))
    return [ThinkingBudget(limit, format.thinking, close, opened=opened, text=tokenizer.piece)]


def _opening_tokens(format: ReplyFormat, opening: str, tokenizer: Tokenizer) -> list[int]:
    """The tokens with which the model may begin to think by itself; none where it does not, where the prompt has ended
    thinking already, or where they begin like other text."""
    if format.thinking is None or format.thinking[1] in opening:
        return []
    parts = tokenizer.split(format.thinking[0], parse_special=True)
    return tokenizer.encode_parts(parts) if isinstance(parts[0], int) else []


def _after_thoughts(shared: Loaded, params: SamplingParams, format: ReplyFormat, opening: list[int]) -> Processor:
    assert format.thinking is not None
    close = format.thinking[1]
    return AfterThoughts(
        opening, lambda: shared.constraint(params, None)[0], lambda: shared.constraint(params, close)[0]
    )
