"""What a person at a terminal sees beside the text: progress, notes, statistics, errors; and exit statuses.

Know before you change this room: stdout carries generated text alone; everything here writes to stderr. Progress,
statistics and warnings are for people, so they vanish where stderr is no terminal (unless `-v`) and with `-q`.
Text from model files may hold escape sequences: it passes `harmless` before a terminal sees it. rich is imported when
a bar is drawn, which costs a tenth of a second: short runs never do.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mixkv.cli.start import INTERRUPTED, interruptible
from mixkv.kernels.errors import ConfigError, MixkvError, MixkvWarning

DONE, FAILED, WRONG_USAGE = 0, 1, 2
BAR_DELAY_SECONDS = 0.3
"""Work that takes less shows no bar."""

Report = Callable[[int, int], None]
"""(done, in all)"""

_CONTROLS = {code: "\N{REPLACEMENT CHARACTER}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"}


def harmless(text: str) -> str:
    """`text` without control characters, so that it cannot steer a terminal; tabs and line ends stay."""
    return text.translate(_CONTROLS)


FLAGS_OF = {
    "n_ctx": "-c", "n_batch": "-b", "n_threads": "-t", "mixed_kv_cache": "--mixed-kv-cache",
    "hot_window": "--hot-window", "sink_tokens": "--sink-tokens", "kv_plan": "--kv-plan",
    "json_schema": "--json-schema", "chat_template_kwargs": "--chat-template-kwargs",
}  # fmt: skip
"""What the command line calls a setting."""


def fail(message: object) -> None:
    """One line on stderr. Settings that the engine names by their Python names are named by their flags as well."""
    print("mixkv:", harmless(" ".join(_with_flags(str(message)).split())), file=sys.stderr)


def _with_flags(text: str) -> str:
    def named(found: re.Match[str]) -> str:
        flag = FLAGS_OF[found.group()]
        return found.group() if re.search(rf"{re.escape(flag)}\b", text) else f"{found.group()} ({flag})"

    return re.sub(rf"\b({'|'.join(FLAGS_OF)})\b", named, text)


def prepare_streams() -> None:
    """UTF-8 whatever the locale says; closed streams become empty ones, so that nothing lands in the wrong one."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115  # open to the end
    for stream, errors in ((sys.stdout, "surrogateescape"), (sys.stderr, "backslashreplace")):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(encoding="utf-8", errors=errors)


def guarded(command: Callable[[], int]) -> int:
    """Run a command; its exit status. What goes wrong becomes one line, without a traceback."""
    try:
        status = command()
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # `| head` has seen enough
        _drop_stdout()
        return DONE
    except KeyboardInterrupt:
        return INTERRUPTED
    except ConfigError as error:
        fail(error)
        return WRONG_USAGE
    except MixkvError as error:
        fail(error)
    except MemoryError:
        fail("out of memory: use a smaller context (-c), --mixed-kv-cache, or a smaller model")
    except OSError as error:
        _drop_stdout()
        fail(f"{error.filename or 'output'}: {error.strerror or error}")
    return FAILED


def _drop_stdout() -> None:
    """Point stdout nowhere: what is still buffered cannot be written and must not fail again when Python ends."""
    with suppress(OSError, ValueError):  # ValueError: no file behind it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Terminal:
    """stderr, as far as this run may use it."""

    def __init__(self, *, quiet: bool = False, verbose: bool = False, perf: bool | None = None) -> None:
        """Takes over Python's warnings: a MixkvWarning becomes one line, others show with `verbose` only.

        perf: whether statistics are shown; None: to people.
        """
        self.quiet = quiet
        self.live = sys.stderr.isatty() and not quiet
        self.chatty = self.live or (verbose and not quiet)
        self.statistics = self.chatty if perf is None else perf and not quiet
        self._verbose = verbose and not quiet
        warnings.simplefilter("always", MixkvWarning)  # of each turn of a chat, not of the first alone
        warnings.showwarning = self._show_warning  # type: ignore[assignment]

    def note(self, text: str) -> None:
        """Something the user ought to know, terminal or not."""
        if not self.quiet:
            fail(text)

    def say(self, text: str) -> None:
        """A line for people."""
        if self.chatty:
            print(harmless(text), file=sys.stderr)

    def tally(self, text: str) -> None:
        """A line of statistics."""
        if self.statistics:
            print(harmless(text), file=sys.stderr)

    @contextmanager
    def progress(self, what: str) -> Iterator[Report | None]:
        """A bar that appears if the block takes a while and is gone afterwards; gives the function that moves it.

        The block is work: from here on Ctrl-C is a KeyboardInterrupt.
        """
        interruptible()
        if not self.live:
            yield None
            return
        bar = _Bar(what)
        try:
            yield bar.report
        finally:
            bar.close()

    def _show_warning(self, message: Any, category: type[Warning], *_: Any) -> None:
        if self._verbose or (self.live and issubclass(category, MixkvWarning)):
            fail(f"warning: {message}")


class _Bar:
    """Draws itself from a timer thread, because the first report may be long in coming."""

    def __init__(self, what: str) -> None:
        self._what, self._done = what, 0
        self._total: int | None = None
        self._start = time.perf_counter()
        self._lock = threading.Lock()
        self._closed = False
        self._progress: Any = None
        self._task: Any = None
        self._timer = threading.Timer(BAR_DELAY_SECONDS, self._draw)
        self._timer.daemon = True
        self._timer.start()

    def report(self, done: int, total: int) -> None:
        with self._lock:
            self._done, self._total = done, total
            if self._progress is not None:
                self._progress.update(self._task, completed=done, total=total)

    def close(self) -> None:
        self._timer.cancel()
        with self._lock:
            self._closed = True
            if self._progress is not None:
                self._progress.stop()

    def _draw(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        with self._lock:
            if self._closed:
                return
            self._progress = Progress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._progress.add_task(self._what, completed=self._done, total=self._total)
            self._progress.start()
