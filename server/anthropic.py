"""Anthropic's form of a conversation as the one that LLM.chat takes."""

from __future__ import annotations

import json
from typing import Any

from mixkv.server.body import Fields, Json, kind
from mixkv.server.errors import ApiError

CHOICES = {"auto": "auto", "any": "required", "none": "none"}
BILLING = "x-anthropic-billing-header"
"""A client's block of the system prompt that begins with this changes with every request: no prefix would be reused."""


def chat_arguments(fields: Fields) -> Json:
    """The arguments of LLM.chat but those of sampling. ApiError says which message or block is wrong."""
    given = fields.list("messages")
    if not given:
        raise ApiError(400, "messages is missing or empty: give a list", param="messages")
    messages = _system(fields.any("system"))
    for i, message in enumerate(given):
        if not isinstance(message, dict):
            raise ApiError(400, f"messages.{i} must be an object, not {kind(message)}", param="messages")
        messages += _messages(message, f"messages.{i}")
    tools = [_tool(tool, i) for i, tool in enumerate(fields.list("tools") or [])]
    return {
        "messages": messages, "tools": tools or None, "tool_choice": _choice(fields.object("tool_choice")),
        "enable_thinking": _thinking(fields.object("thinking")),
    }  # fmt: skip


def _system(given: object) -> list[Json]:
    if given is None:
        return []
    blocks = [{"type": "text", "text": given}] if isinstance(given, str) else given
    if not isinstance(blocks, list):
        raise ApiError(400, f"system must be a string or a list of text blocks, not {kind(given)}", param="system")
    texts = [_text(block, f"system.{i}") for i, block in enumerate(blocks)]
    texts = [text for text in texts if not text.startswith(BILLING)]
    return [{"role": "system", "content": "\n".join(texts)}] if texts else []


def _text(block: object, where: str) -> str:
    if isinstance(block, dict) and block.get("type") == "text" and isinstance(block.get("text"), str):
        return str(block["text"])
    named = block.get("type") if isinstance(block, dict) else kind(block)
    raise ApiError(400, f"{where}: this program reads text blocks alone, not {str(named)[:40]!r}")


def _messages(message: Json, where: str) -> list[Json]:
    """A message as one or, where it brings results of tools, several."""
    role, content = message.get("role"), message.get("content")
    if role not in ("user", "assistant", "system"):
        raise ApiError(400, f"{where}.role must be 'user' or 'assistant'", param="messages")
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    if not isinstance(content, list) or not content:
        raise ApiError(400, f"{where}.content must be a string or a list of blocks that is not empty", param="messages")
    results: list[Json] = []
    calls: list[Json] = []
    texts: list[str] = []
    thoughts: list[str] = []
    for i, block in enumerate(content):
        at = f"{where}.content.{i}"
        name = block.get("type") if isinstance(block, dict) else None
        if name == "tool_result" and role == "user":
            results.append(_result(block, at))
        elif name == "tool_use" and role == "assistant":
            calls.append(_call(block, at))
        elif name == "thinking" and role == "assistant":
            thoughts.append(_string(block, "thinking", at))
        elif name == "redacted_thinking" and role == "assistant":
            continue
        else:
            texts.append(_text(block, at))
    out: Json = {"role": role, "content": "\n".join(texts)}
    if thoughts:
        out["reasoning_content"] = "\n".join(thoughts)
    if calls:
        out["tool_calls"] = calls
    return results if results and not texts else [*results, out]


def _string(block: Json, name: str, where: str) -> str:
    if not isinstance(block.get(name), str):
        raise ApiError(400, f"{where}.{name} must be a string, not {kind(block.get(name))}")
    return str(block[name])


def _result(block: Json, where: str) -> Json:
    content = block.get("content", "")
    if content is None or isinstance(content, str):
        text = content or ""
    elif isinstance(content, list):
        text = "\n".join(_text(part, f"{where}.content.{i}") for i, part in enumerate(content))
    else:
        raise ApiError(400, f"{where}.content must be a string or a list of text blocks, not {kind(content)}")
    if block.get("is_error") is True:
        text = f"Error: {text}"
    return {"role": "tool", "tool_call_id": _string(block, "tool_use_id", where), "content": text}


def _call(block: Json, where: str) -> Json:
    if not isinstance(block.get("input"), dict):
        raise ApiError(400, f"{where}.input must be an object, not {kind(block.get('input'))}")
    function = {"name": _string(block, "name", where), "arguments": json.dumps(block["input"], ensure_ascii=False)}
    return {"id": _string(block, "id", where), "type": "function", "function": function}


def _tool(tool: object, i: int) -> Json:
    if not isinstance(tool, dict):
        raise ApiError(400, f"tools.{i} must be an object, not {kind(tool)}", param="tools")
    if tool.get("type", "custom") not in (None, "custom"):
        raise ApiError(400, f"tools.{i}: tools that the server runs ({str(tool['type'])[:40]!r}) are not there")
    function = {"name": _string(tool, "name", f"tools.{i}"), "parameters": tool.get("input_schema")}
    if not isinstance(function["parameters"], dict):
        raise ApiError(400, f"tools.{i}.input_schema must be an object, not {kind(function['parameters'])}")
    if tool.get("description") is not None:
        function["description"] = _string(tool, "description", f"tools.{i}")
    return {"type": "function", "function": function}


def _choice(choice: Json | None) -> Any:
    if choice is None:
        return None
    if choice.get("type") == "tool":
        return {"type": "function", "function": {"name": _string(choice, "name", "tool_choice")}}
    named = choice.get("type")
    if not isinstance(named, str) or named not in CHOICES:
        raise ApiError(400, "tool_choice.type must be 'auto', 'any', 'tool' or 'none'", param="tool_choice")
    return CHOICES[named]


def _thinking(thinking: Json | None) -> bool | None:
    if thinking is None:
        return None
    named = thinking.get("type")
    if named not in ("enabled", "disabled", "adaptive"):
        raise ApiError(400, "thinking.type must be 'enabled', 'disabled' or 'adaptive'", param="thinking")
    return {"enabled": True, "disabled": False}.get(named)
