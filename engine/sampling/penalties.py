"""Penalties: pure functions that lower the logits of tokens because of what was said before.

Each takes logits (n_vocab,) float32 and returns a new row; the history it looks at is an int array of token ids,
oldest first, prompt included. `BreakerCount` is the one piece of state here: how far back DRY may look.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

_LOG_FLOAT_MAX = 88.72  # a DRY penalty grows exponentially with the repeat; this bounds the exponent
_MAX_PENALTY = 1e30


def add_bias(logits: NDArray[np.float32], bias: Mapping[int, float]) -> NDArray[np.float32]:
    """The logits with each token's bias added; -inf bans the token."""
    biased = logits.copy()
    biased[list(bias)] += np.array(list(bias.values()), np.float32)
    return biased


def penalize(
    logits: NDArray[np.float32], window: NDArray[np.int64], repeat: float, presence: float, frequency: float
) -> NDArray[np.float32]:
    """Penalties on the tokens of `window`.

    A logit above 0 is divided by `repeat` (CTRL, Keskar et al. 2019), one of 0 or below multiplied by it, which the
    paper leaves out and which keeps the penalty from becoming a reward; then `presence` and `frequency` times the
    token's count in the window are subtracted (OpenAI's API).
    """
    ids, counts = np.unique(window, return_counts=True)
    old = logits[ids].astype(np.float64)
    new = np.where(old > 0, old / repeat, old * repeat) - presence - frequency * counts
    penalized = logits.copy()
    with np.errstate(over="ignore"):
        penalized[ids] = new
    return penalized


def penalize_dry(
    logits: NDArray[np.float32],
    window: NDArray[np.int64],
    max_repeat: int,
    multiplier: float,
    base: float,
    allowed_length: int,
    is_breaker: Callable[[int], bool],
) -> NDArray[np.float32]:
    """Don't Repeat Yourself (p-e-w, 2024): a token that would extend a repeated sequence of length n loses
    multiplier * base^(n - allowed_length), where n >= allowed_length is the longest run at the end of the window that
    also stands somewhere before that token. `max_repeat`: how many of the last tokens may count (those after the
    last sequence breaker). Tokens that contain a breaker are spared.
    """
    ids, lengths = longest_repeats(window, min(max_repeat, allowed_length + _max_exponent(base)), allowed_length)
    if not len(ids):
        return logits
    spared = np.array([is_breaker(int(token)) for token in ids], dtype=bool)
    penalties = multiplier * base ** (lengths - allowed_length).astype(np.float64)
    penalized = logits.copy()
    penalized[ids[~spared]] -= np.minimum(penalties[~spared], _MAX_PENALTY)
    return penalized


def longest_repeats(
    window: NDArray[np.int64], max_length: int, min_length: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Tokens that would continue a repeat of the window's end, and how long that repeat is already.

    For each place in the window the run of tokens before it is compared with the window's end, backwards, all places
    at once; lengths count up to `max_length`. Returns ids (n,) ascending and lengths (n,), each >= min_length.
    """
    n = len(window)
    if n < 2 or max_length < min_length:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    ends = np.arange(n - 1)  # the run ends here, its continuation is the next token
    lengths = np.zeros(n - 1, np.int64)
    alive = ends
    for length in range(min(max_length, n - 1)):
        alive = alive[alive >= length]
        alive = alive[window[alive - length] == window[n - 1 - length]]
        if not len(alive):
            break
        lengths[alive] = length + 1
    long_enough = lengths >= min_length
    ids, place = np.unique(window[ends[long_enough] + 1], return_inverse=True)
    longest = np.zeros(len(ids), np.int64)
    np.maximum.at(longest, place, lengths[long_enough])
    return ids, longest


def _max_exponent(base: float) -> int:
    """The highest exponent that keeps base^exponent within float32; 0 for base 1, whose powers are all 1."""
    return int(_LOG_FLOAT_MAX / math.log(base)) if base > 1 else 0


class BreakerCount:
    """Counts the tokens since the last DRY sequence breaker; a breaker may straddle tokens.

    tokens_to_text: the text of a few token ids; asked once for each id. breakers: non-empty strings.
    """

    def __init__(self, breakers: Sequence[str], tokens_to_text: Callable[[Sequence[int]], str]) -> None:
        self.since = 0
        self._breakers = tuple(breakers)
        self._tokens_to_text = tokens_to_text
        self._texts: dict[int, str] = {}
        self._overlap = max(map(len, breakers), default=1) - 1
        self._tail = ""

    def accept(self, token: int) -> None:
        """Take note of the next token of the sequence."""
        text = self._text(token)
        context = self._tail + text
        # A breaker that ends inside this token's text starts at most len(breaker) - 1 characters before it.
        ends_here = any(b in context[max(0, len(self._tail) - len(b) + 1) :] for b in self._breakers)
        self.since = 0 if ends_here else self.since + 1
        self._tail = context[max(0, len(context) - self._overlap) :]

    def contains_breaker(self, token: int) -> bool:
        """Whether the token's own text contains a breaker."""
        return any(b in self._text(token) for b in self._breakers)

    def _text(self, token: int) -> str:
        if token not in self._texts:
            self._texts[token] = self._tokens_to_text([token])
        return self._texts[token]
