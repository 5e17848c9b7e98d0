"""Text that comes in pieces, for readers that are written as if it were all there: generators that wait for more."""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeVar

from mixkv.kernels.errors import NoMatch

T = TypeVar("T")
Waits = Generator[None, None, T]
"""A reader: yields where it needs text that has not come yet, returns what it read."""


ENOUGH = 1 << 14
"""Characters that were read before they are forgotten."""


class Source:
    """What has come so far. pos: where reading stands; ended: no more comes."""

    def __init__(self) -> None:
        self.text = ""
        self.pos = 0
        self.ended = False

    def forget(self) -> None:
        """What was read need not be kept: said where nobody remembers a position in it."""
        if self.pos > ENOUGH:
            self.text, self.pos = self.text[self.pos :], 0

    def peek(self) -> Waits[str]:
        """The next character; "" at the end."""
        while self.pos == len(self.text):
            if self.ended:
                return ""
            yield
        return self.text[self.pos]

    def at(self, literal: str) -> Waits[bool]:
        """Whether the literal comes next. Nothing is read; waits only as long as it may still come."""
        while True:
            here = self.text[self.pos : self.pos + len(literal)]
            if len(here) == len(literal) or self.ended or not literal.startswith(here):
                return here == literal
            yield

    def skip(self, literal: str) -> Waits[bool]:
        """Whether the literal came, and reads it."""
        found = yield from self.at(literal)
        if found:
            self.pos += len(literal)
        return found

    def expect(self, literal: str) -> Waits[None]:
        if not (yield from self.skip(literal)):
            raise NoMatch

    def spaces(self) -> Waits[str]:
        start, length = self.pos, 0
        while (yield from self.peek()).isspace():
            self.pos += 1
            length += 1
        return self.text[start : start + length]
