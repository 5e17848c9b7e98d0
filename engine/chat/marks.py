"""Telling template text from message text in a rendering: messages carry marks through the template.

A mark is a character that stands nowhere in the input, put behind the first character of whatever could be a control
token. So no control token of a marked rendering is a message's, whatever the template did with it: cut it, put pieces
together, wrote it as JSON. Without its marks the rendering must be what it is without marks at all. Where it is not,
the template looked for something that a mark has broken (as for "</think>" in an old answer). Then control tokens alone
are marked, and that rendering is taken if it has the same control tokens as the first. If it differs again, the first
one counts: the template has not seen control tokens in message texts, and none has become one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from mixkv.kernels.errors import InputError

_CANDIDATES = [chr(c) for c in (*range(0xFDD0, 0xFDF0), *range(0xE000, 0xF900))]
"""Characters that texts do not have: noncharacters, and Unicode's private use."""
_NAMES = ("role", "type")
"""Fields whose values are names, which templates compare."""


@dataclass(frozen=True)
class Rendered:
    """A rendering. marked: the text with `mark` in whatever is a message's and would otherwise be a control token."""

    marked: str
    mark: str

    @property
    def text(self) -> str:
        """What the template wrote."""
        return unmarked(self.marked, self.mark)


def unmarked(text: str, mark: str) -> str:
    """Without marks, also where a template has written them as JSON in ASCII."""
    return text.replace(mark, "").replace(_escaped(mark), "")


def choose_mark(*values: object) -> str:
    """A character that stands in none of the texts in these values, neither itself nor escaped."""
    texts: list[str] = []
    _collect(values, texts)
    whole = "\0".join(texts)
    for mark in _CANDIDATES:
        if mark not in whole and _escaped(mark) not in whole:
            return mark
    raise InputError("the messages hold every character of Unicode's private use: leave one out")


def rendered_with_marks(
    render: Callable[[Any], str], value: Any, controls: Collection[str], mark: str, splits: Callable[[str], list[int]]
) -> Rendered:
    """Render `value` with its texts marked. controls: the texts of control tokens. splits: ids of the control tokens
    in a marked rendering. mark: stands nowhere in the value (`choose_mark`)."""
    # A vocabulary whose control tokens begin with letters would have marks in every word, the names of fields included.
    firsts = {ord(text[0]): text[0] + mark for text in controls if not text[0].isalnum() and not text[0].isspace()}
    broken = [(text, text[0] + mark + text[1:]) for text in controls]
    words = [(text, pieces) for text, pieces in broken if ord(text[0]) not in firsts]

    def everywhere(text: str) -> str:
        for whole, pieces in words:
            if whole in text:
                text = text.replace(whole, pieces)
        return text.translate(firsts)

    def tokens_alone(text: str) -> str:
        for whole, pieces in broken:
            if whole in text:
                text = text.replace(whole, pieces)
        return text

    plain = render(value)
    marked_value = _map(value, everywhere)
    if marked_value == value:
        return Rendered(plain, mark)
    first = render(marked_value)
    if unmarked(first, mark) == plain:
        return Rendered(first, mark)
    second = render(_map(value, tokens_alone))
    if unmarked(second, mark) == plain and splits(second) == splits(first):
        return Rendered(second, mark)
    return Rendered(first, mark)


def _escaped(mark: str) -> str:
    return f"\\u{ord(mark):04x}"


def _collect(value: object, texts: list[str]) -> None:
    if isinstance(value, str):
        texts.append(value)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            texts.append(str(key))
            _collect(item, texts)
    elif isinstance(value, list | tuple):
        for item in value:
            _collect(item, texts)


def _map(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {
            key if str(key).isidentifier() else change(str(key)): item if key in _NAMES else _map(item, change)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_map(item, change) for item in value]
    return value
