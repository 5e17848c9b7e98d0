"""Run the command line as a process, the way a shell does, and take its output apart.

`run(...)` is a whole run, `start(...)` one to talk to, `on_terminal(...)` one whose stderr (and, if asked, stdin and
stdout) is a pseudo-terminal. `screen(...)` is what such a terminal shows in the end. Processes run in a directory of
their own, so that the checkout's folders are not on their path by accident.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import subprocess
import sys
import tempfile
import termios
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixkv.engine.load import demo_model

DEMO = str(demo_model())
SCRIPTS = Path(sys.executable).parent
LIMIT_SECONDS = 60.0


@dataclass(frozen=True)
class Result:
    """How a process ended. `out` and `err` are bytes."""

    status: int
    out: bytes
    err: bytes

    @property
    def complaint(self) -> str:
        """The one line on stderr that every error is."""
        lines = self.err.decode().splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith("mixkv: "), lines
        return lines[0]


def command(*words: str) -> list[str]:
    """`mixkv WORDS`, by module, so that a clean clone needs no scripts on its path."""
    return [sys.executable, "-m", "mixkv", *words]


def start(
    *words: str, script: str | None = None, line: list[str] | None = None, **options: Any
) -> subprocess.Popen[bytes]:
    """A process with pipes. script: the installed script of that name instead of `mixkv`; line: another command."""
    settings: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    settings |= {"cwd": tempfile.gettempdir(), **options}
    if line is None:
        line = [str(SCRIPTS / script), *words] if script else command(*words)
    return subprocess.Popen(line, **settings)


def run(*words: str, text: bytes | None = None, **options: Any) -> Result:
    """A whole run; `text` is piped into it. Options are those of `start`."""
    if text is not None:
        options["stdin"] = subprocess.PIPE
    process = start(*words, **options)
    out, err = process.communicate(text, timeout=LIMIT_SECONDS)
    return Result(process.returncode, out or b"", err or b"")


def generate(*words: str, text: bytes | None = None, **options: Any) -> Result:
    """`mixkv generate -m DEMO WORDS`, greedy and two tokens long unless the words say otherwise."""
    return run("generate", "-m", DEMO, "--temp", "0", "-n", "2", *words, text=text, **options)


def interrupt(process: subprocess.Popen[bytes]) -> Result:
    """Send what Ctrl-C sends, and wait for the end."""
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=LIMIT_SECONDS)
    return Result(process.returncode, out or b"", err or b"")


class OnTerminal:
    """A process at a pseudo-terminal: stderr always, stdin and stdout with `whole`. `seen` is all that it showed."""

    def __init__(
        self, *words: str, whole: bool = False, line: list[str] | None = None, environment: dict[str, str] | None = None
    ) -> None:  # fmt: skip
        """environment: on top of this process's own; the history of chats goes to a folder that is thrown away."""
        self._state = tempfile.TemporaryDirectory()
        self._master, slave = pty.openpty()
        ends: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE}
        if whole:
            ends = {"stdin": slave, "stdout": slave}
        usual = {"TERM": "xterm", "COLUMNS": "100", "LINES": "30", "XDG_STATE_HOME": self._state.name}
        environment = {**os.environ, **usual, **(environment or {})}
        self.process = subprocess.Popen(
            line or command(*words), stderr=slave, env=environment, cwd=tempfile.gettempdir(), start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(slave, termios.TIOCSCTTY, 0),  # so that the Ctrl-C key is a signal
            **ends,
        )  # fmt: skip
        os.close(slave)
        self.seen = b""

    def read(self, until: str | None = None) -> str:
        """Read on until the pattern is seen from here on, or to the end of the process; what was read."""
        begin, deadline = len(self.seen), time.monotonic() + LIMIT_SECONDS
        while time.monotonic() < deadline:
            if until is not None and re.search(until, self.seen[begin:].decode(errors="replace")):
                return self.seen[begin:].decode(errors="replace")
            if select.select([self._master], [], [], 0.2)[0]:
                try:
                    data = os.read(self._master, 65536)
                except OSError:  # the other side is closed: Linux says so with EIO
                    data = b""
                if not data:
                    break
                self.seen += data
        if until is not None:
            self.process.kill()
            raise AssertionError(f"{until!r} not seen in {self.seen[begin:][-500:]!r}")
        return self.seen[begin:].decode(errors="replace")

    def type(self, text: str) -> None:
        """Type on the terminal's keyboard."""
        os.write(self._master, text.encode())

    def end(self) -> Result:
        """Wait for the end; `err` is what the terminal got."""
        out, _ = self.process.communicate(timeout=LIMIT_SECONDS) if self.process.stdout else (b"", None)
        self.read()
        status = self.process.wait(timeout=LIMIT_SECONDS)
        os.close(self._master)
        self._state.cleanup()
        return Result(status, out or b"", self.seen)


def screen(shown: bytes) -> list[str]:
    """The lines that a terminal shows after `shown`: line ends, carriage returns, cursor up, erase; colours dropped."""
    lines, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[[?0-9;]*[A-Za-z]|\n|\r|[^\x1b\n\r]+", shown.decode(errors="replace")):
        if part == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif part == "\r":
            column = 0
        elif part.endswith("A"):
            row = max(0, row - int(part[2:-1] or 1))
        elif part.endswith("K"):
            lines[row] = "" if part == "\x1b[2K" else lines[row][:column]
        elif not part.startswith("\x1b"):
            lines[row] = lines[row][:column].ljust(column) + part + lines[row][column + len(part) :]
            column += len(part)
    return [line.rstrip() for line in lines if line.strip()]
