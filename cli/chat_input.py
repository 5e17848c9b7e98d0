"""What the user types: turns of one or more lines, line editing and its history, yes and no.

Know before you change this room: a line that ends in a backslash goes on, and so does everything between two lines of
three quotes; in a pipe too. The history is a file of the user's own (mode 600) below $XDG_STATE_HOME; what cannot be
written is said once and not kept.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mixkv.cli.terminal import Terminal, fail, harmless

MARK, MORE, QUOTES = "> ", "... ", '"""'
KEPT = 1000
"""Lines of history."""


class Input:
    """stdin: turns, and answers to questions."""

    def __init__(self, terminal: Terminal, *, simple: bool) -> None:
        self.at_terminal = sys.stdin.isatty()
        self._editing = self.at_terminal and sys.stdout.isatty() and not simple
        self._history: History | None = None
        if self._editing:
            self._history = History(terminal)

    def turns(self, first: str | None) -> Iterator[str]:
        """`first`, if there is one, and what is typed: to Ctrl-D, the end of the pipe, or Ctrl-C twice."""
        if first:
            if self._editing:  # as if it had been typed
                print(harmless(f"{MARK}{first}"), file=sys.stderr)
            yield first
        interrupted = False
        while True:
            try:
                turn = self._turn()
            except KeyboardInterrupt:
                if not self.at_terminal:
                    raise
                print(file=sys.stderr)
                if interrupted:
                    return
                interrupted = True
                print("(Ctrl-C again, Ctrl-D or /exit leaves)", file=sys.stderr)
                continue
            if turn is None:
                return
            interrupted = False
            if self._history is not None and turn.strip():
                self._history.add(turn)
            yield turn

    def answer(self, question: str) -> str | None:
        """What is said to a question; None at the end of the input."""
        line = self._line(question)
        return None if line is None else line.strip().lower()

    def _turn(self) -> str | None:
        line = self._line(MARK)
        if line is None:
            return None
        if line.lstrip().startswith(QUOTES):
            return self._block(line.lstrip().removeprefix(QUOTES))
        lines = [line]
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1][:-1]
            following = self._line(MORE)
            if following is None:
                break
            lines.append(following)
        return "\n".join(lines)

    def _block(self, line: str) -> str:
        """What stands between three quotes; the lines of the quotes themselves count where they hold more."""
        lines: list[str] = []
        following: str | None = line
        while following is not None and not following.rstrip().endswith(QUOTES):
            lines.append(following)
            following = self._line(MORE)
        if following is not None:
            lines.append(following.rstrip().removesuffix(QUOTES))
        if lines and not lines[0].strip():
            del lines[0]
        if lines and not lines[-1].strip():
            del lines[-1]
        return "\n".join(lines)

    def _line(self, mark: str) -> str | None:
        if self._editing:
            try:
                return input(mark).encode("utf-8", "surrogateescape").decode("utf-8", "replace")
            except EOFError:
                print()
                return None
            except UnicodeDecodeError:
                fail("that line was not UTF-8 text, and is left out")
                return ""
        if self.at_terminal:  # the answers may go elsewhere, and so must not the mark
            print(mark, end="", file=sys.stderr, flush=True)
        line = sys.stdin.buffer.readline()
        return line.decode("utf-8", "replace").rstrip("\r\n") if line else None


class History:
    """Lines of chats before, for readline."""

    def __init__(self, terminal: Terminal) -> None:
        import readline  # gives input() its line editing

        self._readline: Any = readline
        self._terminal = terminal
        path = history_path()
        self._path: Path | None = path
        self._readline.set_auto_history(False)  # answers to questions are none
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.fchmod(descriptor, 0o600)
            finally:
                os.close(descriptor)
            self._readline.read_history_file(path)
            if self._readline.get_current_history_length() > KEPT:
                self._readline.set_history_length(KEPT)
                self._readline.write_history_file(path)
        except OSError as error:
            self._give_up(error)

    def add(self, turn: str) -> None:
        """Keep the lines of a turn, at once: a closed terminal must not lose them."""
        lines = [line for line in turn.split("\n") if line.strip()]
        for line in lines:
            self._readline.add_history(line)
        if self._path is not None:
            try:
                self._readline.append_history_file(len(lines), self._path)
            except OSError as error:
                self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self._terminal.say(f"the history is not kept: {history_path()}: {error.strerror or error}")
        self._path = None


def history_path() -> Path:
    """Where the history is: $XDG_STATE_HOME/mixkv/chat_history, by default below ~/.local/state."""
    state = Path(os.environ.get("XDG_STATE_HOME", ""))
    if not state.is_absolute():  # the standard says that others do not count
        state = Path.home() / ".local" / "state"
    return state / "mixkv" / "chat_history"
