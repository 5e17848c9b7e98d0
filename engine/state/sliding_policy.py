"""The policy of sliding-window layers: what a ring still holds, and what a truncation or a draft may cost it. Integers
only, no tensors.

A query at p reads keys j > p - window, so what is older is never read, turns cold never, and is overwritten. The ring
has slots for tiles of TILE positions; tile i lies in slot i % tiles. It holds the window and one step, of at most
`chunk` tokens, so that no step overwrites what a query before it reads: an unfinished one can be given up without loss.
"""

from __future__ import annotations

from dataclasses import dataclass

from mixkv.kernels import TILE


@dataclass(frozen=True)
class RingMarks:
    """What is stored of n tokens: positions [oldest, n). oldest is the start of a tile."""

    n: int = 0
    oldest: int = 0


class SlidingPolicy:
    """Bookkeeping of one sequence. chunk: the most tokens of a step, its draft included."""

    def __init__(self, *, n_ctx: int, window: int, chunk: int) -> None:
        self.n_ctx, self.window, self.chunk = n_ctx, window, chunk
        self.marks = RingMarks()

    @property
    def n(self) -> int:
        """Tokens stored."""
        return self.marks.n

    @property
    def tiles(self) -> int:
        """Ring slots: window - 1 + chunk positions touch at most so many tiles, wherever they begin."""
        return min(-(-self.n_ctx // TILE), (self.window + self.chunk - 3) // TILE + 2)

    @property
    def held_tokens(self) -> int:
        """Tokens that the ring holds."""
        return self.marks.n - self.marks.oldest

    def first_read(self, n: int) -> int:
        """The first position that the query behind n tokens reads."""
        return max(0, n - self.window + 1)

    def oldest_after(self, end: int) -> int:
        """The first position that is still there once tokens up to `end` are written."""
        return max(self.marks.oldest, TILE * (-(-end // TILE) - self.tiles), 0)

    def commit(self, begun: int, keep: int | None = None) -> None:
        """`begun` tokens were written, and are stored; or the first `keep` of them, the rest a draft that was rejected.

        Taking the draft back is exact, since a step overwrites nothing that the query before it reads.
        """
        assert 0 < begun <= self.chunk, "a step is at most one chunk long"
        kept = begun if keep is None else keep
        self.marks = RingMarks(self.n + kept, self.oldest_after(self.n + begun))

    def needed(self) -> RingMarks:
        """Of what is stored what is still read, in whole tiles."""
        oldest = TILE * (self.first_read(self.n) // TILE)
        return RingMarks(self.n, max(self.marks.oldest, oldest))

    def reaches(self, n: int) -> bool:
        """Whether the ring holds all that the query behind n tokens reads, and those behind it."""
        return n == 0 or (0 < n <= self.n and self.marks.oldest <= self.first_read(n))

    def truncate(self, n: int) -> None:
        """Forget all but the first n tokens; the ring reaches that."""
        assert self.reaches(n), "what is gone cannot be read again"
        self.marks = RingMarks(n, self.marks.oldest if n else 0)

    def clear(self) -> None:
        """Forget everything."""
        self.marks = RingMarks()
