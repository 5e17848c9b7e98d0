"""GBNF, llama.cpp's notation of grammars: read here, written as Lark by lark.py."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mixkv.engine.grammar.lark import Node, names_in, write_lark
from mixkv.kernels.errors import ConfigError

ROOT = "root"
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\", '"': '"', "[": "[", "]": "]"}
_HEX = {"x": 2, "u": 4, "U": 8}
_NAME = re.compile(r"[A-Za-z0-9_-]+")
_COUNT = re.compile(r"\{\s*(\d+)\s*(?:(,)\s*(\d+)?\s*)?\}")


def is_gbnf(text: str) -> bool:
    """Whether a grammar defines its rules with `::=`, as GBNF does and Lark does not."""
    return re.search(r"(?m)^\s*[A-Za-z0-9_-]+\s*::=", text) is not None


def gbnf_to_lark(text: str) -> str:
    """The same grammar in Lark. ConfigError, with the line, for what is not GBNF and for rules that are not there."""
    rules = _Reader(text).rules()
    for rule in rules.values():
        for name in names_in(rule):
            if name not in rules:
                raise ConfigError(f"grammar: there is no rule {name!r}; define it with {name} ::= ...")
    if ROOT not in rules:
        raise ConfigError(f"grammar: there is no rule {ROOT!r}, where GBNF begins")
    return write_lark(rules, ROOT)


class _Reader:
    """Recursive descent over the text."""

    def __init__(self, text: str) -> None:
        self._text, self._at = text, 0

    def rules(self) -> dict[str, Node]:
        """name -> what it stands for."""
        found: dict[str, Node] = {}
        self._skip(lines=True)
        while self._at < len(self._text):
            name = self._name()
            self._skip(lines=False)
            if not self._take("::="):
                raise self._wrong("expected ::= behind a rule's name")
            self._skip(lines=True)
            found[name] = self._alternatives(nested=False)
            if self._at < len(self._text) and self._text[self._at] not in "\r\n":
                raise self._wrong("expected the end of the rule")
            self._skip(lines=True)
        return found

    def _alternatives(self, nested: bool) -> Node:
        parts = [self._sequence(nested)]
        while self._take("|"):
            self._skip(lines=True)
            parts.append(self._sequence(nested))
        return parts[0] if len(parts) == 1 else Node("any", parts=parts)

    def _sequence(self, nested: bool) -> Node:
        parts: list[Node] = []
        while (part := self._part()) is not None:
            self._skip(lines=nested)
            parts.append(self._repeated(part, nested))
        return parts[0] if len(parts) == 1 else Node("all", parts=parts)

    def _part(self) -> Node | None:
        if self._take('"'):
            return Node("text", "".join(self._characters('"')))
        if self._take("["):
            return self._class()
        if self._take("."):
            return Node("chars", "(?s:.)")
        if self._take("("):
            self._skip(lines=True)
            inner = self._alternatives(nested=True)
            if not self._take(")"):
                raise self._wrong("expected )")
            return inner
        if _NAME.match(self._text, self._at):
            return Node("rule", self._name())
        if self._text[self._at : self._at + 1] in ("<", "!"):
            raise self._wrong("tokens by number or name are not supported: write the text")
        return None

    def _repeated(self, part: Node, nested: bool) -> Node:
        while True:
            if count := _COUNT.match(self._text, self._at):
                self._at = count.end()
                least = int(count[1])
                most = int(count[3]) if count[3] else None if count[2] else least
                if most is not None and most < least:
                    raise self._wrong(f"{count[0]} asks for at most {most} and at least {least}")
            elif self._take("*"):
                least, most = 0, None
            elif self._take("+"):
                least, most = 1, None
            elif self._take("?"):
                least, most = 0, 1
            else:
                return part
            part = Node("text") if most == 0 else Node("repeat", parts=[part], least=least, most=most)
            self._skip(lines=nested)

    def _class(self) -> Node:
        negated = self._take("^")
        ranges: list[str] = []
        characters = self._characters("]")
        for first in characters:
            last = first
            if self._text[self._at : self._at + 1] == "-" and self._text[self._at + 1 : self._at + 2] != "]":
                self._at += 1
                last = next(characters)
                if last < first:
                    raise self._wrong(f"the range {first}-{last} runs backwards")
            ranges.append(_escaped(first) if first == last else f"{_escaped(first)}-{_escaped(last)}")
        if not ranges:
            raise self._wrong("a class of no characters matches nothing")
        return Node("chars", f"[{'^' if negated else ''}{''.join(ranges)}]")

    def _characters(self, end: str) -> Iterator[str]:
        """Characters, escapes read, to the one that ends them."""
        while not self._take(end):
            char = self._text[self._at : self._at + 1]
            if char in ("", "\n"):
                raise self._wrong(f"expected {end}")
            self._at += 1
            yield self._escape() if char == "\\" else char

    def _escape(self) -> str:
        kind = self._text[self._at : self._at + 1]
        self._at += 1
        if kind in _ESCAPES and kind:
            return _ESCAPES[kind]
        if length := _HEX.get(kind):
            digits = self._text[self._at : self._at + length]
            self._at += length
            if re.fullmatch(f"[0-9a-fA-F]{{{length}}}", digits):
                code = int(digits, 16)
                if code < 0x110000 and not 0xD800 <= code < 0xE000:
                    return chr(code)
        raise self._wrong(f"there is no character \\{kind}: use " + r"\n \r \t \\ \" \[ \] \xHH \uHHHH \UHHHHHHHH")

    def _name(self) -> str:
        match = _NAME.match(self._text, self._at)
        if match is None:
            raise self._wrong("expected the name of a rule")
        self._at = match.end()
        return match[0]

    def _take(self, text: str) -> bool:
        if self._text.startswith(text, self._at):
            self._at += len(text)
            return True
        return False

    def _skip(self, *, lines: bool) -> None:
        """Blanks and comments; ends of lines, too, where a rule cannot end."""
        match = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*" if lines else r"[ \t]*(?:#[^\r\n]*)?").match(self._text, self._at)
        assert match is not None
        self._at = match.end()

    def _wrong(self, what: str) -> ConfigError:
        line = self._text.count("\n", 0, self._at) + 1
        rest = self._text[self._at : self._at + 20].split("\n")[0]
        return ConfigError(f"grammar: line {line}, {f'at {rest!r}' if rest else 'at its end'}: {what}")


def _escaped(char: str) -> str:
    """A character inside a class of a regular expression."""
    return char if char.isascii() and char.isalnum() else f"\\u{{{ord(char):X}}}"
