"""The process that renders chat templates: a script of its own, which knows nothing of the package. sandbox.py runs it.

Know before you change this room: a template is a stranger's program. jinja2's sandbox keeps it from reaching anything;
time and memory are bounded by the kernel, from outside Python, so that no filter, operator or parser needs to be
watched: address space by RLIMIT_AS, computing time by a profiling timer whose signal nobody catches.

A frame is its length (8 bytes, little-endian) and that many bytes. The first one is the parent's module path, each
further one a request: JSON with "source", "variables", "now" (seconds since 1970) and "seconds" (of computing).
An answer is a letter, what it is (OK and the others below), the seconds that it took (8 bytes), and UTF-8 text.
"""

from __future__ import annotations

import datetime
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from struct import Struct
from typing import Any

OK, REFUSED, SYNTAX, FAILED, RECURSION, MEMORY, TOO_LONG = b"o", b"r", b"s", b"f", b"d", b"m", b"l"
SECONDS = 1.5
"""Of computing, for all that is rendered to make one prompt."""
MEMORY_MIB = 192
"""On top of the interpreter's own."""
MAX_CHARS = 1 << 24
"""What a rendering may have."""
TOOK = Struct("<d")
_COMPILED = 8


def _read(n: int) -> bytes:
    data = bytearray()
    while len(data) < n:
        piece = os.read(0, min(n - len(data), 1 << 20))
        if not piece:  # the parent is gone
            os._exit(0)
        data += piece
    return bytes(data)


def _frame() -> bytes:
    return _read(int.from_bytes(_read(8), "little"))


def _answer(kind: bytes, seconds: float, text: str) -> None:
    data = kind + TOOK.pack(seconds) + text.encode("utf-8", "surrogatepass")
    view = memoryview(len(data).to_bytes(8, "little") + data)
    while view:
        view = view[os.write(1, view) :]


def _limit() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + (MEMORY_MIB << 20)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    for kind in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE, resource.RLIMIT_NPROC):
        resource.setrlimit(kind, (0, 0))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # it ends the process, also in the middle of an operation in C


class Templates:
    """Compiles and renders, with what Hugging Face's templates expect around them."""

    def __init__(self) -> None:
        import jinja2
        from jinja2 import nodes
        from jinja2.ext import Extension, loopcontrols
        from jinja2.parser import Parser
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        class Generation(Extension):
            """{% generation %} marks what a model is trained on: here its body is like any other."""

            tags = {"generation"}  # noqa: RUF012  # declared without ClassVar in jinja2

            def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
                line = next(parser.stream).lineno
                body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
                return nodes.Scope(body).set_lineno(line)

        self.jinja2 = jinja2
        self._env = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
        )
        self._env.filters["tojson"] = _tojson
        self._env.globals["raise_exception"] = self._raise
        self._compiled: dict[str, Any] = {}

    def render(self, source: str, variables: dict[str, Any], now: float) -> str | None:
        """The text; None where it grows too long."""
        template = self._compiled.get(source)
        if template is None:
            if len(self._compiled) >= _COMPILED:
                self._compiled.clear()
            template = self._compiled[source] = self._env.from_string(source)
        clock = datetime.datetime.fromtimestamp(now)
        pieces, length = [], 0
        for piece in template.generate(**variables, strftime_now=clock.strftime):
            length += len(piece)
            if length > MAX_CHARS:
                return None
            pieces.append(piece)
        return "".join(pieces)

    def _raise(self, message: object) -> None:
        raise self.jinja2.TemplateRuntimeError(_Refusal(str(message)))


class _Refusal(str):
    """What a template says by raise_exception."""


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys, default=_listed
    )


def _listed(value: Any) -> list[Any]:
    """What filters such as map give, as a list; a TypeError for anything else that JSON does not know."""
    if isinstance(value, Iterator):
        return list(value)
    raise TypeError(f"a {type(value).__name__} cannot be written as JSON")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error)[:2000].split())[:300]


def _render(templates: Templates, request: dict[str, Any]) -> tuple[bytes, str]:
    jinja2 = templates.jinja2
    signal.setitimer(signal.ITIMER_PROF, request["seconds"])
    try:
        text = templates.render(request["source"], request["variables"], request["now"])
        return (TOO_LONG, "") if text is None else (OK, text)
    except jinja2.TemplateSyntaxError as error:
        return SYNTAX, f"line {error.lineno}: {_one_line(error)}"
    except RecursionError:
        return RECURSION, ""
    except MemoryError:
        return MEMORY, ""
    except jinja2.TemplateRuntimeError as error:
        refusal = error.args and isinstance(error.args[0], _Refusal)
        return REFUSED if refusal else FAILED, _one_line(error)
    except Exception as error:  # whatever a stranger's program does wrong
        return FAILED, f"{type(error).__name__}: {_one_line(error)}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def main() -> None:
    """Answer requests until the parent is gone, or until memory has run out once."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
    sys.path[:] = json.loads(_frame())
    templates = Templates()
    _limit()
    while True:
        try:
            request = json.loads(_frame())
            begin = time.process_time()
            kind, text = _render(templates, request)
            _answer(kind, time.process_time() - begin, text)
        except MemoryError:
            kind = MEMORY
            _answer(kind, 0.0, "")
        if kind == MEMORY:
            os._exit(0)


if __name__ == "__main__":
    main()
