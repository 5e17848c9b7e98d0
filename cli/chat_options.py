"""The flags of a chat: its template, thinking, how it is shown. See options.py for the rules."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixkv.cli.flags import flag
from mixkv.kernels.errors import ConfigError

CHAT = "Chat"
REASONING = {"on": True, "off": False, "auto": None}


@dataclass(frozen=True)
class ChatFlags:
    """How a chat is laid out and shown. An empty value is none."""

    chat_template: str | None = flag(
        "--chat-template", panel=CHAT, metavar="NAME", default="the file's",
        help="A built-in one, or a Jinja template's text; docs/chat.md has the names",
    )  # fmt: skip
    chat_template_file: str | None = flag("--chat-template-file", panel=CHAT, metavar="FILE", help="One from a file")
    chat_template_kwargs: str | None = flag(
        "--chat-template-kwargs", panel=CHAT, metavar="JSON", help="Its further variables: an object"
    )
    reasoning: str | None = flag(
        "-rea", "--reasoning", panel=CHAT, metavar="on|off|auto", default="auto: the template's own",
        help="Whether the model is to think first",
    )  # fmt: skip
    reasoning_budget: int | None = flag(
        "--reasoning-budget",
        panel=CHAT,
        default="-1",
        help="Tokens of thinking, which is closed then: -1: any number, 0: as --reasoning off",
    )
    markdown: bool | None = flag(
        "--markdown/--no-markdown", panel=CHAT, default="where the terminal can",
        help="Show headings, bold and code as such",
    )  # fmt: skip
    simple_io: bool = flag(
        "--simple-io", panel=CHAT, value=False, help="A chat without line editing, history, colours and redrawing"
    )


@dataclass(frozen=True)
class ChatSettings:
    """What the flags add up to: arguments of `LLM.chat`, and how it is shown."""

    template: str | Path | None
    variables: dict[str, Any]
    thinking: bool | None
    budget: int | None
    markdown: bool | None
    simple: bool


def chat_settings(flags: ChatFlags) -> ChatSettings:
    """ConfigError for contradictions and values that make no sense, OSError for a template that cannot be read."""
    template: str | Path | None = flags.chat_template or None
    if flags.chat_template_file:
        if template:
            raise ConfigError("--chat-template and --chat-template-file both give the template: leave one out")
        template = Path(flags.chat_template_file)
        template.open("rb").close()
    thinking = _thinking(flags)
    budget = flags.reasoning_budget if flags.reasoning_budget and flags.reasoning_budget > 0 else None
    return ChatSettings(template, _variables(flags), thinking, budget, flags.markdown, flags.simple_io)


def without_effect(flags: ChatFlags) -> list[str]:
    """The flags that were given and mean nothing where there is no chat."""
    names = ("chat_template", "chat_template_file", "chat_template_kwargs", "reasoning", "reasoning_budget")
    given = [name for name in names if getattr(flags, name) not in (None, "")]
    return [str(ChatFlags.__dataclass_fields__[name].metadata["names"][-1]) for name in given]


def _thinking(flags: ChatFlags) -> bool | None:
    if flags.reasoning is not None and flags.reasoning not in REASONING:
        raise ConfigError(f"--reasoning {flags.reasoning!r}: use on, off or auto")
    thinking = REASONING[flags.reasoning or "auto"]
    if flags.reasoning_budget is not None and flags.reasoning_budget < -1:
        raise ConfigError(f"--reasoning-budget {flags.reasoning_budget}: use a number of tokens, or -1 for any number")
    if flags.reasoning_budget != 0:
        return thinking
    if thinking:
        raise ConfigError("--reasoning-budget 0 contradicts --reasoning on: give one of them")
    return False


def _variables(flags: ChatFlags) -> dict[str, Any]:
    if not flags.chat_template_kwargs:
        return {}
    try:
        found = json.loads(flags.chat_template_kwargs)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"--chat-template-kwargs: not JSON ({error}): give an object, such as {{}}") from None
    if not isinstance(found, dict):
        raise ConfigError('--chat-template-kwargs: give a JSON object, such as {"reasoning_effort": "low"}')
    return found
