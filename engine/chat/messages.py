"""What callers give as messages and tools, checked and brought into one shape, which templates then find.

Know before you change this room: most templates that fail elsewhere fail on what is sorted out here. Arguments of tool
calls arrive as JSON text and are wanted as an object (or the other way round); content arrives as parts and is wanted
as text (or the other way round); null content is wanted as "". What a template wants, template.py finds out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mixkv.engine.chat.reply import ChatMessage
from mixkv.kernels.errors import InputError

Message = Mapping[str, Any] | ChatMessage
Json = dict[str, Any]

ROLES = (
    "system", "developer", "user", "assistant", "tool", "function", "ipython", "observation", "environment", "context",
    "document",
)  # fmt: skip
"""Templates write roles into their tags, so that nothing else may stand there."""
_REASONING = ("reasoning_content", "reasoning", "thinking")


@dataclass(frozen=True)
class Wants:
    """How a template wants what can be said in several ways.

    parts: content as a list of text parts. null: the content of a message of calls as null, and not as "".
    text_arguments: a call's arguments as JSON text. short_ids: a call's id as 9 letters and digits.
    """

    parts: bool = False
    null: bool = False
    text_arguments: bool = False
    short_ids: bool = False


def checked_messages(messages: Sequence[Message]) -> list[Json]:
    """Messages as dicts of their own: role, content (text; null for calls alone), and what else they have; a call's
    arguments as the text or object that they came as, checked. InputError says which message is wrong."""
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise InputError('messages must be a list, such as [{"role": "user", "content": "Hello"}]')
    if not messages:
        raise InputError("messages is empty: give at least one, such as a user's")
    checked = [_message(message, f"message {i}") for i, message in enumerate(messages)]
    names: dict[str, str] = {}
    for message in checked:
        for call in message.get("tool_calls", ()):
            names[str(call.get("id"))] = call["function"]["name"]
        if message["role"] == "tool" and not message.get("name") and message.get("tool_call_id") in names:
            message["name"] = names[message["tool_call_id"]]  # some templates say whose result it is
    return checked


def shaped(messages: list[Json], wants: Wants) -> list[Json]:
    """The same messages as a template wants them."""
    return [_shaped(message, wants) for message in messages]


def checked_tools(tools: Sequence[Mapping[str, Any]] | None) -> list[Json] | None:
    """Tools as [{"type": "function", "function": {"name", ...}}]; None where there are none. A function alone is put
    into that shape."""
    if tools is None:
        return None
    if isinstance(tools, str | bytes | Mapping) or not isinstance(tools, Sequence):
        raise InputError('tools must be a list of {"type": "function", "function": {"name": ..., "parameters": ...}}')
    return [_tool(tool, f"tool {i}") for i, tool in enumerate(tools)] or None


def _message(given: Message, where: str) -> Json:
    if isinstance(given, ChatMessage):
        given = message_dict(given)
    if not isinstance(given, Mapping):
        raise InputError(f'{where} must be a dict such as {{"role": "user", "content": "Hello"}}, not {_kind(given)}')
    message: Json = {str(key): value for key, value in given.items()}
    role = message.get("role")
    if role not in ROLES:
        raise InputError(f"{where} has the role {_short(role)}: expected one of {', '.join(ROLES)}")
    where = f"{where} ({role})"
    thoughts = next((message[key] for key in _REASONING if message.get(key) is not None), None)
    for key in _REASONING:
        message.pop(key, None)
    if thoughts is not None:
        if not isinstance(thoughts, str):
            raise InputError(f"{where}: reasoning must be text, not {_kind(thoughts)}")
        message.update(dict.fromkeys(_REASONING, thoughts))  # templates know it by any of these
    calls = message.pop("tool_calls", None)
    if calls:
        if isinstance(calls, str | Mapping) or not isinstance(calls, Sequence):
            raise InputError(f"{where}: tool_calls must be a list, not {_kind(calls)}")
        message["tool_calls"] = [_call(call, f"{where}: call {i}") for i, call in enumerate(calls)]
    if message.get("content") is None and role != "assistant" and role != "tool":
        raise InputError(f"{where} has no content: give a text")
    content = _text(message.get("content"), where)
    message["content"] = None if "tool_calls" in message and not content else content
    return message


def _text(content: object, where: str) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        raise InputError(f"{where}: content must be text or a list of text parts, not {_kind(content)}")
    texts: list[str] = []
    for part in content:
        text = part.get("text") if isinstance(part, Mapping) else part
        kind = part.get("type", "text") if isinstance(part, Mapping) else "text"
        if kind not in ("text", "input_text", "output_text"):
            raise InputError(f"{where}: content has a part of type {_short(kind)}: this program reads text alone")
        if not isinstance(text, str):
            raise InputError(f'{where}: a part of the content must be {{"type": "text", "text": ...}}')
        texts.append(text)
    return "\n".join(texts)


def _call(given: object, where: str) -> Json:
    if not isinstance(given, Mapping):
        raise InputError(f"{where} must be a dict with a function, not {_kind(given)}")
    function = given.get("function", given)
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
        raise InputError(f'{where} must have a function with a name: {{"function": {{"name": ..., "arguments": ...}}}}')
    arguments = function.get("arguments")
    if arguments is None or arguments == "":
        arguments = "{}"
    call: Json = {"type": "function"} if "id" not in given else {"id": given["id"], "type": "function"}
    call["function"] = {"name": function["name"], "arguments": arguments}
    _object(arguments, where)
    return call


def _object(arguments: object, where: str) -> Json:
    """A call's arguments as an object."""
    value = arguments
    if isinstance(arguments, str):
        try:
            value = json.loads(arguments)
        except (ValueError, RecursionError):
            raise InputError(f"{where}: the arguments are not JSON: {_short(arguments)}") from None
    if not isinstance(value, Mapping):
        raise InputError(f"{where}: the arguments must be a JSON object, not {_kind(value)}")
    return dict(value)


def _shaped(message: Json, wants: Wants) -> Json:
    message = dict(message)
    if message["content"] is None and not wants.null:
        message["content"] = ""
    if wants.parts and message["content"] is not None:
        message["content"] = [{"type": "text", "text": message["content"]}] if message["content"] else []
    if "tool_calls" in message:
        message["tool_calls"] = [_shaped_call(call, wants) for call in message["tool_calls"]]
    if wants.short_ids and isinstance(message.get("tool_call_id"), str):
        message["tool_call_id"] = short_id(message["tool_call_id"])
    return message


def _shaped_call(call: Json, wants: Wants) -> Json:
    arguments: object = call["function"]["arguments"]
    if wants.text_arguments:
        arguments = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    else:
        arguments = _object(arguments, "a call")
    shaped = {**call, "function": {**call["function"], "arguments": arguments}}
    if wants.short_ids and isinstance(call.get("id"), str):
        shaped["id"] = short_id(call["id"])
    return shaped


def short_id(name: str) -> str:
    """An id of 9 letters and digits for an id of any form, always the same; one that is so already stays."""
    if len(name) == 9 and name.isascii() and name.isalnum():
        return name
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:9]


def _tool(given: object, where: str) -> Json:
    if not isinstance(given, Mapping):
        raise InputError(f"{where} must be a dict, not {_kind(given)}")
    if given.get("type", "function") != "function":
        raise InputError(f"{where} is of type {_short(given['type'])}: this program knows functions alone")
    function = given["function"] if "function" in given else {k: v for k, v in given.items() if k != "type"}
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
        raise InputError(f"{where} must have a function with a name")
    parameters = function.get("parameters")
    if parameters is not None and not isinstance(parameters, Mapping):
        raise InputError(f"{where} ({function['name'][:60]}): parameters must be a schema, not {_kind(parameters)}")
    return {"type": "function", "function": dict(function)}


def message_dict(message: ChatMessage) -> Json:
    """A reply as the dict that it is among later messages: role, content, and what else it has."""
    out: Json = {"role": message.role, "content": message.content}
    if message.reasoning is not None:
        out["reasoning_content"] = message.reasoning
    if message.tool_calls:
        out["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    return out


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _kind(value: object) -> str:
    return "null" if value is None else f"a {type(value).__name__}"
