"""What goes wrong, as clients of the interface in hand expect to read it: one line, and the right status."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from mixkv.kernels.errors import (
    ConfigError,
    ContextFullError,
    InputError,
    OutOfMemoryError,
    PromptTooLongError,
    TemplateError,
    TokenizerError,
)

RETRY_SECONDS = 2
_TYPES = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
    405: "invalid_request_error", 413: "request_too_large", 501: "not_supported_error", 503: "overloaded_error",
}  # fmt: skip


class Gone(Exception):
    """Nobody waits for an answer any more."""


class ApiError(Exception):
    """An answer that is an error. param: the field that is wrong; more: further fields of the answer."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, type: str | None = None,
        more: Mapping[str, Any] | None = None, headers: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(message)
        self.status, self.param, self.code = status, param, code
        self.message = " ".join(message.split())[:1000]
        self.type = type or _TYPES.get(status, "server_error")
        self.more, self.headers = dict(more or {}), dict(headers or {})
        if status == 503:
            self.headers.setdefault("Retry-After", str(RETRY_SECONDS))

    def body(self, anthropic: bool = False) -> dict[str, Any]:
        """The answer's object, in OpenAI's form or in Anthropic's."""
        if anthropic:
            kind = "api_error" if self.status == 500 else _TYPES.get(self.status, "invalid_request_error")
            return {"type": "error", "error": {"type": kind, "message": self.message, **self.more}}
        shown = {"message": self.message, "type": self.type, "param": self.param, "code": self.code or self.status}
        return {"error": {**shown, **self.more}}

    def response(self, anthropic: bool = False) -> Response:
        return JsonResponse(self.body(anthropic), self.status, self.headers)


class JsonResponse(Response):
    """JSON as UTF-8. Half a surrogate pair, which a request's strings may hold, becomes a question mark."""

    media_type = "application/json"

    def __init__(self, body: object, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(to_json(body), status, headers)


def to_json(body: object) -> bytes:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode("utf-8", "replace")


def api_error(error: BaseException) -> ApiError:
    """What a client is told of an error of the engine. What is our own mistake is not told in words."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, PromptTooLongError):
        return ApiError(
            400, f"the prompt has {error.n_prompt_tokens} tokens, but the context holds {error.n_ctx}",
            type="exceed_context_size_error", code="context_length_exceeded",
            more={"n_prompt_tokens": error.n_prompt_tokens, "n_ctx": error.n_ctx},
        )  # fmt: skip
    if isinstance(error, ConfigError | InputError | TemplateError | TokenizerError | ContextFullError):
        named = re.match(r"(\w+) = ", str(error))
        return ApiError(400, str(error), param=named[1] if named else None)
    if isinstance(error, OutOfMemoryError | MemoryError):
        return ApiError(503, str(error) or "out of memory", type="out_of_memory_error")
    return ApiError(500, "internal error: the server's own output says more")
