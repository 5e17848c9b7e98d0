"""Functions of a Python file as tools: their JSON schemas, from annotations and docstrings, and their calls.

Know before you change this room: what a function raises is a result, which the model reads; only Ctrl-C is the user's.
A function's own mistakes are found when its file is loaded: annotations that no schema can say are refused by name.
"""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import json
import re
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from mixkv.kernels.errors import InputError

Json = dict[str, Any]
KINDS: dict[Any, str] = {
    str: "string", int: "integer", float: "number", bool: "boolean", list: "array", dict: "object", type(None): "null",
}  # fmt: skip
LONGEST = 65536
"""Characters of a result; what is longer is cut."""


@dataclass(frozen=True)
class Tool:
    """A function and its schema, as OpenAI's API has them."""

    function: Callable[..., Any]
    schema: Json

    @property
    def name(self) -> str:
        return str(self.schema["function"]["name"])

    def call(self, arguments: str) -> str:
        """The result of a call as text, or what went wrong. arguments: JSON text of an object."""
        try:
            values = json.loads(arguments or "{}")
        except (ValueError, RecursionError) as error:
            return f"error: the arguments are not JSON ({error})"
        wrong = _mismatch(values, self.schema["function"]["parameters"])
        if wrong:
            return f"error: {wrong}"
        try:
            result = self.function(**values)
            if inspect.isawaitable(result):
                result = asyncio.run(_wait(result))
            text = result if isinstance(result, str) else json.dumps(result, ensure_ascii=False, default=str)
        except (Exception, SystemExit) as error:
            text = f"error: {type(error).__name__}: {error}"
        return text if len(text) <= LONGEST else f"{text[:LONGEST]} ... (cut: {len(text)} characters)"


def load_tools(path: Path) -> dict[str, Tool]:
    """The public functions that a Python file defines, by name; the file is run. InputError says what is wrong."""
    if not path.is_file():
        raise InputError(
            f"{path} is {'not a file' if path.exists() else 'not there'}: give a Python file with functions"
        )
    name = f"mixkv_tools_{re.sub(r'[^0-9A-Za-z]', '_', path.stem)}"
    spec = importlib.util.spec_from_loader(name, loader=None, origin=str(path))
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    module.__file__ = str(path)
    sys.modules[name] = module  # annotations are looked up there
    try:
        exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        where = f", line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        raise InputError(f"{path}{where}: {type(error).__name__}: {error}") from None
    found = [
        value for key, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == name and not key.startswith("_")
    ]  # fmt: skip
    if not found:
        raise InputError(f"{path} defines no functions whose names begin with a letter: there is nothing to call")
    return {function.__name__: Tool(function, schema_of(function)) for function in found}


def schema_of(function: Callable[..., Any]) -> Json:
    """{"type": "function", "function": {name, description, parameters}} of a function. InputError for parameters that
    cannot be given by name, and for annotations that are no JSON.

    str, int, float, bool, list, dict, list[T], dict[str, T], Literal, Optional and unions of them; Annotated[T, "text"]
    and lines "name: text" of the docstring describe a parameter. Without an annotation: the default's type, or text.
    """
    where = f"{function.__name__}()"
    try:
        hints = get_type_hints(function, include_extras=True)
    except Exception as error:
        raise InputError(f"{where}: its annotations cannot be read: {error}") from None
    doc = inspect.getdoc(function) or ""
    properties: Json = {}
    required = []
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise InputError(f"{where}: the parameter {name} cannot be given by name: tools need such alone")
        has_default = parameter.default is not parameter.empty
        kind = type(parameter.default) if has_default and parameter.default is not None else str
        schema = _schema(hints.get(name, kind), f"{where}: the parameter {name}")
        described = re.search(rf"^[ \t:@*-]*(?:param )?`*{name}`*(?: *\([^)\n]*\))? *: *(\S.*)$", doc, re.MULTILINE)
        if described and "description" not in schema:
            schema["description"] = described[1].strip()
        if has_default:
            if _is_json(parameter.default):
                schema["default"] = parameter.default
        else:
            required.append(name)
        properties[name] = schema
    parameters: Json = {"type": "object", "properties": properties, "required": required}
    description = " ".join(doc.partition("\n\n")[0].split())
    return {
        "type": "function",
        "function": {"name": function.__name__, "description": description, "parameters": parameters},
    }


def _schema(hint: Any, where: str) -> Json:
    if hint is Any:
        return {}
    if hint in KINDS:
        return {"type": KINDS[hint]}
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        texts = [extra for extra in arguments[1:] if isinstance(extra, str)]
        return _schema(arguments[0], where) | ({"description": texts[0]} if texts else {})
    if origin is Literal and all(type(value) in (str, int, bool, type(None)) for value in arguments):
        kinds = {KINDS[type(value)] for value in arguments}
        return ({"type": kinds.pop()} if len(kinds) == 1 else {}) | {"enum": list(arguments)}
    if origin in (Union, types.UnionType):
        return {"anyOf": [_schema(argument, where) for argument in arguments]}
    if origin is list:
        return {"type": "array", "items": _schema(arguments[0], where)}
    if origin is dict and arguments[0] is str:
        return {"type": "object", "additionalProperties": _schema(arguments[1], where)}
    raise InputError(
        f"{where} has the type {getattr(hint, '__name__', hint)}: use str, int, float, bool, list, dict, Literal or "
        "Optional"
    )


def _mismatch(values: object, schema: Mapping[str, Any]) -> str:
    """What is wrong with the arguments, in a sentence; "" where they fit. Numbers such as 2.0 become whole ones."""
    if not isinstance(values, dict):
        return "the arguments must be an object"
    known = schema["properties"]
    for name in values:
        if name not in known:
            return f"there is no argument {name!r}; there are {', '.join(known) or 'none'}"
    for name in schema["required"]:
        if name not in values:
            return f"the argument {name!r} is missing"
    for name, value in values.items():
        if not _fits(value, known[name]):
            wanted = {key: known[name][key] for key in ("type", "enum", "anyOf", "items") if key in known[name]}
            return (
                f"the argument {name!r} is {json.dumps(value, ensure_ascii=False)}, but must fit {json.dumps(wanted)}"
            )
        if known[name].get("type") == "integer":
            values[name] = int(value)
    return ""


def _fits(value: Any, schema: Mapping[str, Any]) -> bool:
    if "anyOf" in schema:
        return any(_fits(value, inner) for inner in schema["anyOf"])
    if "enum" in schema and not any(value == one and type(value) is type(one) for one in schema["enum"]):
        return False
    kind = schema.get("type")
    if kind == "number":
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind == "integer":
        return not isinstance(value, bool) and (isinstance(value, int) or (isinstance(value, float) and value % 1 == 0))
    if kind is not None and KINDS[type(value)] != kind:
        return False
    if kind == "array" and "items" in schema:
        return all(_fits(item, schema["items"]) for item in value)
    if kind == "object" and "additionalProperties" in schema:
        return all(_fits(item, schema["additionalProperties"]) for item in value.values())
    return True


def _is_json(value: object) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


async def _wait(result: Any) -> Any:
    return await result


def shown_call(name: str, arguments: str) -> str:
    """A call as people read it: name(a=1, b="x")."""
    try:
        values = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        return f"{name}({arguments})"
    return f"{name}({', '.join(f'{key}={json.dumps(value, ensure_ascii=False)}' for key, value in values.items())})"
