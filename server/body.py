"""The JSON of a request: read within bounds, and taken apart with one line for each mistake."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, NoReturn

from starlette.requests import Request

from mixkv.server.errors import ApiError

MAX_DEPTH = 100
"""Arrays and objects within each other: what is computed from a request may go down into it."""
Json = dict[str, Any]
_KINDS = {
    str: "a string", bool: "a boolean", int: "a whole number", float: "a number", dict: "an object", list: "an array",
    type(None): "null",
}  # fmt: skip


def kind(value: object) -> str:
    """What a JSON value is, in words."""
    return _KINDS.get(type(value), "something else")


async def read_json(request: Request, max_body: int) -> Json:
    """The object in a request's body. ApiError: 413 for more than max_body bytes, 400 for what is not such JSON."""
    raw = bytearray()
    async for piece in request.stream():
        raw += piece
        if len(raw) > max_body:
            raise too_large(max_body)
    return parse(bytes(raw))


def too_large(max_body: int) -> ApiError:
    return ApiError(413, f"the request's body is larger than {max_body} bytes")


def parse(raw: bytes) -> Json:
    """JSON text as an object, as `read_json` does."""
    if not raw.strip():
        raise ApiError(400, "the request has no body: send a JSON object")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ApiError(400, f"the body is not UTF-8 (at byte {error.start})") from None
    try:
        value = json.loads(text, parse_constant=_no_number, parse_float=_float)
    except json.JSONDecodeError as error:
        raise ApiError(400, f"the body is not JSON: {error.msg} (line {error.lineno}, column {error.colno})") from None
    except RecursionError:
        raise too_deep() from None
    except ValueError:  # a whole number of thousands of digits
        raise ApiError(400, "the body has a number that is too large") from None
    if not isinstance(value, dict):
        raise ApiError(400, f"the body must be a JSON object, not {kind(value)}")
    _check_depth(value)
    return value


def too_deep() -> ApiError:
    return ApiError(400, f"the body has more than {MAX_DEPTH} arrays and objects within each other")


def _check_depth(value: object) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer if isinstance(outer, list) else ())
            if isinstance(inner, dict | list)
        ]
        if not level:
            return
    raise too_deep()


def _float(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _no_number(text)


def _no_number(text: str) -> NoReturn:
    raise ApiError(400, f"the body has {text[:20]} where a finite number is wanted")


class Fields:
    """A request's fields by their types; null is as good as left out. ApiError names the field that is wrong."""

    def __init__(self, body: Mapping[str, Any]) -> None:
        self._body = body

    def __contains__(self, name: str) -> bool:
        return self._body.get(name) is not None

    def any(self, name: str) -> Any:
        return self._body.get(name)

    def bool(self, name: str, default: bool = False) -> bool:
        return bool(self._of(name, bool, default))

    def text(self, name: str) -> str | None:
        value = self._of(name, str, None)
        return value if value is None else str(value)

    def object(self, name: str) -> Json | None:
        value: Json | None = self._of(name, dict, None)
        return value

    def list(self, name: str) -> list[Any] | None:
        value: list[Any] | None = self._of(name, list, None)
        return value

    def integer(self, name: str, default: int | None, low: int, high: int) -> int | None:
        """A whole number from low to high."""
        value = self.any(name)
        if value is None:
            return default
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ApiError(400, f"{name} must be a whole number from {low} to {high}", param=name)
        return value

    def _of(self, name: str, wanted: type, default: Any) -> Any:
        value = self.any(name)
        if value is None:
            return default
        if not isinstance(value, wanted):
            raise ApiError(400, f"{name} must be {kind(wanted())}, not {kind(value)}", param=name)
        return value
