"""Who is let in: keys, browsers of other pages, and bodies that are too large. ASGI, around the whole app."""

from __future__ import annotations

import hashlib
import hmac
import re
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mixkv.server.body import too_large
from mixkv.server.errors import ApiError, api_error
from mixkv.server.settings import ServerSettings

LOCAL = ("localhost", "127.0.0.1", "::1")
OPEN = ("/health", "/v1/health")
"""Pages for who watches over the process: without a key."""
ANTHROPIC = "/v1/messages"


class Guard:
    """Passes on what may pass; answers the rest itself."""

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self._app, self._settings = app, settings
        self._keys = [_digest(key.encode()) for key in settings.keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin")

        async def with_cors(message: Message) -> None:
            if message["type"] == "http.response.start" and origin is not None and self._is_local(origin):
                out = MutableHeaders(scope=message)
                out["Access-Control-Allow-Origin"] = origin
                out["Vary"] = "Origin"
            await send(message)

        try:
            self._check(scope, headers, origin)
        except ApiError as error:
            await error.response(scope["path"].startswith(ANTHROPIC))(scope, receive, with_cors)
            return
        if scope["method"] == "OPTIONS":
            allowed = {
                "Access-Control-Allow-Methods": "GET, POST, OPTIONS",
                "Access-Control-Allow-Headers": headers.get("access-control-request-headers", "*"),
                "Access-Control-Max-Age": "600",
            }
            await Response(status_code=204, headers=allowed)(scope, receive, with_cors)
            return
        try:
            await self._app(scope, receive, with_cors)
        except ApiError as error:  # of a body that is read where nobody else looks
            await api_error(error).response(scope["path"].startswith(ANTHROPIC))(scope, receive, with_cors)

    def _check(self, scope: Scope, headers: Headers, origin: str | None) -> None:
        """ApiError for what is not let in."""
        if origin is not None and not self._keys and not self._is_local(origin):  # a page cannot have a key
            raise ApiError(403, "pages of other hosts may not use this server")
        if (
            not self._keys
            and "*" not in self._settings.hosts
            and not self._known(_host(f"//{headers.get('host', '')}"))
        ):
            raise ApiError(403, "this server has no keys and answers under this machine's own names alone")
        if self._keys and scope["path"] not in OPEN and scope["method"] != "OPTIONS":
            self._check_key(headers)
        length = headers.get("content-length", "0")
        if not re.fullmatch("[0-9]{1,20}", length):
            raise ApiError(400, "Content-Length is no number")
        if int(length) > self._settings.max_body:
            raise too_large(self._settings.max_body)

    def _check_key(self, headers: Headers) -> None:
        kind, _, bearer = headers.get("authorization", "").partition(" ")
        given = bearer.strip() if kind.lower() == "bearer" else headers.get("x-api-key", "")
        digest = _digest(given.encode("latin-1"))  # the bytes that came: headers are read as that
        right = [hmac.compare_digest(digest, key) for key in self._keys]  # all of them: the time says nothing
        if not given or not any(right):
            raise ApiError(
                401, "wrong or missing API key: send it as `Authorization: Bearer KEY` or as `x-api-key`",
                code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"},
            )  # fmt: skip

    def _known(self, host: str) -> bool:
        return host in LOCAL or host in self._settings.hosts

    def _is_local(self, origin: str) -> bool:
        return self._known(_host(origin))


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
