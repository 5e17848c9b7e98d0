"""Renders templates in a child process with bounded time and memory (worker.py), which is kept for the next ones.

One child serves the whole process, a rendering at a time: a template of a real model takes a millisecond or two. It
is started by the first rendering (0.1 s), ended with the process, and replaced where a template has made it end. A
forked process starts its own.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mixkv.engine.chat import worker
from mixkv.kernels.errors import InputError, TemplateError

WALL_SECONDS = 20.0
"""For a machine so busy that a second of computing takes longer than this, and a child that somebody has stopped."""
_HEAD = 1 + worker.TOOK.size
_MOST_BYTES = _HEAD + 4 * worker.MAX_CHARS
_SAYS = {
    worker.SYNTAX: "the chat template cannot be read: {}",
    worker.REFUSED: "the chat template refuses these messages: {}",
    worker.FAILED: "the chat template fails: {}",
    worker.RECURSION: "the chat template fails: it calls itself too often",
    worker.MEMORY: f"the chat template fails: it needs more than {worker.MEMORY_MIB} MiB",
    worker.TOO_LONG: f"the chat template fails: it writes more than {worker.MAX_CHARS} characters",
}


class Outcome(NamedTuple):
    """What came of a rendering: its text, or None and an error. bounded: it took too much of something, and what looks
    like it would do so again. seconds: of computing that it took."""

    text: str | None
    error: str = ""
    bounded: bool = False
    seconds: float = 0.0

    def checked(self) -> str:
        """The text, or a TemplateError."""
        if self.text is None:
            raise TemplateError(self.error)
        return self.text


TOO_SLOW = Outcome(None, f"the chat template fails: it takes longer than {worker.SECONDS:g} s", True)


class Renderer:
    """A child process and the way to talk to it; may be used by any number of threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None

    def render(
        self, source: str, variables: Mapping[str, Any], now: float | None = None, seconds: float = worker.SECONDS
    ) -> Outcome:
        """Render once. variables: what JSON can hold, InputError for anything else. now: the time that the template is
        told, seconds since 1970; left out, it is that of the clock. seconds: of computing that it may take."""
        now = time.time() if now is None else now
        try:
            request = json.dumps({"source": source, "variables": variables, "now": now, "seconds": seconds})
        except (TypeError, ValueError, RecursionError) as error:
            raise InputError(f"messages, tools and template variables must be what JSON can hold: {error}") from None
        with self._lock:
            return self._ask(request.encode())

    def close(self) -> None:
        """End the child; the next rendering starts another."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    pipe.close()
            child.wait()

    def forget(self) -> None:
        """In a forked process: the child is the parent's."""
        child, self._child, self._lock = self._child, None, threading.Lock()
        if child is not None:
            child.returncode = 0  # nobody here waits for it

    def _ask(self, request: bytes) -> Outcome:
        for fresh in (self._child is None, True):
            child = self._child or self._start()
            try:
                answer = self._exchange(child, request)
            except BaseException:  # Ctrl-C between question and answer
                self.close()
                raise
            if answer is not None:
                kind, text = answer[:1], answer[_HEAD:].decode("utf-8", "surrogatepass")
                (took,) = worker.TOOK.unpack(answer[1:_HEAD])
                if kind == worker.OK:
                    return Outcome(text, seconds=took)
                bounded = kind in (worker.MEMORY, worker.TOO_LONG)
                if kind == worker.MEMORY:
                    self.close()
                return Outcome(None, _SAYS[kind].format(text), bounded, took)
            self._child = None
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(1.0)  # it has closed its pipe: let it say why
            self._child = child
            self.close()
            if child.returncode == -signal.SIGPROF:
                return TOO_SLOW
            if fresh:
                break
        return Outcome(None, "the chat template fails: the process that renders it has ended", True)

    def _start(self) -> subprocess.Popen[bytes]:
        if not sys.executable:
            raise TemplateError("chat templates are rendered by a child process, and there is no Python to run it with")
        program = [sys.executable, "-I", "-S", str(Path(worker.__file__))]
        try:
            self._child = subprocess.Popen(
                program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0,
                start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise TemplateError(f"the process that renders chat templates does not start: {error}") from None
        _send(self._child, json.dumps(sys.path).encode())
        return self._child

    def _exchange(self, child: subprocess.Popen[bytes], request: bytes) -> bytes | None:
        """The answer; None where the child has ended."""
        end = time.monotonic() + WALL_SECONDS
        if not _send(child, request):
            return None
        header = _receive(child, 8, end)
        n = int.from_bytes(header, "little")
        if len(header) < 8 or not _HEAD <= n <= _MOST_BYTES:
            return None
        answer = _receive(child, n, end)
        return answer if len(answer) == n else None


def _send(child: subprocess.Popen[bytes], data: bytes) -> bool:
    """Whether the child took it all."""
    assert child.stdin is not None
    view = memoryview(len(data).to_bytes(8, "little") + data)
    try:
        while view:
            view = view[os.write(child.stdin.fileno(), view) :]
    except BrokenPipeError:
        return False
    return True


def _receive(child: subprocess.Popen[bytes], n: int, end: float) -> bytes:
    """n bytes; fewer where the child ends, or where time does."""
    assert child.stdout is not None
    data, descriptor = bytearray(), child.stdout.fileno()
    ready = select.poll()
    ready.register(descriptor, select.POLLIN)
    while len(data) < n and ready.poll(1000 * max(0.0, end - time.monotonic())):
        piece = os.read(descriptor, min(n - len(data), 1 << 20))
        if not piece:
            break
        data += piece
    return bytes(data)


RENDERER = Renderer()
"""That of this process."""

atexit.register(RENDERER.close)
os.register_at_fork(after_in_child=RENDERER.forget)
