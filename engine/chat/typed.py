"""Parameters' texts as JSON, by what the tool's schema says of them."""

from __future__ import annotations

import json
from typing import Any

from mixkv.engine.chat.schemas import Schema, fits, properties, resolved, types
from mixkv.engine.chat.values import JSON, MAX_DEPTH, PYTHON, to_json
from mixkv.kernels.errors import NoMatch

STRING = frozenset(["string"])
ITEM = "item"
"""The tag of a list's elements, where values are tags."""


def allowed_types(schema: Any, root: Schema) -> frozenset[str]:
    """The types of a parameter: a string where nothing is said."""
    return types(schema, root) or STRING


def typed_value(text: str, allowed: frozenset[str]) -> str:
    """A text as JSON of one of the types, or as a string where it is none."""
    for dialect in (JSON, PYTHON):
        found = to_json(text, dialect)
        if found is not None and ("string" not in allowed or fits(json.loads(found), allowed - STRING)):
            return found
    return json.dumps(text, ensure_ascii=False)


def nested_value(text: str, mark: str, schema: Any, root: Schema) -> str:
    """A text of tags as JSON: <mark><a>1<mark></a> is an object, <mark><item>1<mark></item> a list. NoMatch where the
    tags do not match."""
    head, *pieces = text.split(mark)
    if not pieces:
        return typed_value(text, allowed_types(schema, root))
    if head.strip():
        raise NoMatch
    pieces.reverse()
    value = _tags(pieces, mark, schema, root, 0)
    if pieces:
        raise NoMatch
    return value


def _tags(pieces: list[str], mark: str, schema: Any, root: Schema, depth: int) -> str:
    """The tags from the last of the pieces on, up to one that closes more than they opened."""
    keys: list[str] = []
    values: list[str] = []
    known, items = properties(schema, root), resolved(schema, root).get("items")
    while pieces and not pieces[-1].startswith("</"):
        name, closed, text = pieces.pop().removeprefix("<").partition(">")
        inner = items if name == ITEM and name not in known else known.get(name)
        if not closed or not pieces or depth == MAX_DEPTH:
            raise NoMatch
        if pieces[-1].startswith("</"):
            values.append(typed_value(text, allowed_types(inner, root)))
        elif text.strip():
            raise NoMatch
        else:
            values.append(_tags(pieces, mark, inner, root, depth + 1))
        if not pieces or pieces.pop().rstrip() != f"</{name}>":
            raise NoMatch
        keys.append(name)
    if keys and all(key == ITEM for key in keys) and ITEM not in known:
        return f"[{', '.join(values)}]"
    return "{" + ", ".join(f"{json.dumps(k, ensure_ascii=False)}: {v}" for k, v in zip(keys, values, strict=True)) + "}"
