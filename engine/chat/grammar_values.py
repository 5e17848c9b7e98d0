"""Values in a grammar: JSON by its schema, and the literals of other languages by as much of it as they can hold."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from mixkv.engine.chat.patterns import Keywords
from mixkv.engine.chat.schemas import Schema, properties, required, resolved, types
from mixkv.engine.chat.values import Dialect
from mixkv.kernels.errors import ConfigError

ANY_TEXT = "/(?s:.*)/"
ANY_NAME = "/[a-zA-Z_][a-zA-Z0-9_]{0,63}/"
EMPTY = '""'
MAX_DEPTH, MAX_RULES = 16, 4096
"""Values within each other, and rules of a grammar: more is a schema that refers to itself."""


class Rules:
    """The rules of a grammar that is being written. specials: texts that are tokens of their own."""

    def __init__(self, specials: Mapping[str, int]) -> None:
        self.lines: list[str] = []
        self._specials = specials
        texts = sorted((text for text in specials if text), key=len, reverse=True)
        self._split = re.compile("(" + "|".join(map(re.escape, texts)) + ")") if texts else None

    def add(self, body: str, options: str = "") -> str:
        """A new rule's name."""
        if len(self.lines) == MAX_RULES:
            raise ConfigError("the tools' schemas are too large to force a call in this model's format")
        name = f"r{len(self.lines)}"
        self.lines.append(f"{name}{options}: {body}")
        return name

    def _parts(self, text: str) -> list[str]:
        parts = self._split.split(text) if self._split else [text]
        return [
            f"<[{self._specials[part]}]>" if part in self._specials else json.dumps(part, ensure_ascii=False)
            for part in parts
            if part
        ]

    def literal(self, text: str) -> str:
        """A text, of special tokens where those are in it."""
        return " ".join(self._parts(text))

    def until(self, close: str) -> str:
        """Any text up to another, and that."""
        first, *rest = self._parts(close)
        if first.startswith("<["):
            return " ".join([ANY_TEXT, first, *rest])
        return " ".join([self.add(ANY_TEXT, f"[suffix={first}]"), *rest])

    def either(self, texts: Iterable[str]) -> str:
        return "(" + " | ".join(map(self.literal, texts)) + ")"


def json_value(schema: Any, root: Schema, of: str | None = None) -> str:
    """A value by its schema, with the definitions that stand in the root. of: its type, where the schema says none."""
    whole = dict(schema) if isinstance(schema, dict) else {}
    if of and not types(whole, root):
        whole["type"] = of
    whole |= {key: root[key] for key in ("$defs", "definitions") if key in root}
    return f"%json {json.dumps(whole)}"


def keywords(rules: Rules, form: Keywords, root: Schema) -> str:
    """A Python call's arguments."""
    known = properties(root, root)
    if not known:
        pair = f'{ANY_NAME} "=" {_any(rules, form.dialect)}'
        return f'({pair} (", " {pair})*)? {rules.literal(form.end)}'
    values = {
        key: f"{rules.literal(key + '=')} {literal_value(rules, form.dialect, inner, root)}"
        for key, inner in known.items()
    }
    return f"{_listed(rules, values, required(root, root), ', ')} {rules.literal(form.end)}"


def literal_value(
    rules: Rules, dialect: Dialect, schema: Any, root: Schema, of: str | None = None, depth: int = 0
) -> str:
    """A value in a language's literals. Held are the schema's types, properties, enums, items and what is required."""
    schema = resolved(schema, root)
    if depth > MAX_DEPTH:
        raise ConfigError(
            "a tool's schema is too deep, or refers to itself: a call of it cannot be forced in this format"
        )
    options = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if isinstance(options, list):
        return rules.either(text for option in options for text in _written(dialect, option))
    for word in ("anyOf", "oneOf"):
        if isinstance(schema.get(word), list):
            inner = (literal_value(rules, dialect, option, root, of, depth + 1) for option in schema[word])
            return rules.add(" | ".join(inner))
    allowed = types(schema, root) or (frozenset([of]) if of else frozenset())
    if not allowed:
        return _any(rules, dialect)
    return rules.add(" | ".join(_of_type(rules, dialect, name, schema, root, depth) for name in sorted(allowed)))


def _of_type(rules: Rules, dialect: Dialect, name: str, schema: Schema, root: Schema, depth: int) -> str:
    if name in ("integer", "number"):
        return json_value({key: value for key, value in schema.items() if key != "type"} | {"type": name}, {})
    if name == "string":
        return _string(rules, dialect)
    if name in ("boolean", "null"):
        words = {"boolean": (True, False), "null": (None,)}[name]
        return rules.either(text for word in words for text in _written(dialect, word))
    if name == "array":
        item = rules.add(literal_value(rules, dialect, schema.get("items", {}), root, None, depth + 1))
        return f'"[" ({item} ("," /[ ]?/ {item})*)? "]"'
    known = properties(schema, root)
    if not known:
        return _any_object(rules, dialect)
    values = {
        key: f"{_key(rules, dialect, key)} {literal_value(rules, dialect, inner, root, None, depth + 1)}"
        for key, inner in known.items()
    }
    return f'"{{" {_listed(rules, values, required(schema, root), "," if dialect.bare_keys else ", ")} "}}"'


def _listed(rules: Rules, values: Mapping[str, str], needed: frozenset[str], comma: str) -> str:
    """Values in their order with commas between them; those that are not needed may be left out."""
    first = later = EMPTY
    for key, value in reversed(list(values.items())):
        value = rules.add(value)
        alone, after = f"{value} {later}", f"{rules.literal(comma)} {value} {later}"
        maybe = key not in needed
        first, later = rules.add(alone + f" | {first}" * maybe), rules.add(after + f" | {later}" * maybe)
    return first


def _string(rules: Rules, dialect: Dialect) -> str:
    if not dialect.escapes:
        return f"{rules.literal(dialect.quotes[0])} {rules.until(dialect.quotes[0])}"
    return "(" + " | ".join(rf"/{quote}([^{quote}\\\n]|\\.)*{quote}/" for quote in dialect.quotes) + ")"


def _key(rules: Rules, dialect: Dialect, key: str) -> str:
    return rules.literal(f"{key}:") if dialect.bare_keys else f"{rules.either(_written(dialect, key))} /: ?/"


def _written(dialect: Dialect, value: Any) -> list[str]:
    """A value as the language writes it; models mix Python's literals with JSON."""
    if isinstance(value, str) and not dialect.escapes:
        return [dialect.quotes[0] + value + dialect.quotes[0]]
    as_json = json.dumps(value, ensure_ascii=False)
    return [as_json] if dialect.bare_keys else list(dict.fromkeys([repr(value), as_json]))


def _any(rules: Rules, dialect: Dialect) -> str:
    """A value of which nothing is known: a text, a number or a word."""
    words = rules.either(text for word in (True, False, None) for text in _written(dialect, word))
    return f"({_string(rules, dialect)} | {json_value({'type': 'number'}, {})} | {words})"


def _any_object(rules: Rules, dialect: Dialect) -> str:
    key = ANY_NAME if dialect.bare_keys else _string(rules, dialect)
    pair = f"{key} /: ?/ {_any(rules, dialect)}"
    return f'"{{" ({pair} ("," /[ ]?/ {pair})*)? "}}"'
