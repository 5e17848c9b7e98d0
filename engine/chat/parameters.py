"""Reads a call's arguments where they are written one by one, between tags."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from mixkv.engine.chat.patterns import Parameters, Pattern
from mixkv.engine.chat.schemas import Schema, properties
from mixkv.engine.chat.source import Source, Waits
from mixkv.engine.chat.typed import STRING, allowed_types, nested_value, typed_value
from mixkv.engine.chat.values import Emit, escaped
from mixkv.kernels.errors import NoMatch

MAX_KEY = 256
"""Characters of a parameter's name; more is text that goes on."""
NO_STRING = ("false", "number", "integer", "boolean", "object", "array", "null")
SAID = {"string": True, "true": True} | dict.fromkeys(NO_STRING, False)
"""What formats say of a parameter, its type or whether it is a string, and whether it is one."""


class ParameterReader:
    """Reads parameters and emits the JSON object that they make: strings as they come, all else when it is whole.
    elements: reads a pattern."""

    def __init__(self, source: Source, emit: Emit, elements: Callable[[Pattern], Waits[None]]) -> None:
        self._source, self._emit, self._elements = source, emit, elements

    def read(self, form: Parameters, root: Schema) -> Waits[None]:
        source, before = self._source, "{"
        known = properties(root, root)
        while True:
            yield from source.spaces()
            if (yield from source.skip(form.last)) or (form.outer and (yield from source.at(form.outer))):
                break
            yield from source.expect(form.open)
            said = None
            if form.typed:
                key = yield from self._until(form.typed)
                yield from source.expect(form.typed)
                said = yield from self._until(form.stop)
                if said not in SAID:
                    raise NoMatch
            else:
                key = yield from self._until(form.stop)
            yield from self._elements(form.mid)
            self._emit(f"{before}{json.dumps(key, ensure_ascii=False)}: ")
            before = ", "
            allowed = allowed_types(known.get(key), root)
            if said is not None:
                allowed = STRING if SAID[said] else allowed - STRING or frozenset([said])
            closes = [close.replace("{key}", key) for close in form.close]
            if allowed == STRING:
                self._emit('"')
                yield from self._raw(closes, form.trimmed, lambda text: self._emit(escaped(text)))
                self._emit('"')
            else:
                text = yield from self._held_raw(closes, form.trimmed)
                if form.nested and form.nested in text:
                    self._emit(nested_value(text, form.nested, known.get(key), root))
                else:
                    self._emit(typed_value(text, allowed))
        self._emit("{}" if before == "{" else "}")

    def _held_raw(self, closes: Sequence[str], trimmed: bool) -> Waits[str]:
        held: list[str] = []
        try:
            yield from self._raw(closes, trimmed, held.append)
        except NoMatch:
            self._emit("".join(held))
            raise
        return "".join(held)

    def _raw(self, closes: Sequence[str], trimmed: bool, emit: Callable[[str], None]) -> Waits[None]:
        """A parameter's text, up to what closes it."""
        source = self._source
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
        raise NoMatch

    def _until(self, stop: str) -> Waits[str]:
        source, start = self._source, self._source.pos
        while not (yield from source.at(stop)):
            character = yield from source.peek()
            if not character or character == "\n" or source.pos - start == MAX_KEY:
                raise NoMatch
            source.pos += 1
        return source.text[start : source.pos]
