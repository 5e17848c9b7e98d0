"""Grammars that hold a reply to calls of tools: the patterns that calls are read by, written for llguidance."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mixkv.engine.chat import patterns as p
from mixkv.engine.chat.grammar_values import ANY_TEXT, MAX_DEPTH, Rules, json_value, keywords, literal_value
from mixkv.engine.chat.schemas import Schema, functions, properties, required, resolved
from mixkv.engine.chat.typed import ITEM, allowed_types
from mixkv.engine.chat.values import JSON
from mixkv.kernels.errors import ConfigError

if TYPE_CHECKING:
    from mixkv.engine.chat.formats import ReplyFormat

MARKS = {p.SPACES: r"/[ \n]{0,9}/", p.WORD: "/[a-zA-Z0-9_.-]{1,64}/", p.DIGITS: "/[0-9]{1,4}/"}


def tool_grammar(
    format: ReplyFormat, tools: Sequence[dict[str, Any]], choice: str | dict[str, Any], specials: Mapping[str, int]
) -> str:
    """See ReplyFormat.tool_grammar."""
    known = functions(tools)
    named = choice.get("function", {}).get("name") if isinstance(choice, dict) else None
    if not format.calls:
        raise ConfigError("the model's chat template shows no way to call tools: tool_choice may be auto or none")
    if not known:
        raise ConfigError("tool_choice forces a call, but there are no tools")
    if named is None and choice != "required":
        raise ConfigError(f'tool_choice {choice!r} forces no call: "required" or a function does')
    if named is not None and named not in known:
        raise ConfigError(f"tool_choice names {named!r}, which is none of the tools: {', '.join(known)}")
    rules, form = Rules(specials), format.calls[0]
    wanted = {name: schema for name, schema in known.items() if named in (None, name)}
    call = rules.add(" | ".join(_pattern(rules, form.call, name, schema) for name, schema in wanted.items()))
    begin, end, between = (_pattern(rules, part, "", {}) for part in (form.begin, form.end, form.between))
    spaces = "" if form.first or form.literal[:1].isspace() else MARKS[p.SPACES]
    if named is not None or form.first:
        calls = f"{begin} {call} {end}"
    elif form.begin and form.end:
        calls = f"({begin} {call} ({between} {call})* {end} {spaces})+"
    else:
        calls = f"({begin} {call} {end} {spaces})+"
    again = f"({rules.literal(format.again)})?" if format.again else ""
    return "\n".join(["%llguidance {}", f"start: {again} {spaces} {calls}", *rules.lines, ""])


def _pattern(rules: Rules, pattern: p.Pattern, name: str, schema: Schema) -> str:
    """A pattern as part of a rule; what it says of the function is said of this one."""
    return " ".join(_element(rules, element, name, schema) for element in pattern)


def _element(rules: Rules, element: p.Element, name: str, schema: Schema) -> str:
    if isinstance(element, str):
        return rules.literal(element)
    if isinstance(element, p.Maybe):
        return f"({_pattern(rules, element.pattern, name, schema)})?"
    if isinstance(element, p.OneOf):
        texts = " | ".join(rules.literal(text) for text in element.texts if text)
        return f"({texts})" + "?" * ("" in element.texts)
    if isinstance(element, p.Identity):
        return _pattern(rules, element.pattern, name, schema)
    if isinstance(element, p.Arguments):
        if element.dialect == JSON:
            return json_value(schema, schema, of="object")
        return literal_value(rules, element.dialect, schema, schema, of="object")
    if isinstance(element, p.Keywords):
        return keywords(rules, element, schema)
    if isinstance(element, p.Parameters):
        return _parameters(rules, element, schema)
    if isinstance(element, p.CallObject):
        return _object(rules, element, name, schema)
    return rules.literal(name) if element is p.NAME else MARKS[element]


def _object(rules: Rules, form: p.CallObject, name: str, schema: Schema) -> str:
    quoted = json.dumps(name, ensure_ascii=False)
    named = f'"{form.name}": {quoted}, "{form.arguments[0]}": '
    if form.keyed:
        head = rules.literal(f"{{{quoted}: ")
    elif form.early_id:
        head = " ".join([rules.literal(f'{{"{form.id}": "'), MARKS[p.DIGITS], rules.literal('", ' + named)])
    else:
        head = rules.literal("{" + named)
    return f'{head} {json_value(schema, schema, of="object")} "}}"'


def _parameters(rules: Rules, form: p.Parameters, root: Schema) -> str:
    known = properties(root, root)
    parts = [
        part if key in required(root, root) else f"({part})?"
        for key, schema in known.items()
        for part in [_parameter(rules, form, rules.literal(form.open + key), key, schema, root)]
    ]
    if not known:
        any_key = f"{rules.literal(form.open)} {MARKS[p.WORD]}"
        parts = [f"({_parameter(rules, form, any_key, '', {}, root)})*"]
    return f"{MARKS[p.SPACES]} {' '.join(parts)} {rules.literal(form.last)}"


def _parameter(rules: Rules, form: p.Parameters, opened: str, key: str, schema: Any, root: Schema) -> str:
    """One parameter, with the spaces after it. opened: its beginning, with the key."""
    allowed = allowed_types(schema, root)
    newline = "\n" if form.trimmed else ""
    close = newline + form.close[-1].replace("{key}", key)
    options = resolved(schema, root).get("enum")
    if "string" not in allowed and form.nested:
        value = f"{_nested(rules, form.nested, schema, root)} {rules.literal(close)}"
    elif "string" not in allowed:
        value = f"{json_value(schema, root)} {rules.literal(close)}"
    elif isinstance(options, list):
        value = f"{rules.either(o if isinstance(o, str) else json.dumps(o) for o in options)} {rules.literal(close)}"
    else:
        value = rules.until(close)
    said = ""
    if form.typed:
        word = "string" if "string" in allowed else min(allowed).replace("integer", "number")
        if "string=" in form.typed:
            word = "true" if word == "string" else "false"
        said = rules.literal(form.typed + word)
    mid = _pattern(rules, form.mid, "", {})
    return f"{opened} {said} {mid} {rules.literal(newline)} {value} {MARKS[p.SPACES]}"


def _nested(rules: Rules, mark: str, schema: Any, root: Schema, depth: int = 0) -> str:
    """A value whose objects and lists are tags."""
    known, items = properties(schema, root), resolved(schema, root).get("items")
    if not known and items is None:
        return json_value(schema, root) if "string" not in allowed_types(schema, root) else ANY_TEXT

    def tag(key: str, inner: Any) -> str:
        opened, close = rules.literal(f"{mark}<{key}>"), f"{mark}</{key}>"
        if "string" in allowed_types(inner, root):
            return f"{opened} {rules.until(close)}"
        return f"{opened} {_nested(rules, mark, inner, root, depth + 1)} {rules.literal(close)}"

    if depth > MAX_DEPTH:
        raise ConfigError(
            "a tool's schema is too deep, or refers to itself: a call of it cannot be forced in this format"
        )
    if not known:
        return rules.add(f"({tag(ITEM, items)})*")
    needed = required(schema, root)
    tags = (tag(key, inner) if key in needed else f"({tag(key, inner)})?" for key, inner in known.items())
    return rules.add(" ".join(tags))
