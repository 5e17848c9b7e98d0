"""Lark, as llguidance reads it, from rules of a context-free grammar.

Rules that do not lead back to themselves are regular: each becomes one terminal, and so do stretches of them within the
other rules. That matters, because the lexer takes terminals as long as they can be: inside one every way through
counts, and only where one meets a rule that leads back to itself does the longest win.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field


@dataclass
class Node:
    """kind: "text" (a literal), "chars" (a regular expression of one character), "rule" (a name), "all" (parts in a
    row), "any" (one of the parts), "repeat" (its part, least to most times; most None: no bound)."""

    kind: str
    text: str = ""
    parts: list[Node] = field(default_factory=list)
    least: int = 1
    most: int | None = 1


def names_in(node: Node) -> Iterator[str]:
    """The rules that a node names."""
    if node.kind == "rule":
        yield node.text
    for part in node.parts:
        yield from names_in(part)


def write_lark(rules: dict[str, Node], root: str) -> str:
    """All that can be reached from the rule `root`, as the text of a Lark grammar."""
    return _Writer(rules).lark(root)


class _Writer:
    """Lark: terminals T0, T1, ... for what is regular, rules r0, r1, ... for the rest."""

    def __init__(self, rules: dict[str, Node]) -> None:
        self._rules = rules
        self._regular: set[str] = set()
        while more := {n for n, rule in rules.items() if n not in self._regular and self._is_regular(rule)}:
            self._regular |= more
        self._written: dict[str, str] = {}  # name in GBNF -> name in Lark
        self._lines: list[str] = []
        self._n_terminals = 0

    def lark(self, root: str) -> str:
        start = self._rule(Node("rule", root))
        return "\n".join(["%llguidance {}", f"start: {start}", *self._lines]) + "\n"

    def _is_regular(self, node: Node) -> bool:
        return all(name in self._regular for name in names_in(node))

    def _named(self, name: str) -> str:
        if name not in self._written:
            regular = name in self._regular
            self._written[name] = f"T{self._new()}" if regular else f"r{len(self._written)}"
            body = (self._terminal if regular else self._rule)(self._rules[name])
            self._lines.append(f"{self._written[name]}: {body}")
        return self._written[name]

    def _new(self) -> int:
        self._n_terminals += 1
        return self._n_terminals - 1

    def _terminal(self, node: Node) -> str:
        """What is regular, as the body of a terminal."""
        if node.kind == "all":
            return " ".join(map(self._terminal, node.parts)) or '""'
        return self._other(node, self._terminal)

    def _rule(self, node: Node) -> str:
        """Anything, as the body of a rule: stretches of what is regular become terminals of their own."""
        if self._is_regular(node):
            if node.kind == "rule":
                return self._named(node.text)
            body, name = self._terminal(node), f"T{self._new()}"
            self._lines.append(f"{name}: {body}")
            return name
        if node.kind != "all":
            return self._other(node, self._rule)
        words: list[str] = []
        stretch: list[Node] = []
        for part in [*node.parts, None]:
            if part is not None and self._is_regular(part):
                stretch.append(part)
                continue
            if stretch:
                words.append(self._rule(stretch[0] if len(stretch) == 1 else Node("all", parts=stretch)))
                stretch = []
            if part is not None:
                words.append(self._rule(part))
        return " ".join(words)

    def _other(self, node: Node, write: Callable[[Node], str]) -> str:
        if node.kind == "text":
            return json.dumps(node.text, ensure_ascii=False)
        if node.kind == "chars":
            return f"/{node.text}/"
        if node.kind == "rule":
            return self._named(node.text)
        if node.kind == "any":
            return f"({' | '.join(map(write, node.parts))})"
        inner = f"({write(node.parts[0])})"
        if (node.least, node.most) == (0, 1):
            return f"{inner}?"
        if node.most is None and node.least < 2:
            return inner + "*+"[node.least]
        return f"{inner}{{{node.least},{'' if node.most is None else node.most}}}"
