"""What calls look like: the words that the table of formats is written in."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from mixkv.engine.chat.values import JSON, PYTHON, Dialect


class Mark(Enum):
    """Places in a pattern: spaces, if any; the function's name; a word of letters, digits, "_", "-", "."; a number."""

    SPACES = auto()
    NAME = auto()
    WORD = auto()
    DIGITS = auto()


SPACES, NAME, WORD, DIGITS = Mark.SPACES, Mark.NAME, Mark.WORD, Mark.DIGITS


@dataclass(frozen=True)
class Maybe:
    """Something that may be left out; known by its first literal."""

    pattern: Pattern


@dataclass(frozen=True)
class OneOf:
    """One of some texts; what models are trained to write stands first."""

    texts: tuple[str, ...]


@dataclass(frozen=True)
class Identity:
    """The call's id: the text of a pattern."""

    pattern: Pattern


@dataclass(frozen=True)
class Arguments:
    """An object with the arguments."""

    dialect: Dialect = JSON


@dataclass(frozen=True)
class Keywords:
    """Arguments of a Python call: `a=1, b="x")`."""

    end: str = ")"
    dialect: Dialect = PYTHON


@dataclass(frozen=True)
class Parameters:
    """Arguments one by one: open key mid value close. typed: stands between key and mid, with a type after it.
    trimmed: a newline after mid and one before close belong to neither. close: any of these. nested: objects and lists
    are tags again, each after this text. last: ends them all; where a model forgets it, they end before outer."""

    open: str
    mid: Pattern
    close: tuple[str, ...]
    last: str
    typed: str | None = None
    trimmed: bool = False
    nested: str | None = None
    outer: str | None = None

    @property
    def stop(self) -> str:
        """What ends the key, or the type after it."""
        assert isinstance(self.mid[0], str), "mid begins with a text"
        return self.mid[0]


@dataclass(frozen=True)
class CallObject:
    """A JSON object that says name and arguments; what models are trained to write stands first. late_id: the id stands
    last, so that nothing is known before the end; early_id: it stands first. lenient: the arguments may be left out
    where they are none. keyed: the name is the arguments' key."""

    name: str = "name"
    arguments: tuple[str, ...] = ("arguments", "parameters")
    id: str = "id"
    late_id: bool = False
    early_id: bool = False
    lenient: bool = True
    keyed: bool = False


Element = str | Mark | Maybe | OneOf | Identity | Arguments | Keywords | Parameters | CallObject
Pattern = tuple[Element, ...]


@dataclass(frozen=True)
class Calls:
    """One way in which calls are written: begin, call (between, call)*, end. first: only where a reply, or what follows
    a tag, begins."""

    begin: Pattern
    call: Pattern
    end: Pattern = ()
    between: Pattern = (SPACES,)
    first: bool = False

    @property
    def literal(self) -> str:
        """What it begins with; "" where that is no literal."""
        start = (*self.begin, *self.call)[0]
        if isinstance(start, CallObject):
            return "{"
        return start if isinstance(start, str) else ""
