"""Byte-pair merging: which token a word falls into, from the merges in a model file.

Know before you change this room: a vocabulary of 128k tokens comes with 280k merges, and every run of the program
reads them before the first token. So they are not kept as objects: a merge is found by the token that it builds and
the length of its left half, in three arrays of numbers (3 MB; a dictionary of the merges takes 36), and nothing here
loops over the merges in Python. Everything is bytes as the file has them: words arrive in UTF-8, written as the
vocabulary writes them (bpe.py, raw_bpe.py). A merge whose halves no text can reach is harmless: it is never asked for.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from itertools import repeat

import numpy as np
from numpy.typing import NDArray

from mixkv.engine.tokenizer.vocab import Vocabulary
from mixkv.kernels.errors import TokenizerError

NO_TOKEN = -1


class Merges:
    """The merges of a vocabulary, with which words are cut into tokens."""

    def __init__(self, vocab: Vocabulary, hidden: NDArray[np.bool_]) -> None:
        """hidden: (n_vocab,) the tokens that no merge may build.

        Raises TokenizerError for missing merges, one that is no pair, and one that builds an unknown token.
        """
        built, cuts, ranks = _allowed(*_read(vocab), hidden)
        # Merges of token t stand at first[t] .. first[t + 1], each with the length of its left half and its rank.
        self._first = np.searchsorted(built, np.arange(len(hidden) + 1)).astype(np.int32).data
        self._cuts, self._ranks = cuts.data, ranks.data
        self._ids = vocab.ids

    def built(self) -> list[bytes]:
        """The texts of all tokens that merges build, in no order."""
        counts = np.diff(self._first)
        return [token for token, i in self._ids.items() if counts[i]]

    def rank(self, word: bytes, start: int, middle: int, stop: int) -> int:
        """Rank of merging word[start:middle] with word[middle:stop], smaller first; -1 where there is no such merge."""
        token = self._ids.get(word[start:stop])
        if token is not None:
            cut, cuts = middle - start, self._cuts
            for i in range(self._first[token], self._first[token + 1]):
                if cuts[i] == cut:
                    return self._ranks[i]
        return -1

    def split(self, word: bytes) -> list[int]:
        """Ids of the tokens of a word, NO_TOKEN for characters that are none: the pair of lowest rank is merged first,
        of equal ones the leftmost, until no pair merges. O(n log n): the word may be a megabyte of one letter.
        """
        size, rank = len(word), self.rank
        # The token that begins at byte i ends at ends[i], and the one before it begins at before[i]; 0: none begins.
        ends, before = [0] * (size + 1), [0] * (size + 1)
        starts = [i for i, byte in enumerate(word) if byte & 0xC0 != 0x80]
        stops = [*starts[1:], size]
        queue = []
        for start, middle, stop in zip(starts, stops, [*stops[1:], 0], strict=True):
            ends[start], before[middle] = middle, start
            if stop and (r := rank(word, start, middle, stop)) >= 0:
                queue.append((r, start, stop))
        heapify(queue)
        while queue:
            _, start, stop = heappop(queue)
            middle = ends[start]
            if not middle or ends[middle] != stop:
                continue  # one of the two was merged meanwhile: then the pair at this place is longer, or gone
            ends[start], ends[middle], before[stop] = stop, 0, start
            if stop < size and (r := rank(word, start, stop, ends[stop])) >= 0:
                heappush(queue, (r, start, ends[stop]))
            if start and (r := rank(word, before[start], start, stop)) >= 0:
                heappush(queue, (r, before[start], stop))
        ids, at = [], 0
        while at < size:
            ids.append(self._ids.get(word[at : ends[at]], NO_TOKEN))
            at = ends[at]
        return ids


def _read(vocab: Vocabulary) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """For each merge the id of the token that it builds and the length of its left half in bytes, checked."""
    if vocab.merges is None:
        raise TokenizerError(
            f"tokenizer.ggml.merges is missing, and a vocabulary of the kind {vocab.model!r} cannot be used without "
            "it; convert the model again"
        )
    merges, n = vocab.merges, len(vocab.merges)
    texts = map(bytes.replace, merges, repeat(b" "), repeat(b""), repeat(1))
    built = np.fromiter(map(vocab.ids.get, texts, repeat(-1)), np.int32, n)
    cuts = np.fromiter(map(bytes.find, merges, repeat(b" ")), np.int32, n)
    sizes = np.fromiter(map(len, vocab.tokens), np.int32, len(vocab.tokens))
    good = (built >= 0) & (cuts > 0) & (cuts < sizes[built])
    if not good.all():
        raise _problem(int(np.argmin(good)), merges[np.argmin(good)], vocab.ids)
    return built, cuts


def _allowed(
    built: NDArray[np.int32], cuts: NDArray[np.int32], hidden: NDArray[np.bool_]
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
    """Built token, cut and rank of the merges that build no hidden token, sorted by token; of duplicates the last
    counts, as in the `tokenizers` package."""
    ranks = np.flatnonzero(~hidden[built]).astype(np.int32)
    keys = built[ranks].astype(np.int64) << 32 | cuts[ranks]
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    ranks = ranks[order[np.append(keys[1:] != keys[:-1], True)[: len(keys)]]]
    return built[ranks], cuts[ranks], ranks


def _problem(i: int, merge: bytes, ids: dict[bytes, int]) -> TokenizerError:
    left, _, right = merge.partition(b" ")
    if not (left and right):
        return TokenizerError(
            f"merge {i} of the vocabulary reads {merge[:60]!r} instead of two tokens with a space between them; "
            "convert the model again"
        )
    unknown = next(token for token in (left, right, left + right) if token not in ids)
    return TokenizerError(
        f"merge {i} of the vocabulary ({_shown(left, 40)} + {_shown(right, 40)}) names the token "
        f"{_shown(unknown, 80)}, which the vocabulary does not hold; convert the model again"
    )


def _shown(token: bytes, most: int) -> str:
    return repr(token.decode("utf-8", "replace")[:most])
