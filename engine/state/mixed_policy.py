"""The mixed cache's policy: who is hot, when a tile moves, what a truncation costs. Integers only, no tensors.

Which form of a key a query reads depends on the query's position p and on nothing else (kv-cache.md section 2):

    first_hot(p) = S + 16 floor(max(0, p + 1 - N - S) / 16),   S = sink_tokens, N = hot_window

Keys j < S and j >= first_hot(p) are read exactly, those between in their cold form. Three marks describe what is
stored of a sequence of length n:

    0 ....... S ............ hot_start ...... quant_end ...... n
    sinks     cold form only  both (rarely)    hot form only

Both forms exist only while tokens are attended to, for `rollback_reserve` tokens, and after a truncation. A prompt
goes in by pieces: append at most PIECE tokens, quantize what their last query reads cold, attend, next piece. Since
the rule above asks for p alone, where the cuts lie changes no result.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mixkv.kernels import TILE
from mixkv.kernels.errors import ContextFullError

PIECE = 128
"""Tokens, a multiple of TILE. A piece is hot beside the window while it is attended to, so it sets the peak: 0.312 of
FP16's bytes at 16,384 tokens with the default window, where 512 made it 0.336; 64 would save 0.003 more. On two cores
attention takes the same time in pieces of 64 to 512 (Llama 3.2 1B, at depths of 0, 1,024 and 8,192); 128 leave it 64
blocks of query rows there, four for each of 16 threads."""


@dataclass(frozen=True)
class Step:
    """Orders for one piece of tokens, the same for every layer.

    The piece stands at positions [pos, pos + n); query i reads the hot form from hot_from[i] on; tiles
    [cold_from, cold_to) are quantized before anything is attended to. hot_start: the first token past the sinks whose
    hot form is still there by then.
    """

    pos: int
    n: int
    hot_from: NDArray[np.int64]
    cold_from: int
    cold_to: int
    hot_start: int


@dataclass(frozen=True)
class Marks:
    """What is stored; see the drawing above. degraded_end: hot positions below it hold dequantized values."""

    n: int
    hot_start: int
    quant_end: int
    degraded_end: int = 0


class CachePolicy:
    """Bookkeeping of one sequence.

    hot_window None means that nothing ever turns cold. chunk: the most tokens that a step appends, and `piece` at most
    where tokens turn cold.
    """

    def __init__(
        self, *, n_ctx: int, sink_tokens: int, hot_window: int | None, rollback_reserve: int = 0, chunk: int = 1,
        piece: int = PIECE,
    ) -> None:  # fmt: skip
        self.n_ctx, self.sinks, self.window, self.reserve = n_ctx, sink_tokens, hot_window, rollback_reserve
        self.chunk = chunk if hot_window is None else min(chunk, piece)
        self.marks = self._fresh()

    def _fresh(self) -> Marks:
        return Marks(n=0, hot_start=self.sinks, quant_end=self.sinks)

    @property
    def n(self) -> int:
        """Tokens stored."""
        return self.marks.n

    @property
    def hot_tiles(self) -> int:
        """Ring slots for every position that can be hot at once: window, reserve, one piece, and partial tiles."""
        whole = -(-max(0, self.n_ctx - self.sinks) // TILE)
        if self.window is None:
            return max(1, whole)
        return max(1, min(whole, -(-(self.window + self.reserve + self.chunk) // TILE) + 2))

    def first_hot(self, p: int) -> int:
        """The first position past the sinks that a query at p reads exactly."""
        if self.window is None:
            return self.sinks
        return self.sinks + TILE * (max(0, p + 1 - self.window - self.sinks) // TILE)

    def _whole(self, n: int) -> int:
        """Where the last whole tile of n tokens ends."""
        return self.sinks + TILE * (max(0, n - self.sinks) // TILE)

    def _tiles_end(self, n: int) -> int:
        """Where the last tile of n tokens ends, whole or not."""
        return self.sinks + -(-max(0, n - self.sinks) // TILE) * TILE

    def cold_end(self, n: int) -> int:
        """Where the cold tiles that a query at n needs end, of those that n tokens fill.

        Without a window the query completes a tile and reads its own key cold: that tile comes with the next step.
        """
        return min(self.first_hot(n), self._whole(n))

    def check_room(self, n: int) -> None:
        """ContextFullError if n more tokens exceed the context."""
        if self.n + n > self.n_ctx:
            raise ContextFullError(
                f"{n} more tokens after {self.n} exceed the context of {self.n_ctx}: load with a larger n_ctx"
            )

    def steps(self, n: int) -> list[Step]:
        """Orders for the next n tokens, piece by piece; nothing changes until the last is committed.

        ContextFullError if they do not fit.
        """
        self.check_room(n)
        assert n > 0, "a step has tokens"
        ahead, steps = copy.copy(self), []
        for start in range(0, n, self.chunk):
            step = ahead.step(min(self.chunk, n - start))
            ahead.commit(step)
            steps.append(step)
        return steps

    def step(self, n: int) -> Step:
        """Orders for the next n tokens as one piece; nothing changes until `commit`. ContextFullError as above."""
        self.check_room(n)
        pos, end = self.marks.n, self.marks.n + n
        assert 0 < n <= self.chunk, "a step is at most one piece long"
        hot_from = np.array([self.first_hot(p) for p in range(pos, end)], np.int64)
        cold_to = max(self.marks.quant_end, self.cold_end(end))
        return Step(pos, n, hot_from, self.marks.quant_end, cold_to, self.marks.hot_start)

    def commit(self, step: Step, keep: int | None = None) -> None:
        """All tokens up to the step's last are stored, or the first `keep` of it where the rest was a draft that was
        rejected; hot copies that no later query reads are given up.

        Taking a draft back is exact: the ring has room for a whole piece besides all that is hot at once, so the step
        has not used the slot of any token that is hot without it. Tiles that only the draft's queries read in cold form
        stay, if no rejected token is in one.
        """
        n = step.pos + (step.n if keep is None else keep)
        hot_start = max(self.marks.hot_start, self.cold_end(max(0, n - self.reserve)))
        quant_end = max(self.marks.quant_end, min(step.cold_to, self._whole(n)))
        self.marks = replace(self.marks, n=n, hot_start=hot_start, quant_end=quant_end)

    def truncate(self, n: int) -> tuple[int, int]:
        """Forget all but the first n tokens; returns the tiles [start, stop) to rehydrate from their cold form.

        Exact, and start == stop, as long as every token that must be hot for length n still is.
        """
        old = self.marks
        assert 0 <= n <= old.n, "truncation only shortens"
        need = min(self.cold_end(n), old.hot_start)
        stop = min(old.hot_start, self._tiles_end(n))
        degraded_end = min(n, max(old.hot_start, old.degraded_end)) if need < stop else min(n, old.degraded_end)
        self.marks = Marks(n, need, min(old.quant_end, self._whole(n)), degraded_end)
        return need, max(need, stop)

    def truncates_exactly(self, n: int) -> bool:
        """Whether after `truncate(n)` every recent token is exact: none restored by it, and none before it."""
        return min(n, max(self.marks.hot_start, self.marks.degraded_end)) <= self.cold_end(n)

    def overwritten(self, end: int) -> int:
        """Hot tokens before this position lost their ring slots to an unfinished step's tokens up to `end`."""
        newest = (end - 1 - self.sinks) // TILE
        lost = self.sinks + TILE * (newest + 1 - self.hot_tiles)
        return max(self.marks.hot_start, min(lost, self._tiles_end(self.n)))

    def restored(self, stop: int) -> Marks:
        """The marks once hot tokens before `stop` hold dequantized values, and whole tiles of them are cold as well."""
        m = self.marks
        quant_end = max(m.quant_end, min(stop, self._whole(m.n)))
        return replace(m, quant_end=quant_end, degraded_end=max(m.degraded_end, min(stop, m.n)))

    def clear(self) -> None:
        """Forget everything."""
        self.marks = self._fresh()

    # What stands where, in tokens. Sinks and hot are exact; `both` of the hot ones exist in cold form too.

    @property
    def sink_tokens(self) -> int:
        return min(self.marks.n, self.sinks)

    @property
    def hot_tokens(self) -> int:
        return max(0, self.marks.n - self.marks.hot_start)

    @property
    def cold_tokens(self) -> int:
        return max(0, self.marks.quant_end - self.sinks)

    @property
    def degraded_tokens(self) -> int:
        return max(0, self.marks.degraded_end - self.marks.hot_start)

    def peak_tokens(self, step: Step) -> tuple[int, int]:
        """(hot, cold) tokens past the sinks that are stored at the fullest moment of the step."""
        return max(0, step.pos + step.n - step.hot_start), step.cold_to - self.sinks
