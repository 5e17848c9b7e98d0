"""Values that a model writes, read as they come and passed on as JSON: JSON itself, Python's literals, Gemma's."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from mixkv.engine.chat.source import Source, Waits
from mixkv.kernels.errors import NoMatch

MAX_DEPTH = 64
"""Objects and lists within each other; more is no call that anyone meant."""
NAME = re.compile(r"\w+")
NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
NUMBER_BEGUN = re.compile(r"-?[0-9]*\.?[0-9]*([eE][+-]?)?")
WORD = re.compile(r"[^\s,:{}()\[\]\"'<]+")
PLAIN = {end: re.compile(rf"[^{end}\\\x00-\x1f]+") for end in "\"'<"}
HEX = re.compile(r"[0-9a-fA-F]*")


@dataclass(frozen=True)
class Dialect:
    """How values are written. quotes: what begins and ends a string; escapes: whether a backslash means something in
    it; verbatim: it is JSON already, spaces and all; bare_keys: keys of objects stand without quotes."""

    words: dict[str, str] = field(hash=False)
    quotes: tuple[str, ...] = ('"',)
    escapes: bool = True
    verbatim: bool = False
    bare_keys: bool = False


JSON_WORDS = {"true": "true", "false": "false", "null": "null"}
JSON = Dialect(JSON_WORDS, verbatim=True)
PYTHON = Dialect(JSON_WORDS | {"True": "true", "False": "false", "None": "null"}, quotes=('"', "'"))
GEMMA = Dialect(JSON_WORDS, quotes=('<|"|>', '"'), escapes=False, bare_keys=True)
PYTHON_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "0": "\0", "\\": "\\", "'": "'", '"': '"'}
HEX_ESCAPES = {"x": 2, "u": 4, "U": 8}

Emit = Callable[[str], None]


def escaped(text: str) -> str:
    """Text as it stands between a JSON string's quotes."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


class ValueReader:
    """Reads values from a source. What is accepted goes to `emit` at once, after it was read: text that goes wrong
    later was a JSON text's beginning until there. A text that ends early is NoMatch, after all of it was emitted."""

    def __init__(self, source: Source, emit: Emit, dialect: Dialect = JSON) -> None:
        self.source, self.emit, self.dialect = source, emit, dialect

    def value(self, depth: int = 0) -> Waits[None]:
        """One value, with spaces before it."""
        yield from self._spaces()
        first = yield from self.source.peek()
        if first in ("{", "["):
            if depth == MAX_DEPTH:
                raise NoMatch
            yield from self._members(first, depth + 1)
        elif quote := (yield from self._quote()):
            yield from self._string(quote)
        else:
            yield from self._word()

    def arguments(self, end: str) -> Waits[None]:
        """A Python call's `a=1, b="x"` and what ends it; an object is emitted."""
        source, first = self.source, True
        while True:
            yield from source.spaces()
            if not first and not (yield from source.at(end)):
                yield from source.expect(",")
                yield from source.spaces()
            if (yield from source.skip(end)):
                break
            name = yield from self._match(NAME)
            yield from source.spaces()
            yield from source.expect("=" if name else "a name")
            self.emit(("{" if first else ", ") + f'"{name}": ')
            yield from self.value(1)
            first = False
        self.emit("{}" if first else "}")

    def _members(self, opening: str, depth: int) -> Waits[None]:
        source, verbatim = self.source, self.dialect.verbatim
        closing = "}" if opening == "{" else "]"
        source.pos += 1
        self.emit(opening)
        first = True
        while True:
            yield from self._spaces()
            if (yield from source.skip(closing)):
                break
            if not first:
                yield from source.expect(",")
                if verbatim:
                    self.emit(",")
                yield from self._spaces()
                if not verbatim:
                    if (yield from source.skip(closing)):
                        break
                    self.emit(", ")
            if opening == "{":
                yield from self._key()
            yield from self.value(depth)
            first = False
        self.emit(closing)

    def _key(self) -> Waits[None]:
        quote = yield from self._quote()
        if quote:
            yield from self._string(quote)
        elif self.dialect.bare_keys:
            name = yield from self._match(WORD)
            if not name:
                raise NoMatch
            self.emit(json.dumps(name, ensure_ascii=False))
        else:
            raise NoMatch
        yield from self._spaces()
        yield from self.source.expect(":")
        self.emit(":" if self.dialect.verbatim else ": ")

    def _spaces(self) -> Waits[None]:
        spaces = yield from self.source.spaces()
        if spaces and self.dialect.verbatim:
            self.emit(spaces)

    def _quote(self) -> Waits[str]:
        for quote in self.dialect.quotes:
            if (yield from self.source.at(quote)):
                return quote
        return ""

    def _match(self, pattern: re.Pattern[str]) -> Waits[str]:
        """All that matches from here: waits until something that does not has come."""
        source, length = self.source, 0
        while True:
            found = pattern.match(source.text, source.pos + length)
            length += len(found.group()) if found else 0
            if source.pos + length < len(source.text) or source.ended:
                break
            yield
        source.pos += length
        return source.text[source.pos - length : source.pos]

    def _word(self) -> Waits[None]:
        text = yield from self._match(WORD)
        words = self.dialect.words
        if text in words or NUMBER.fullmatch(text):
            self.emit(words.get(text, text))
            return
        begun = NUMBER_BEGUN.fullmatch(text) or any(word.startswith(text) for word in words)
        if begun and self.source.ended and self.source.pos == len(self.source.text):
            self.emit(text)
        else:
            self.source.pos -= len(text)
        raise NoMatch

    def _string(self, quote: str) -> Waits[None]:
        source, escapes = self.source, self.dialect.escapes
        source.pos += len(quote)
        self.emit('"')
        plain = PLAIN[quote[0]]
        while character := (yield from source.peek()):
            if found := plain.match(source.text, source.pos):
                source.pos = found.end()
                self.emit(found.group() if quote == '"' else escaped(found.group()))
            elif (yield from source.at(quote)):
                source.pos += len(quote)
                self.emit('"')
                return
            elif character == "\\" and escapes:
                yield from self._escape()
            else:
                source.pos += 1
                self.emit(escaped(character))
        raise NoMatch

    def _escape(self) -> Waits[None]:
        """A backslash and what belongs to it. One that means nothing is a backslash, as the model will have meant."""
        source = self.source
        source.pos += 1
        character = yield from source.peek()
        if not character:
            self.emit("\\")
            return
        source.pos += 1
        if character == "u" or (character in HEX_ESCAPES and not self.dialect.verbatim):
            start, count = source.pos, HEX_ESCAPES[character]
            while len(source.text) < start + count and not source.ended and self._hex(start, count):
                yield
            digits = source.text[start : start + count]
            whole = len(digits) == count and self._hex(start, count)
            if whole and count == 4:
                source.pos += count
                self.emit("\\u" + digits)
            elif whole and not is_surrogate(int(digits, 16)) and int(digits, 16) <= sys.maxunicode:
                source.pos += count
                self.emit(escaped(chr(int(digits, 16))))
            else:
                self.emit(("\\" if source.ended and len(digits) < count else "\\\\") + character)
        elif self.dialect.verbatim and character in '"\\/bfnrt':
            self.emit("\\" + character)
        else:
            self.emit(escaped(PYTHON_ESCAPES.get(character, "\\" + character)))

    def _hex(self, start: int, count: int) -> bool:
        found = HEX.match(self.source.text, start, start + count)
        return found is not None and found.end() == min(len(self.source.text), start + count)


def is_surrogate(code: int) -> bool:
    """Half of a character, which no text can hold."""
    return 0xD800 <= code < 0xE000


def loaded(text: str) -> Any:
    """What a JSON text says. NoMatch where it says nothing that Python can hold, as numbers of thousands of digits."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise NoMatch from None


def to_json(text: str, dialect: Dialect) -> str | None:
    """The JSON of a text that is one whole value; None where it is none."""
    source, found = Source(), list[str]()
    source.text, source.ended = text.strip(), True
    try:
        for _ in ValueReader(source, found.append, dialect).value():
            raise AssertionError("all of the text is there")
        loaded("".join(found))
    except NoMatch:
        return None
    return "".join(found) if source.pos == len(source.text) else None
