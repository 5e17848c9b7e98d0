"""Which tokens a conversation's text is made of: those that it was generated as, where they are in a cache.

A reply that comes back in the next turn's messages is text, and encoding it need not give the tokens that were sampled:
models sometimes spell a word in an unusual way. Then the cache would be of use up to there only. So the tokens of a
cached sequence take the place of the prompt's own, as long as both print the same bytes and have the same control
tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mixkv.engine.sequence import common_prefix
from mixkv.engine.tokenizer.base import Tokenizer


def as_generated(ids: list[int], cached: Iterable[Sequence[int]], tokenizer: Tokenizer) -> list[int]:
    """The prompt `ids` in the tokens of whichever sequence of `cached` holds most of it; it prints the same."""
    best, most = ids, max((common_prefix(tokens, ids) for tokens in cached), default=0)
    for tokens in cached:
        m, k = _alike(tokens, ids, tokenizer)
        if m > most:
            best, most = [*tokens[:m], *ids[k:]], m
    return best


def _alike(a: Sequence[int], b: Sequence[int], tokenizer: Tokenizer) -> tuple[int, int]:
    """The most tokens (of a, of b) from the beginning that print the same."""
    i = j = common_prefix(a, b)
    best = (i, j)
    left, right = b"", b""
    while True:
        if left == right:
            best, left, right = (i, j), b"", b""
            while i < len(a) and j < len(b) and a[i] == b[j]:
                i, j = i + 1, j + 1
                best = (i, j)
            if i == len(a) or j == len(b) or tokenizer.is_control(a[i]) or tokenizer.is_control(b[j]):
                return best
        if len(left) <= len(right):
            if i == len(a) or tokenizer.is_control(a[i]):
                return best
            left, i = left + tokenizer.piece(a[i]), i + 1
        else:
            if j == len(b) or tokenizer.is_control(b[j]):
                return best
            right, j = right + tokenizer.piece(b[j]), j + 1
        n = min(len(left), len(right))
        if left[:n] != right[:n]:
            return best
        left, right = left[n:], right[n:]
