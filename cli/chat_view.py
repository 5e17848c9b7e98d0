"""What a chat shows: thoughts dimmed and folded, answers, calls. Answers go to stdout and nothing else does.

Know before you change this room: into a pipe goes the answer's text, as it is, and no thought. At a terminal all that a
model wrote passes `harmless` first. Thoughts are shown in a few rows that are drawn again as they grow, never more than
the screen holds, so that they can be folded to one line.
"""

from __future__ import annotations

import os
import shutil
import sys

from mixkv.cli.chat_markdown import DIM, END, Markdown
from mixkv.cli.chat_options import ChatSettings
from mixkv.cli.terminal import harmless
from mixkv.engine.chat.reply import ChatDelta

ROWS = 6
"""Rows of a thought that are seen while it comes."""


class View:
    """stdout, as far as it can be used. thought: the newest one."""

    def __init__(self, settings: ChatSettings) -> None:
        self.terminal = sys.stdout.isatty()
        self.styled = self.terminal and not settings.simple and os.environ.get("TERM", "dumb") != "dumb"
        self.markdown = self.styled and settings.markdown is not False
        self.thought = ""

    def reply(self) -> ReplyView:
        """Where the next reply goes."""
        self.thought = ""
        return ReplyView(self)

    def tell(self, text: str, *, dim: bool = False) -> None:
        """Lines of the program's own, for somebody who asked for them."""
        text = harmless(text)
        print(f"{DIM}{text}{END}" if dim and self.styled else text, file=sys.stderr, flush=True)

    def write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()


class ReplyView:
    """One reply as it comes."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._markdown = Markdown(colour="NO_COLOR" not in os.environ) if view.markdown else None
        self._fold: Fold | None = None
        self._thinking = self._line_open = self.said = False

    def show(self, delta: ChatDelta, tokens: int) -> None:
        """tokens: of the reply so far."""
        if delta.reasoning:
            self._think(delta.reasoning)
        if delta.content or delta.tool_calls or delta.finish_reason:
            self._end_of_thought(tokens)
        if delta.content:
            self._say(delta.content)

    def end(self, tokens: int, *, final: bool = True) -> None:
        """The reply is over, or broken off. final: nothing follows in this turn, so that the line ends in any case."""
        self._end_of_thought(tokens)
        if self._markdown is not None:
            self._put(self._markdown.flush())
        if self._line_open or (final and not self.said and not self._view.terminal):
            self._view.write("\n")
        self._line_open = False

    @property
    def begun(self) -> bool:
        """Whether anything was shown."""
        return self.said or self._thinking

    def _think(self, text: str) -> None:
        self._view.thought += text
        if not self._view.terminal:
            return
        text = harmless(text)
        if self._view.styled:
            self._fold = self._fold or Fold(self._view)
            self._fold.add(text)
        else:
            self._view.write(text if self._thinking else f"[thinking]\n{text}")
        self._thinking = True

    def _end_of_thought(self, tokens: int) -> None:
        if self._fold is not None:
            self._fold.close(tokens)
        elif self._thinking:
            self._view.write("\n[thought]\n\n")
        self._fold, self._thinking = None, False

    def _say(self, text: str) -> None:
        if self._view.terminal:
            text = harmless(text)
        self._put(self._markdown.feed(text) if self._markdown is not None else text)

    def _put(self, text: str) -> None:
        if text:
            self._view.write(text)
            self.said, self._line_open = True, True if not self._view.terminal else not text.endswith("\n")


class Fold:
    """The newest rows of a growing text, dimmed, in place; `close` leaves one line of it."""

    def __init__(self, view: View) -> None:
        self._view, self._text, self._drawn = view, "", 0

    def add(self, text: str) -> None:
        """More of the text."""
        columns, lines = shutil.get_terminal_size()
        most, width = max(1, min(ROWS, lines - 2)), max(2, columns - 1)
        self._text = (self._text + text)[-most * width * 2 :]
        rows = [row for line in self._text.expandtabs(4).rstrip().split("\n") for row in _rows(line, width)][-most:]
        up = f"\x1b[{self._drawn - 1}A" if self._drawn > 1 else ""
        rows += [""] * (self._drawn - len(rows))
        self._view.write(f"{up}\r" + "\n".join(f"{DIM}{row}{END}\x1b[K" for row in rows))
        self._drawn = len(rows)

    def close(self, tokens: int) -> None:
        """Fold it. tokens: how long it took."""
        erase = "\x1b[1A".join(["\r\x1b[2K"] * max(1, self._drawn))
        words = f"thought for {tokens} token{'s' if tokens != 1 else ''} (/think shows it)"
        self._view.write(f"{erase}{DIM}{words}{END}\n")


def _rows(line: str, width: int) -> list[str]:
    """A line cut into rows of so many columns: some characters take two."""
    from rich.cells import cell_len  # only who thinks needs it

    rows, row, taken = [], "", 0
    for character in line:
        size = cell_len(character)
        if taken + size > width:
            rows.append(row)
            row, taken = "", 0
        row, taken = row + character, taken + size
    return [*rows, row]
