"""Reads calls of one format as they come, by the patterns of the table."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from mixkv.engine.chat.patterns import (
    NAME, SPACES, WORD, Arguments, CallObject, Calls, Element, Identity, Keywords, Maybe, Parameters, Pattern,
)  # fmt: skip
from mixkv.engine.chat.schemas import functions, properties
from mixkv.engine.chat.source import Source, Waits, Wrong
from mixkv.engine.chat.typed import STRING, allowed_types, nested_value, typed_value
from mixkv.engine.chat.values import JSON, ValueReader, escaped, to_json

MAX_KEY = 256
"""Characters of a parameter's name or a call's id; more is text that goes on."""
SAID_STRING = ("string", "true")
"""What formats say of a parameter that is a string: its type, or that it is one."""
MEANS_NOTHING = ("type", "id", "index")
"""Keys that models write into calls beside those they should."""


class CallReader:
    """Reads calls and tells of them: `begin(name, id)` once a call's name and the beginning of its arguments are read,
    then `arguments(JSON text)` as it comes. Wrong before that is no call; after that, the call stays as far as it was
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

    def read(self, calls: Calls) -> Waits[None]:
        """The calls from here to their end. Wrong where they end otherwise."""
        self.kept = None
        self._forget()
        yield from self._elements(calls.begin)
        while True:
            self._forget()
            yield from self._elements(calls.call)
            assert self._begun, "a pattern without arguments"
            if (yield from self._attempt(calls.end)):
                return
            yield from self._elements(calls.between)

    def _forget(self) -> None:
        self._name: str | None = None
        self._id: str | None = None
        self._begun = False

    def _emit(self, text: str) -> None:
        if not self._begun:
            if self._name is None:
                raise Wrong
            self._begun = True
            self._tell_begin(self._name, self._id)
        self._tell_arguments(text)
        self.kept = self.source.pos

    def _elements(self, pattern: Pattern) -> Waits[None]:
        for element in pattern:
            yield from self._element(element)
            if self._begun:
                self.kept = self.source.pos

    def _attempt(self, pattern: Pattern) -> Waits[bool]:
        before = self.source.pos, self.kept
        try:
            yield from self._elements(pattern)
        except Wrong:
            self.source.pos, self.kept = before
            return False
        return True

    def _element(self, element: Element) -> Waits[None]:
        source = self.source
        if isinstance(element, str):
            yield from source.expect(element)
        elif element is SPACES:
            yield from source.spaces()
        elif element is NAME:
            yield from self._read_name()
        elif element is WORD:
            while (character := (yield from source.peek())).isalnum() or (character and character in "_-."):
                source.pos += 1
        elif isinstance(element, Maybe):
            yield from self._attempt(element.pattern)
        elif isinstance(element, Identity):
            start = source.pos
            yield from self._elements(element.pattern)
            self._id = source.text[start : source.pos]
        elif isinstance(element, Arguments):
            yield from source.spaces()
            if not (yield from source.at("{")):
                raise Wrong
            yield from ValueReader(source, self._emit, element.dialect).value()
        elif isinstance(element, Keywords):
            yield from ValueReader(source, self._emit, element.dialect).arguments(element.end)
        elif isinstance(element, Parameters):
            yield from self._parameters(element)
        elif isinstance(element, CallObject):
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
            raise Wrong
        self._name = name

    def _until(self, stop: str) -> Waits[str]:
        source, start = self.source, self.source.pos
        while not (yield from source.at(stop)):
            character = yield from source.peek()
            if not character or character == "\n" or source.pos - start == MAX_KEY:
                raise Wrong
            source.pos += 1
        return source.text[start : source.pos]

    # Arguments one by one

    def _parameters(self, form: Parameters) -> Waits[None]:
        source, before = self.source, "{"
        root = self.tools[self._name or ""]
        known = properties(root, root)
        while True:
            yield from source.spaces()
            if (yield from source.skip(form.last)):
                break
            yield from source.expect(form.open)
            said = None
            if form.typed:
                key = yield from self._until(form.typed)
                yield from source.expect(form.typed)
                said = yield from self._until(form.stop)
            else:
                key = yield from self._until(form.stop)
            yield from self._elements(form.mid)
            self._emit(f"{before}{json.dumps(key, ensure_ascii=False)}: ")
            before = ", "
            allowed = allowed_types(known.get(key), root)
            if said is not None:
                allowed = STRING if said in SAID_STRING else allowed - STRING or frozenset([said])
            closes = [close.replace("{key}", key) for close in form.close]
            if allowed == STRING:
                self._emit('"')
                yield from self._raw(closes, form.trimmed, lambda text: self._emit(escaped(text)))
                self._emit('"')
            else:
                text = yield from self._held_raw(closes, form.trimmed)
                nested = form.nested and form.nested in text
                self._emit(
                    nested_value(text, form.nested or "", known.get(key), root) if nested else typed_value(text, allowed)
                )
        self._emit("{}" if before == "{" else "}")

    def _held_raw(self, closes: Sequence[str], trimmed: bool) -> Waits[str]:
        held: list[str] = []
        try:
            yield from self._raw(closes, trimmed, held.append)
        except Wrong:
            self._emit("".join(held))
            raise
        return "".join(held)

    def _raw(self, closes: Sequence[str], trimmed: bool, emit: Callable[[str], None]) -> Waits[None]:
        """A parameter's text, up to what closes it."""
        source = self.source
        if trimmed:
            yield from source.skip("\n")
        ends = [*("\n" + close for close in closes if trimmed), *closes]
        firsts = {end[0] for end in ends}
        while (yield from source.peek()):
            for end in ends:
                if (yield from source.skip(end)):
                    return
            start, stop = source.pos, source.pos + 1
            while stop < len(source.text) and source.text[stop] not in firsts:
                stop += 1
            source.pos = stop
            emit(source.text[start:stop])
        raise Wrong

    # A JSON object with name and arguments

    def _object(self, form: CallObject) -> Waits[None]:
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
            key = json.loads((yield from self._text()))
            yield from source.spaces()
            yield from source.expect(":")
            yield from source.spaces()
            if form.keyed:
                self._called(key)
            if form.keyed or (key in form.arguments and held is None and not self._begun):
                if self._name is not None and not form.late_id and (yield from source.at("{")):
                    yield from ValueReader(source, self._emit).value()
                    continue
                held = yield from self._held_arguments()
                if self._name is not None and not form.late_id:
                    self._emit(held)
            elif key == form.name:
                self._called(json.loads((yield from self._text())))
            elif key == form.id and not self._begun:
                self._id = (yield from self._held()).strip('"') or None
            elif key in MEANS_NOTHING or key == form.id:
                yield from self._held()
            else:
                raise Wrong
        if not self._begun:
            if held is None and not form.lenient:
                raise Wrong
            self._emit(held or "{}")

    def _text(self) -> Waits[str]:
        if not (yield from self.source.at('"')):
            raise Wrong
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
            text = to_json(json.loads(text), JSON) or ""
        if text == "null":
            text = "{}"
        if not text.startswith("{"):
            raise Wrong
        return text
