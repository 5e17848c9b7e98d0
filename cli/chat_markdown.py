"""Markdown at a terminal, while it comes: headings, bold and code are shown as such.

Know before you change this room: the text itself is not laid out anew. No line is wrapped, indented or redrawn, so that
what is copied from the terminal is what the model wrote, but for the marks around bold, code and headings. Those are
taken away in pairs alone: until the second one has come, the text behind the first is held back.
"""

from __future__ import annotations

import re

BOLD, DIM, CODE, UNDERLINED, END = "\x1b[1m", "\x1b[2m", "\x1b[36m", "\x1b[4m", "\x1b[0m"
HELD = 400
"""Characters that wait for the second mark; where none comes within these, the first one is text."""
_FENCE = re.compile(r" {0,3}(`{3,}(?!.*`)|~{3,})")
_MAYBE_FENCE = re.compile(r" {0,3}(?:`*|~*)")
_HEADING = re.compile(r"(#{1,6}) +(?=\S)")
_MAYBE_HEADING = re.compile(r"#{1,6}(?: .*)?")
_MARK = re.compile(r"`+|\*+")
_SPAN = re.compile(r"(?P<code>`+)(?!`)(?P<inside>.+?)(?<!`)(?P=code)(?!`)|\*\*(?P<bold>(?! ).+?(?<! ))\*\*(?!\*)")


class Markdown:
    """Takes a text piece by piece, gives what may be shown of it. colour: for code."""

    def __init__(self, *, colour: bool = True) -> None:
        self._code = CODE if colour else BOLD
        self._held, self._fence, self._begun = "", "", False

    def feed(self, text: str) -> str:
        """What can be shown by now."""
        *lines, self._held = (self._held + text).split("\n")
        out = "".join(self._line(line) + "\n" for line in lines)
        return out + self._part()

    def flush(self) -> str:
        """What was held back; the text is over."""
        rest, self._held = self._held, ""
        return self._line(rest) if rest else ""

    def _part(self) -> str:
        """As much as is sure of a line whose end has not come."""
        line = self._held
        if not self._begun:
            if _MAYBE_FENCE.fullmatch(line) or _FENCE.match(line):
                return ""
            if not self._fence and _MAYBE_HEADING.fullmatch(line) and len(line) < HELD:
                return ""
        sure = len(line) if self._fence else _sure(line)
        if sure == 0:
            return ""
        shown, self._held, self._begun = line[:sure], line[sure:], True
        return shown if self._fence else self._spans(shown)

    def _line(self, line: str) -> str:
        """A line to its end, or what is left of it."""
        begun, self._begun = self._begun, False
        fence = None if begun else _FENCE.match(line)
        if self._fence:
            if fence and fence[1].startswith(self._fence) and not line[fence.end() :].strip():
                self._fence = ""
                return f"{DIM}{line}{END}"
            return line
        if fence:
            self._fence = fence[1]
            return f"{DIM}{line}{END}"
        heading = None if begun else _HEADING.match(line)
        if heading:
            marks = BOLD + (UNDERLINED if len(heading[1]) == 1 else "")
            return f"{marks}{_SPAN.sub(_inside, line[heading.end() :])}{END}"
        return self._spans(line)

    def _spans(self, text: str) -> str:
        def shown(span: re.Match[str]) -> str:
            if span["bold"] is not None:
                return f"{BOLD}{_SPAN.sub(_inside, span['bold'])}{END}"
            return f"{self._code}{_inside(span)}{END}"

        return _SPAN.sub(shown, text)


def _sure(line: str) -> int:
    """How much of an unfinished line cannot become part of a pair of marks any more."""
    at = 0
    while (mark := _MARK.search(line, at)) is not None:
        span = _SPAN.match(line, mark.start())
        no_pair = mark[0][0] == "*" and (mark[0] != "**" or line[mark.end() : mark.end() + 1] == " ")
        if span is not None and span.end() < len(line):
            at = span.end()
        elif (no_pair and mark.end() < len(line)) or len(line) - mark.start() > HELD:
            at = mark.end()
        else:
            return mark.start()
    return len(line)


def _inside(span: re.Match[str]) -> str:
    """What stands between the marks."""
    return span["bold"] if span["bold"] is not None else span["inside"]
