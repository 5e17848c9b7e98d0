"""Templates for files that bring none, by the names that llama.cpp knows them by.

Most formats are turns: a text before and behind each message of a role. They are written here as a table, from which
templates are made; the rest are templates.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import NamedTuple

from mixkv.kernels.errors import ConfigError

PLAIN = "plain"
"""Turns in words, for a model of which nothing is known; what `mixkv chat` writes."""


class Turns(NamedTuple):
    """A format: what stands around each role's text. system: None where its text goes in front of the next user's, with
    `join` between them. ask: what the reply follows. begin: before everything. trim: texts lose the blanks around them.
    """

    user: tuple[str, str]
    assistant: tuple[str, str]
    system: tuple[str, str] | None
    ask: str
    begin: str = ""
    trim: bool = True
    join: str = "\n\n"


_BOS, _EOS = "{{ bos_token }}", "{{ eos_token }}"
_TABLE: dict[str, Turns] = {
    PLAIN: Turns(("User: ", "\n"), ("Assistant: ", "\n"), ("", "\n\n"), "Assistant:", _BOS),
    "chatml": Turns(
        ("<|im_start|>user\n", "<|im_end|>\n"), ("<|im_start|>assistant\n", "<|im_end|>\n"),
        ("<|im_start|>system\n", "<|im_end|>\n"), "<|im_start|>assistant\n", trim=False,
    ),
    "llama3": Turns(
        ("<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>"),
        ("<|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>"),
        ("<|start_header_id|>system<|end_header_id|>\n\n", "<|eot_id|>"),
        "<|start_header_id|>assistant<|end_header_id|>\n\n", _BOS,
    ),
    "llama4": Turns(
        ("<|header_start|>user<|header_end|>\n\n", "<|eot|>"),
        ("<|header_start|>assistant<|header_end|>\n\n", "<|eot|>"),
        ("<|header_start|>system<|header_end|>\n\n", "<|eot|>"),
        "<|header_start|>assistant<|header_end|>\n\n", _BOS,
    ),
    "gemma": Turns(
        ("<start_of_turn>user\n", "<end_of_turn>\n"), ("<start_of_turn>model\n", "<end_of_turn>\n"), None,
        "<start_of_turn>model\n", _BOS,
    ),
    "phi3": Turns(
        ("<|user|>\n", "<|end|>\n"), ("<|assistant|>\n", "<|end|>\n"), ("<|system|>\n", "<|end|>\n"), "<|assistant|>\n",
        trim=False,
    ),
    "phi4": Turns(
        ("<|im_start|>user<|im_sep|>", "<|im_end|>"), ("<|im_start|>assistant<|im_sep|>", "<|im_end|>"),
        ("<|im_start|>system<|im_sep|>", "<|im_end|>"), "<|im_start|>assistant<|im_sep|>", trim=False,
    ),
    "mistral-v1": Turns((" [INST] ", " [/INST]"), (" ", _EOS), None, "", _BOS),
    "mistral-v3": Turns(("[INST] ", "[/INST]"), (" ", _EOS), None, "", _BOS),
    "mistral-v3-tekken": Turns(("[INST]", "[/INST]"), ("", _EOS), None, "", _BOS),
    "mistral-v7": Turns(
        ("[INST] ", "[/INST]"), (" ", _EOS), ("[SYSTEM_PROMPT] ", "[/SYSTEM_PROMPT]"), "", _BOS
    ),
    "mistral-v7-tekken": Turns(
        ("[INST]", "[/INST]"), ("", _EOS), ("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"), "", _BOS
    ),
    "zephyr": Turns(
        ("<|user|>\n", _EOS + "\n"), ("<|assistant|>\n", _EOS + "\n"), ("<|system|>\n", _EOS + "\n"),
        "<|assistant|>\n", trim=False,
    ),
    "falcon3": Turns(
        ("<|user|>\n", "\n"), ("<|assistant|>\n", _EOS + "\n"), ("<|system|>\n", "\n"), "<|assistant|>\n", trim=False
    ),
    "vicuna": Turns(("USER: ", "\n"), ("ASSISTANT: ", _EOS + "\n"), ("", "\n\n"), "ASSISTANT:", _BOS),
    "openchat": Turns(
        ("GPT4 Correct User: ", "<|end_of_turn|>"), ("GPT4 Correct Assistant: ", "<|end_of_turn|>"),
        ("", "<|end_of_turn|>"), "GPT4 Correct Assistant:", _BOS,
    ),
    "deepseek": Turns(
        ("### Instruction:\n", "\n"), ("### Response:\n", "\n<|EOT|>\n"), ("", ""), "### Response:\n", _BOS
    ),
    "deepseek2": Turns(("User: ", "\n\n"), ("Assistant: ", _EOS), ("", "\n\n"), "Assistant:", _BOS),
    "deepseek3": Turns(
        ("<\uff5cUser\uff5c>", ""), ("<\uff5cAssistant\uff5c>", _EOS), ("", "\n\n"), "<\uff5cAssistant\uff5c>", _BOS
    ),
    "command-r": Turns(
        ("<|START_OF_TURN_TOKEN|><|USER_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
        ("<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
        ("<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
        "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>", _BOS,
    ),
    "chatglm4": Turns(
        ("<|user|>\n", ""), ("<|assistant|>\n", ""), ("<|system|>\n", ""), "<|assistant|>\n", "[gMASK]<sop>", trim=False
    ),
    "granite": Turns(
        ("<|start_of_role|>user<|end_of_role|>", "<|end_of_text|>\n"),
        ("<|start_of_role|>assistant<|end_of_role|>", "<|end_of_text|>\n"),
        ("<|start_of_role|>system<|end_of_role|>", "<|end_of_text|>\n"),
        "<|start_of_role|>assistant<|end_of_role|>", trim=False,
    ),
    "exaone3": Turns(
        ("[|user|]", "\n"), ("[|assistant|]", "[|endofturn|]\n"), ("[|system|]", "[|endofturn|]\n"), "[|assistant|]"
    ),
    "rwkv-world": Turns(("User: ", "\n\n"), ("Assistant: ", "\n\n"), ("System: ", "\n\n"), "Assistant:"),
}  # fmt: skip

_LLAMA2 = """\
{%- set said = namespace(system='') -%}
{%- for message in messages -%}
{%- set text = message.content | trim -%}
{%- if message.role in ('system', 'developer') -%}
{%- set said.system = '<<SYS>>\\n' + text + '\\n<</SYS>>\\n\\n' -%}
{%- elif message.role == 'assistant' -%}
{{- ' ' + text + ' ' + eos_token -}}
{%- else -%}
{{- bos_token + '[INST] ' + said.system + text + ' [/INST]' -}}
{%- set said.system = '' -%}
{%- endif -%}
{%- endfor -%}
"""
_OTHERS = {"llama2": _LLAMA2}
_SAME = {"mistral": "mistral-v3", "gpt-chatml": "chatml", "llama2-sys": "llama2", "glm4": "chatglm4"}
_STOPS = {PLAIN: "\nUser:", "rwkv-world": "\n\nUser:", "deepseek2": "\n\nUser:", "vicuna": "\nUSER:"}
"""What ends a reply where turns do not end with a token."""


def names() -> list[str]:
    """What there is."""
    return sorted([*_TABLE, *_OTHERS, *_SAME])


def builtin_source(name: str) -> str:
    """The template of a name; ConfigError for one that is not there."""
    name = _SAME.get(name, name)
    if name in _OTHERS:
        return _OTHERS[name]
    if name not in _TABLE:
        raise ConfigError(f"there is no chat template {name!r}: known are {', '.join(names())}")
    return _template(_TABLE[name])


def builtin_stops(name: str, controls: Collection[str]) -> tuple[str, ...]:
    """The texts that end a reply in the format of a name, for a vocabulary with these control tokens: the next turn, or
    the end of this one where it is no token there."""
    name = _SAME.get(name, name)
    end = re.sub(r"\{\{.*?\}\}", "", _TABLE[name].assistant[1]).strip() if name in _TABLE else ""
    return tuple(text for text in (_STOPS.get(name, ""), end) if text and text not in controls)


def _template(turns: Turns) -> str:
    text = "message.content | trim" if turns.trim else "message.content"
    if turns.system is None:
        system = "{%- set said.system = " + text + " -%}"
        user = "{{- said.system + " + repr(turns.join) + " if said.system else '' -}}"
    else:
        system, user = _around(turns.system, text), ""
    return (
        "{%- set said = namespace(system='') -%}"
        + _literal(turns.begin)
        + "{%- for message in messages -%}{%- if message.role in ('system', 'developer') -%}"
        + system
        + "{%- elif message.role == 'assistant' -%}"
        + _around(turns.assistant, text)
        + "{%- else -%}"
        + _literal(turns.user[0])
        + user
        + "{%- set said.system = '' -%}"
        + "{{- "
        + text
        + " -}}"
        + _literal(turns.user[1])
        + "{%- endif -%}{%- endfor -%}{%- if add_generation_prompt -%}"
        + _literal(turns.ask)
        + "{%- endif -%}"
    )


def _around(texts: tuple[str, str], text: str) -> str:
    return _literal(texts[0]) + "{{- " + text + " -}}" + _literal(texts[1])


def _literal(text: str) -> str:
    """A piece of a template that writes this text, and the tokens that it names."""
    pieces = re.split(r"(\{\{ \w+ \}\})", text)
    return "".join(
        "{{- " + (piece[3:-3] if piece in (_BOS, _EOS) else repr(piece)) + " -}}" for piece in pieces if piece
    )
