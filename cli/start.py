"""The way into the program and out of it, and what Ctrl-C means meanwhile.

Know before you change this room: the console scripts import this file first, so it imports nothing heavy. Until there
is work that somebody could want to keep, and again once all is done, Ctrl-C ends the process at once with status 130:
a KeyboardInterrupt raised somewhere within an import, or while Python shuts down, cannot be caught reliably and ends
in a traceback. Work calls `interruptible` first; then Ctrl-C is a KeyboardInterrupt, as everywhere in Python.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import Any, NoReturn

INTERRUPTED = 130


def main() -> NoReturn:
    """The command `mixkv`."""
    _run("main")


def main_generate() -> NoReturn:
    """The command `mixkv-cli`."""
    _run("main_generate")


def interruptible() -> None:
    """From here on Ctrl-C is a KeyboardInterrupt. Does nothing where somebody else decides what Ctrl-C does."""
    if signal.getsignal(signal.SIGINT) is _leave:
        sys.unraisablehook = _raise_later
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _run(name: str) -> NoReturn:
    _leave_at_once()
    try:
        from mixkv.cli import main as program

        status = getattr(program, name)()
    except KeyboardInterrupt:
        status = INTERRUPTED
    _leave_at_once()
    sys.exit(status)


def _leave_at_once() -> None:
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where it is ignored, as under nohup
        signal.signal(signal.SIGINT, _leave)


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    os._exit(INTERRUPTED)


def _raise_later(failed: Any) -> None:
    """A Ctrl-C that fell into a destructor or a callback, where nothing can be raised, comes again a moment later."""
    if not issubclass(failed.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(failed)
        return
    import _thread
    import threading

    again = threading.Timer(0.01, _thread.interrupt_main)
    again.daemon = True
    again.start()
