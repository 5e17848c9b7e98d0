"""What a tool's JSON schema says of its arguments, as far as reading and writing calls needs it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

Schema = dict[str, Any]
MAX_REFERENCES = 16
TYPES = {
    str: "string", bool: "boolean", int: "integer", float: "number", dict: "object", list: "array", type(None): "null",
}  # fmt: skip


def functions(tools: Iterable[dict[str, Any]]) -> dict[str, Schema]:
    """The functions' names and the schemas of their arguments, in order."""
    found: dict[str, Schema] = {}
    for tool in tools:
        function = tool.get("function", tool)
        if isinstance(function, dict) and isinstance(function.get("name"), str) and function["name"]:
            parameters = function.get("parameters")
            found[function["name"]] = parameters if isinstance(parameters, dict) else {}
    return found


def resolved(schema: Any, root: Schema) -> Schema:
    """The schema that `$ref`s lead to, within the root; {} where they lead nowhere."""
    for _ in range(MAX_REFERENCES):
        if not isinstance(schema, dict):
            return {}
        reference = schema.get("$ref")
        if not isinstance(reference, str):
            return schema
        schema = root
        for part in reference.removeprefix("#").strip("/").split("/"):
            schema = schema.get(part) if part and isinstance(schema, dict) else schema
    return {}


def properties(schema: Any, root: Schema) -> Schema:
    """An object's properties and their schemas."""
    found = resolved(schema, root).get("properties")
    return found if isinstance(found, dict) else {}


def types(schema: Any, root: Schema) -> frozenset[str]:
    """The JSON types that a value may have; none where the schema does not say."""
    found: set[str] = set()
    seen: set[int] = set()
    waiting = [resolved(schema, root)]
    while waiting:
        schema = waiting.pop()
        if id(schema) in seen:
            continue
        seen.add(id(schema))
        said = schema.get("type")
        options = [schema[word] for word in ("anyOf", "oneOf", "allOf") if isinstance(schema.get(word), list)]
        if isinstance(said, str | list):
            found.update(name for name in ([said] if isinstance(said, str) else said) if isinstance(name, str))
        elif isinstance(schema.get("enum"), list):
            found |= type_names(schema["enum"])
        elif "const" in schema:
            found |= type_names([schema["const"]])
        elif options:
            waiting += [resolved(option, root) for option in options[0]]
        elif "properties" in schema or "items" in schema:
            found.add("object" if "properties" in schema else "array")
    return frozenset(found)


def type_names(values: Sequence[Any]) -> frozenset[str]:
    return frozenset(TYPES.get(type(value), "object") for value in values)


def fits(value: Any, allowed: frozenset[str]) -> bool:
    """Whether a value is of one of the types."""
    name = TYPES.get(type(value), "object")
    return name in allowed or (name == "integer" and "number" in allowed)


def required(schema: Any, root: Schema) -> frozenset[str]:
    """The properties that an object must have."""
    found = resolved(schema, root).get("required")
    return frozenset(name for name in found if isinstance(name, str)) if isinstance(found, list) else frozenset()
