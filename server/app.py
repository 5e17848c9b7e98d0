"""The app: which path is what, and the errors that no endpoint sees."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mixkv.engine.llm import LLM
from mixkv.server import info
from mixkv.server.chat import chat_completions
from mixkv.server.completions import completions
from mixkv.server.errors import ApiError, api_error
from mixkv.server.events import report
from mixkv.server.guard import ANTHROPIC, Guard
from mixkv.server.messages import count_tokens, messages
from mixkv.server.service import Service
from mixkv.server.settings import ServerSettings

Endpoint = Callable[[Service, Request], Awaitable[Any]]
PAGES: tuple[tuple[str, str, Endpoint], ...] = (
    ("GET", "/health", info.health),
    ("GET", "/v1/health", info.health),
    ("GET", "/v1/models", info.models),
    ("GET", "/v1/models/{name:path}", info.model),
    ("GET", "/props", info.props),
    ("GET", "/metrics", info.metrics),
    ("POST", "/tokenize", info.tokenize),
    ("POST", "/detokenize", info.detokenize),
    ("POST", "/apply-template", info.apply_template),
    ("POST", "/v1/chat/completions", chat_completions),
    ("POST", "/v1/completions", completions),
    ("POST", "/v1/messages", messages),
    ("POST", "/v1/messages/count_tokens", count_tokens),
)


def make_app(llm: LLM, settings: ServerSettings, *, chat_template: str | Path | None = None) -> ASGIApp:
    """The server as an ASGI app. Closing it waits for what runs; the LLM stays open."""
    service = Service(llm, settings, chat_template)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        service.workers.close()

    routes = [Route(path, _endpoint(service, endpoint), methods=[method]) for method, path, endpoint in PAGES]
    handlers: dict[Any, Any] = {HTTPException: _unknown, Exception: _failed}
    app = Starlette(routes=routes, exception_handlers=handlers, lifespan=lifespan)
    app.router.redirect_slashes = False
    return Guard(_Counted(app, service), settings)


def _endpoint(service: Service, endpoint: Endpoint) -> Callable[[Request], Awaitable[Any]]:
    async def answer(request: Request) -> Any:
        try:
            return await endpoint(service, request)
        except ClientDisconnect:
            return Response(status_code=400)
        except Exception as error:
            report(error)
            return api_error(error).response(_anthropic(request))

    return answer


def _anthropic(request: Request) -> bool:
    return request.url.path.startswith(ANTHROPIC)


async def _unknown(request: Request, error: HTTPException) -> Response:
    """404 and 405, which Starlette finds."""
    text = f"{request.method} is not for this path" if error.status_code == 405 else "there is no such path"
    return ApiError(error.status_code, text, headers=error.headers).response(_anthropic(request))


async def _failed(request: Request, error: Exception) -> Response:
    report(error)
    return api_error(error).response(_anthropic(request))


class _Counted:
    """Counts answers by path and status."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                path = scope["path"] if any(scope["path"] == page for _, page, _ in PAGES) else "other"
                self._service.metrics.requests.labels(path, str(message["status"])).inc()
            await send(message)

        await self._app(scope, receive, counted)
