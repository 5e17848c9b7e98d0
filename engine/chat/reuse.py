"""Which tokens a conversation's text is made of: those that it was generated as, where they are in a cache.

A reply that comes back in the next turn's messages is text, and encoding it need not give the tokens that were sampled:
models sometimes spell a word in an unusual way, and templates cut the blanks around what they are given. Then the cache
would be of use up to there only. So the tokens of a reply are remembered, and take the place of the prompt's own where
both print the same, blanks around the reply aside, and where that saves computing.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from mixkv.engine.sequence import common_prefix
from mixkv.engine.tokenizer.base import Tokenizer

REMEMBERED = 64
"""Replies."""


class _Reply(NamedTuple):
    """asked: the prompt as its text is encoded; fed: the prompt as it was computed; tokens: the reply."""

    asked: list[int]
    fed: list[int]
    tokens: list[int]


class Replies:
    """The newest replies of a model. For any thread."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._lock = threading.Lock()
        self._known: deque[_Reply] = deque(maxlen=REMEMBERED)

    def add(self, asked: list[int], fed: list[int], tokens: list[int]) -> None:
        """A reply: the ids of its prompt's text, what was computed in their place, and its own."""
        if tokens:
            with self._lock:
                self._known.append(_Reply(asked, fed, list(tokens)))

    def as_generated(self, ids: list[int], cached: Sequence[Sequence[int]]) -> list[int]:
        """The prompt `ids`, with the tokens of replies in it as they were sampled, if one of the sequences `cached`
        holds more of it then."""
        with self._lock:
            known = list(self._known)
        best, most = ids, max((common_prefix(tokens, ids) for tokens in cached), default=0)
        for reply in known:
            n = len(reply.asked)
            if n >= len(ids) or ids[:n] != reply.asked:
                continue
            stop = self._end_of(reply.tokens, ids, n)
            if stop is None:
                continue
            other = [*reply.fed, *reply.tokens, *ids[stop:]]
            held = max((common_prefix(tokens, other) for tokens in cached), default=0)
            if held > most:
                best, most = other, held
        return best

    def _end_of(self, reply: list[int], ids: list[int], start: int) -> int | None:
        """Where the text of a reply ends that begins at `start` of a prompt, blanks before it aside; None where another
        text stands there."""
        tokenizer = self._tokenizer
        wanted = b"".join(map(tokenizer.piece, reply)).strip()
        controls = [token for token in reply if tokenizer.is_control(token)]
        text, found = b"", list[int]()
        for i in range(start, len(ids)):
            found += [ids[i]] if tokenizer.is_control(ids[i]) else []
            text = (text + tokenizer.piece(ids[i])) if text else tokenizer.piece(ids[i]).lstrip()
            if len(text) >= len(wanted):
                return i + 1 if text == wanted and found == controls else None
        return None
