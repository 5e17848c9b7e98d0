"""The app on a socket, until a signal ends it."""

from __future__ import annotations

import ipaddress
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import uvicorn

from mixkv.engine.llm import LLM
from mixkv.kernels.errors import ConfigError
from mixkv.server.app import make_app
from mixkv.server.settings import ServerSettings


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen(host: str, port: int) -> socket.socket:
    """A socket at this address, which nobody is told of yet. ConfigError where it cannot be had."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=512)
    except (OSError, OverflowError, UnicodeError) as error:
        said = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"--host {host} --port {port}: cannot listen there: {said}") from None


def address(listening: socket.socket) -> str:
    """Its URL."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(
    llm: LLM, listening: socket.socket, settings: ServerSettings, *, chat_template: str | Path | None = None,
    drain_seconds: int = 30, ready: Callable[[], None] = lambda: None,
) -> None:  # fmt: skip
    """Answer requests until SIGTERM or SIGINT; what runs then has `drain_seconds` to finish. ready: called once
    requests are answered."""
    config = uvicorn.Config(
        make_app(llm, settings, chat_template=chat_template), log_level="error", access_log=False, lifespan="on",
        server_header=False, timeout_graceful_shutdown=drain_seconds, ws="none", h11_max_incomplete_event_size=65536,
    )  # fmt: skip
    server = _Server(config, ready)
    before = signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn hands on what it was told, once it has ended
    try:
        server.run(sockets=[listening])
    finally:
        signal.signal(signal.SIGTERM, before)
        listening.close()


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()
