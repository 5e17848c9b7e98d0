"""The recurrent kind: a state per layer instead of keys, as it is after the last token. It cannot be cut back.

Each layer has its arrays twice: one holds the state, a step writes the other, and `commit` exchanges them. So a step
that is given up costs nothing, and a kernel may write in place.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, cast

import numpy as np

from mixkv.engine.state.group import KindStats, LayerGroup
from mixkv.models.batch import F32
from mixkv.models.layers import Attention, Shape

Arrays = tuple[F32, ...]


def full_bytes(group: LayerGroup) -> int:
    """Bytes whatever the context: float32 arrays, twice."""
    return 2 * len(group.layers) * sum(4 * math.prod(shape) for shape in cast(tuple[Shape, ...], group.shape))


@dataclass(frozen=True)
class ArraysSnapshot:
    """Copies of all layers' arrays after n tokens."""

    arrays: tuple[Arrays, ...]
    n: int
    pages: ClassVar[dict[int, int]] = {}
    exact: ClassVar[bool] = True

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for layer in self.arrays for a in layer)


class RecurrentState:
    """See group.State; instead of `attend` there are `read`, `out` and `write`."""

    def __init__(self, group: LayerGroup) -> None:
        self.group, self._n, self._begun = group, 0, 0
        self._now, self._next = self._zeros(), self._zeros()
        self._written: set[int] = set()

    def _zeros(self) -> list[Arrays]:
        shapes = cast(tuple[Shape, ...], self.group.shape)
        return [tuple(np.zeros(shape, np.float32) for shape in shapes) for _ in self.group.layers]

    @property
    def n(self) -> int:
        return self._n

    def reserve(self, n: int) -> None:
        """There is memory: a state has one size."""

    def begin(self, n: int) -> None:
        self._begun = n

    def attend(
        self, layer: int, q: F32, k: F32 | None, v: F32 | None, spec: Attention, sinks: F32 | None = None
    ) -> F32:
        raise AssertionError("a recurrent layer keeps no keys")

    def read(self, layer: int) -> Arrays:
        """The state after the last token stored, zeros before the first; not to be changed."""
        return self._now[layer]

    def out(self, layer: int) -> Arrays:
        """Arrays that the state after the tokens begun may be written into, before `write` is told so."""
        return self._next[layer]

    def write(self, layer: int, *arrays: F32) -> None:
        """The state after the tokens begun: those of `out`, or others, which are copied. Each layer once a step."""
        assert self._begun and len(arrays) == len(self._next[layer]), "a layer writes all its arrays, in a step"
        for mine, new in zip(self._next[layer], arrays, strict=True):
            if new is not mine:
                assert new.shape == mine.shape, "a state keeps its shape"
                np.copyto(mine, new)
        self._written.add(layer)

    def commit(self, keep: int | None = None) -> int:
        assert self._begun and keep in (None, self._begun), "what a state has taken in cannot be taken back"
        assert len(self._written) == len(self._now), "every layer writes in every step"
        # One assignment: an interrupt comes before it or after it.
        self._now, self._next, self._n, self._begun, self._written = (
            self._next, self._now, self._n + self._begun, 0, set(),
        )  # fmt: skip
        return full_bytes(self.group)

    def most_drafted(self) -> int:
        return 0

    def mend(self) -> bool:
        if self._begun:
            self._begun, self._written = 0, set()
        return False

    def reaches(self, n: int) -> bool:
        return n in (0, self._n)

    def truncates_exactly(self, n: int) -> bool:
        return self.reaches(n)

    def truncate(self, n: int) -> None:
        assert self.reaches(n), "a state cannot be cut back"
        if n != self._n:
            self.clear()

    def snapshot(self) -> ArraysSnapshot:
        return ArraysSnapshot(tuple(tuple(a.copy() for a in layer) for layer in self._now), self._n)

    def restore(self, snapshot: object) -> None:
        assert isinstance(snapshot, ArraysSnapshot)
        self._now = [tuple(a.copy() for a in layer) for layer in snapshot.arrays]
        self._n, self._begun, self._written = snapshot.n, 0, set()

    def pages(self) -> dict[int, int]:
        return {}

    def clear(self) -> None:
        self._now, self._n, self._begun, self._written = self._zeros(), 0, 0, set()

    def fork(self) -> RecurrentState:
        twin = RecurrentState(self.group)
        twin.restore(self.snapshot())
        return twin

    def stats(self) -> KindStats:
        return KindStats(state_bytes=full_bytes(self.group) if self._n else 0)


@dataclass(frozen=True)
class RecurrentLayer:
    """One recurrent layer of one sequence; see RecurrentState."""

    state: RecurrentState
    index: int

    def read(self) -> Arrays:
        """The state after the last token stored, zeros before the first; not to be changed."""
        return self.state.read(self.index)

    def out(self) -> Arrays:
        """Arrays that the state after the tokens begun may be written into, for `write(*out)`."""
        return self.state.out(self.index)

    def write(self, *arrays: F32) -> None:
        """The state after the tokens begun."""
        self.state.write(self.index, *arrays)
