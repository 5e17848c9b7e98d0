"""Filters: pure functions from candidates to fewer (or reshaped) candidates, one pass of NumPy over the vocabulary.

Two rules keep them composable. Candidates are always in ascending order of id, whatever order a filter ranks them
in, so ties go to the lowest id and the draw does not depend on which filters ran. And no filter returns nothing:
the one it ranks first stays. Ranking uses partial selection, because sorting a vocabulary of 128k costs 10 ms.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

_LEAST = float(np.finfo(np.float32).min)
_FIRST_PREFIX = 512  # most nuclei of real models are smaller; larger ones are found in steps of x8


@dataclass(frozen=True, eq=False)
class Candidates:
    """Tokens that may still be drawn. `ids` (n,) int64 ascending, `logits` (n,) float, all finite; n >= 1."""

    ids: NDArray[np.int64]
    logits: NDArray[np.floating]

    @cached_property
    def probs(self) -> NDArray[np.float64]:
        """Softmax of the logits over the candidates alone, (n,) float64."""
        weights = np.exp(self.logits.astype(np.float64) - float(self.logits.max()))
        return weights / weights.sum()

    def keep(self, selection: NDArray[np.bool_] | NDArray[np.intp]) -> Candidates:
        """The candidates of a boolean mask, or of ascending indices."""
        return Candidates(self.ids[selection], self.logits[selection])

    @classmethod
    def of(cls, logits: NDArray[np.floating]) -> Candidates:
        """All tokens of a row of logits (n_vocab,) but those at -inf; at least one must be finite, none NaN."""
        everything = cls(_all_ids(len(logits)), logits)
        return everything if logits.min() > -np.inf else everything.keep(logits > -np.inf)


def top_k(candidates: Candidates, k: int) -> Candidates:
    """The k most probable, exactly k where there are as many (Fan et al. 2018); k <= 0 keeps all."""
    n = len(candidates.ids)
    if k <= 0 or k >= n:
        return candidates
    return candidates.keep(_smallest(-candidates.logits, k))


def top_n_sigma(candidates: Candidates, n_sigma: float) -> Candidates:
    """Logits within n_sigma standard deviations of the highest (Tang et al. 2024); n_sigma <= 0 keeps all."""
    if n_sigma <= 0:
        return candidates
    logits = candidates.logits.astype(np.float64)
    return candidates.keep(logits >= logits.max() - n_sigma * logits.std())


def top_p(candidates: Candidates, p: float, min_keep: int = 0) -> Candidates:
    """The smallest set of most probable tokens whose mass reaches p (Holtzman et al. 2019); p >= 1 keeps all."""
    if p >= 1:
        return candidates
    return candidates.keep(_smallest_mass(-candidates.logits, candidates.probs, p, min_keep))


def typical(candidates: Candidates, p: float, min_keep: int = 0) -> Candidates:
    """The smallest set reaching mass p of those whose surprise is nearest the entropy (Meister et al. 2022)."""
    if p >= 1:
        return candidates
    probs = candidates.probs
    logits = candidates.logits.astype(np.float64)
    surprise = float(logits @ probs) - logits  # less the entropy: -log p = log(sum e^x) - x, H = log(sum e^x) - E[x]
    return candidates.keep(_smallest_mass(np.abs(surprise), probs, p, min_keep))


def min_p(candidates: Candidates, p: float, min_keep: int = 0) -> Candidates:
    """Tokens at least p times as probable as the most probable one (Nguyen et al. 2024); p <= 0 keeps all."""
    if p <= 0:
        return candidates
    logits = candidates.logits.astype(np.float64)
    chosen = logits >= logits.max() + math.log(p)
    if np.count_nonzero(chosen) < min(min_keep, len(logits)):
        return top_k(candidates, min_keep)
    return candidates.keep(chosen)


def xtc(
    candidates: Candidates, probability: float, threshold: float, min_keep: int, rng: np.random.Generator
) -> Candidates:
    """Exclude top choices (p-e-w, 2024): with this probability, drop all at or above the threshold but the last.

    Uses one random number a call, whether it acts or not, unless it is switched off (probability 0).
    """
    if probability <= 0 or rng.random() >= probability:
        return candidates
    top = candidates.probs >= threshold
    n_dropped = int(np.count_nonzero(top)) - 1
    if n_dropped < 1 or threshold > 0.5 or len(top) - n_dropped < min_keep:
        return candidates
    members = np.flatnonzero(top)
    ranked = members[np.argsort(-candidates.logits[members], kind="stable")]
    chosen = ~top
    chosen[ranked[-1]] = True
    return candidates.keep(chosen)


def temperature(candidates: Candidates, t: float, keep_zero: bool = False) -> Candidates:
    """Logits divided by t > 0. They are taken relative to the highest, so that a tiny t cannot overflow.

    keep_zero: not relative, because a penalty comes later, to which it matters which logits are above 0.
    """
    if t == 1:
        return candidates
    logits = candidates.logits.astype(np.float64)
    with np.errstate(over="ignore"):
        scaled = np.clip((logits if keep_zero else logits - logits.max()) / t, -1e300, 1e300)
    return Candidates(candidates.ids, scaled)


def edited(
    candidates: Candidates, n_vocab: int, edit: Callable[[NDArray[np.float32]], NDArray[np.float32]]
) -> Candidates:
    """The candidates with logits changed by `edit`, which sees a whole row (n_vocab,), -inf where there is none."""
    row = np.full(n_vocab, -np.inf, np.float32)
    row[candidates.ids] = np.clip(candidates.logits, _LEAST, -_LEAST)
    return Candidates.of(edit(row))


def draw(candidates: Candidates, rng: np.random.Generator) -> int:
    """Index of one candidate, drawn by its probability with one random number (inverse of the running sum)."""
    running = np.cumsum(candidates.probs)
    point = rng.random() * running[-1]  # random() <= 1 - 2^-53, so the product rounds to less than the sum
    return int(np.searchsorted(running, point, side="right"))


@lru_cache(maxsize=4)
def _all_ids(n_vocab: int) -> NDArray[np.int64]:
    """0 .. n_vocab-1, shared and read-only: making it anew costs more than the whole of top-k (page faults)."""
    ids = np.arange(n_vocab)
    ids.setflags(write=False)
    return ids


def _smallest(key: NDArray[np.floating], k: int) -> NDArray[np.intp]:
    """Ascending indices of the k smallest keys, exactly k, lowest indices among equals; 1 <= k < n."""
    limit = np.partition(key, k - 1)[k - 1]
    chosen = np.flatnonzero(key <= limit)
    if len(chosen) > k:
        equal = np.flatnonzero(key[chosen] == limit)
        chosen = np.delete(chosen, equal[k - len(chosen) :])
    return chosen


def _smallest_mass(
    key: NDArray[np.floating], probs: NDArray[np.float64], mass: float, min_keep: int
) -> NDArray[np.intp]:
    """Ascending indices of the shortest run of smallest keys whose probabilities reach `mass`; at least 1."""
    n, size = len(key), _FIRST_PREFIX
    while True:
        part = np.arange(n) if size >= n else _smallest(key, size)
        order = part[np.argsort(key[part], kind="stable")]
        wanted = int(np.searchsorted(np.cumsum(probs[order]), mass, side="left")) + 1
        wanted = max(wanted, min_keep)
        if wanted <= len(order) or size >= n:
            return np.sort(order[:wanted])
        size *= 8
