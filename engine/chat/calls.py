"""Reads calls of one format as they come, by the patterns of the table."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from mixkv.engine.chat import patterns as p
from mixkv.engine.chat.parameters import ParameterReader
from mixkv.engine.chat.schemas import functions
from mixkv.engine.chat.source import Source, Waits
from mixkv.engine.chat.values import JSON, ValueReader, loaded, to_json
from mixkv.kernels.errors import NoMatch

MEANS_NOTHING = {"type": ("function",), "index": range(1000)}
"""Keys that models write into calls beside those they should, and what they write there."""


class CallReader:
    """Reads calls and tells of them: `begin(name, id)` once a call's name and the beginning of its arguments are read,
    then `arguments(JSON text)` as it comes. NoMatch before that is no call; after that, the call stays as far as it was
    right.

    kept: up to where the text stands in what was told; None as long as nothing was.
    """

    def __init__(
        self,
        source: Source,
        tools: Iterable[dict[str, Any]],
        begin: Callable[[str, str | None], None],
        arguments: Callable[[str], None],
    ) -> None:
        self.source, self.tools = source, functions(tools)
        self._tell_begin, self._tell_arguments = begin, arguments
        self.kept: int | None = None
        self._forget()

    def read(self, calls: p.Calls) -> Waits[None]:
        """The calls from here to their end. NoMatch where they end otherwise; a brace that is missing after whole
        arguments is no matter."""
        self.kept = None
        self._forget()
        yield from self._elements(calls.begin)
        while True:
            self._forget()
            try:
                yield from self._elements(calls.call)
            except NoMatch:
                if not self._whole or self.kept is None:
                    raise
                self.source.pos = self.kept
                yield from self._elements(calls.end)
                return
            if (yield from self._attempt(calls.end)):
                return
            yield from self._elements(calls.between)

    def _forget(self) -> None:
        self._name: str | None = None
        self._id: str | None = None
        self._begun = False
        self._whole = False
        """The arguments are read, all of them."""

    def _emit(self, text: str) -> None:
        if not self._begun:
            if self._name is None:
                raise NoMatch
            self._begun = True
            self._tell_begin(self._name, self._id)
        self._tell_arguments(text)
        self.kept = self.source.pos

    def _elements(self, pattern: p.Pattern) -> Waits[None]:
        for element in pattern:
            yield from self._element(element)
            if self._begun:
                self.kept = self.source.pos

    def _attempt(self, pattern: p.Pattern) -> Waits[bool]:
        before = self.source.pos, self.kept
        try:
            yield from self._elements(pattern)
        except NoMatch:
            self.source.pos, self.kept = before
            return False
        return True

    def _element(self, element: p.Element) -> Waits[None]:
        source = self.source
        if isinstance(element, str):
            yield from source.expect(element)
        elif element is p.SPACES:
            yield from source.spaces()
        elif element is p.NAME:
            yield from self._read_name()
        elif element is p.WORD or element is p.DIGITS:
            start = source.pos
            while character := (yield from source.peek()):
                if not (character.isascii() and (character.isdigit() or (element is p.WORD and is_of_word(character)))):
                    break
                source.pos += 1
            if source.pos == start:
                raise NoMatch
        elif isinstance(element, p.OneOf):
            for text in element.texts:
                if (yield from source.skip(text)):
                    return
            raise NoMatch
        elif isinstance(element, p.Maybe):
            yield from self._attempt(element.pattern)
        elif isinstance(element, p.Identity):
            start = source.pos
            yield from self._elements(element.pattern)
            self._id = source.text[start : source.pos]
        elif isinstance(element, p.Arguments):
            yield from source.spaces()
            if not (yield from source.at("{")):
                raise NoMatch
            yield from ValueReader(source, self._emit, element.dialect).value()
        elif isinstance(element, p.Keywords):
            yield from ValueReader(source, self._emit, element.dialect).arguments(element.end)
        elif isinstance(element, p.Parameters):
            root = self.tools[self._name or ""]
            yield from ParameterReader(source, self._emit, self._elements).read(element, root)
        elif isinstance(element, p.CallObject):
            yield from self._object(element)

    def _read_name(self) -> Waits[None]:
        """The name of one of the tools; it is known early that there will be none."""
        source, start = self.source, self.source.pos
        while character := (yield from source.peek()):
            so_far = source.text[start : source.pos] + character
            if not any(name.startswith(so_far) for name in self.tools):
                break
            source.pos += 1
        self._called(source.text[start : source.pos])

    def _called(self, name: Any) -> None:
        if not isinstance(name, str) or name not in self.tools or self._name is not None:
            raise NoMatch
        self._name = name

    # A JSON object with name and arguments

    def _object(self, form: p.CallObject) -> Waits[None]:
        source, first, held = self.source, True, None
        yield from source.expect("{")
        while True:
            yield from source.spaces()
            if (yield from source.skip("}")):
                break
            if not first:
                yield from source.expect(",")
                yield from source.spaces()
            first = False
            key = loaded((yield from self._text()))
            yield from source.spaces()
            yield from source.expect(":")
            yield from source.spaces()
            if form.keyed:
                self._called(key)
            if form.keyed or (key in form.arguments and held is None and not self._begun):
                if self._name is not None and not form.late_id and (yield from source.at("{")):
                    yield from ValueReader(source, self._emit).value()
                    self._whole = True
                    continue
                held = yield from self._held_arguments()
                if self._name is not None and not form.late_id:
                    self._emit(held)
            elif key == form.name:
                self._called(loaded((yield from self._text())))
            elif key == form.id and not self._begun:
                self._id = str(loaded((yield from self._held()))) or None
            elif key == form.id:
                yield from self._held()
            elif loaded((yield from self._held())) not in MEANS_NOTHING.get(key, ()):
                raise NoMatch
        if not self._begun:
            if held is None and not form.lenient:
                raise NoMatch
            self._emit(held or "{}")

    def _text(self) -> Waits[str]:
        if not (yield from self.source.at('"')):
            raise NoMatch
        return (yield from self._held())

    def _held(self) -> Waits[str]:
        """One value, as JSON, not told of."""
        found: list[str] = []
        yield from ValueReader(self.source, found.append).value()
        return "".join(found)

    def _held_arguments(self) -> Waits[str]:
        """An object; one written within a string is read, too, and null is none."""
        text = yield from self._held()
        if text.startswith('"'):
            text = to_json(loaded(text), JSON) or ""
        if text == "null":
            text = "{}"
        if not text.startswith("{"):
            raise NoMatch
        return text


def is_of_word(character: str) -> bool:
    return character.isalnum() or character in "_-."
