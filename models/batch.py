"""Batch: what one forward pass computes. Tokens of any number of sequences, each in a run of its own.

A prompt's chunk of one sequence, a token each of twelve sequences, and both together are the same call. What a token
becomes depends on its sequence and position alone, never on what else is in the batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
Rows = slice | NDArray[np.intp]
"""Which tokens of a batch logits are wanted of; a slice where they lie side by side, so that nothing is copied."""


@dataclass(frozen=True)
class Run:
    """Tokens [start, stop) of the batch: one sequence's, at its positions pos, pos + 1, ..."""

    start: int
    stop: int
    pos: int


@dataclass(frozen=True)
class Batch:
    """ids (n,) int32; positions (n,) int64, each in its sequence; runs cover the tokens in order, a sequence each;
    rows: the tokens whose logits are wanted, in rising order."""

    ids: NDArray[np.int32]
    positions: NDArray[np.int64]
    runs: tuple[Run, ...]
    rows: Rows

    @classmethod
    def of(cls, parts: Iterable[tuple[list[int], int, int]]) -> Batch:
        """From (ids, first position, how many of its last rows are wanted) of each sequence."""
        ids: list[int] = []
        runs: list[Run] = []
        wanted: list[slice] = []
        for tokens, pos, n_rows in parts:
            start = len(ids)
            ids += tokens
            runs.append(Run(start, len(ids), pos))
            wanted.append(slice(len(ids) - n_rows, len(ids)))
        if len(runs) == 1:
            (run,), rows = runs, wanted[0]
            return cls(np.asarray(ids, np.int32), np.arange(run.pos, run.pos + len(ids)), (run,), rows)
        positions = np.concatenate([np.arange(r.pos, r.pos + r.stop - r.start) for r in runs])
        chosen = np.concatenate([np.arange(s.start, s.stop) for s in wanted])
        return cls(np.asarray(ids, np.int32), positions, tuple(runs), chosen)

    def __len__(self) -> int:
        return len(self.ids)


class States(Protocol):
    """What the sequences of a batch have kept of their past, in the order of its runs."""

    def attend(self, layer: int, q: F32, k: F32 | None, v: F32 | None, sinks: F32 | None = None) -> F32:
        """Store k, v (n, n_kv_heads, .) of all tokens and return what their q (n, n_heads, head_dim_k) read:
        (n, n_heads, head_dim_v). sinks (n_heads,): learned logits that stand beside the scores. Each layer that attends
        calls it once for a batch, with None for k and v where it reads an earlier layer's (`Attention.kv_from`)."""

    def recurrent(self, layer: int) -> Sequence[tuple[Run, RecurrentMemory]]:
        """What a recurrent layer keeps of each run's sequence; the layer reads and writes each of them once."""


class RecurrentMemory(Protocol):
    """The arrays of one recurrent layer of one sequence, float32, in the order and shapes of `Recurrent.shapes`."""

    def read(self) -> tuple[F32, ...]:
        """The state before the run's first token, zeros at the sequence's beginning; not to be changed."""

    def out(self) -> tuple[F32, ...]:
        """Arrays, of any content, that the new state may be written into, for `write(*out)`."""

    def write(self, *arrays: F32) -> None:
        """The state after the run's last token; copied where it is not `out`."""
