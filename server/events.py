"""Answers that go on: server-sent events, and answers that are given up when the client goes away."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mixkv.server.errors import Gone, api_error

HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
PING = b": ping\n\n"
log = logging.getLogger("mixkv.server")


def report(error: BaseException) -> None:
    """Our own mistakes are told on stderr: where, and of what kind, but nothing that could be of a prompt."""
    if api_error(error).status == 500:
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        where = "?" if trace is None else f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
        log.error("internal error: %s at %s", type(error).__name__, where)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _unless_gone(receive: Receive, work: Awaitable[None]) -> None:
    """Await work, or cancel it once the client has gone."""
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
    finally:
        for one in (task, watch):
            one.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await one


class Whole:
    """An answer in one piece. make: computes it."""

    def __init__(self, make: Callable[[], Awaitable[Response]], *, anthropic: bool = False) -> None:
        self._make, self._anthropic = make, anthropic

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def answer() -> None:
            try:
                response = await self._make()
            except Exception as error:
                report(error)
                response = api_error(error).response(self._anthropic)
            await response(scope, receive, send)

        await _unless_gone(receive, answer())


class EventStream:
    """Events as they come. events: pieces of the body; the first of them, or the time for a ping, sends the headers, so
    that what fails at once has a status of its own. failed: an error, later, as an event."""

    def __init__(
        self, events: AsyncIterator[bytes], failed: Callable[[BaseException], bytes], *, ping_seconds: float,
        anthropic: bool = False, ping: bytes = PING,
    ) -> None:  # fmt: skip
        self._events, self._failed, self._seconds = events, failed, ping_seconds
        self._anthropic, self._ping, self._begun = anthropic, ping, False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await _unless_gone(receive, self._answer(scope, receive, send))

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            following = asyncio.ensure_future(anext(self._events, None))
            try:
                while True:
                    done, _ = await asyncio.wait({following}, timeout=self._seconds)
                    piece = following.result() if done else self._ping
                    if piece is None:
                        break
                    await self._send(send, piece)
                    if done:
                        following = asyncio.ensure_future(anext(self._events, None))
            finally:
                following.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await following
                await self._events.aclose()  # type: ignore[attr-defined]
        except Exception as error:
            report(error)
            if not self._begun:
                await api_error(error).response(self._anthropic)(scope, receive, send)
                return
            if not isinstance(error, Gone):
                await self._send(send, self._failed(error))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send(self, send: Send, piece: bytes) -> None:
        if not self._begun:
            self._begun = True
            head = Response(headers=HEADERS, media_type="text/event-stream").raw_headers
            head = [(name, value) for name, value in head if name != b"content-length"]
            await send({"type": "http.response.start", "status": 200, "headers": head})
        await send({"type": "http.response.body", "body": piece, "more_body": True})
