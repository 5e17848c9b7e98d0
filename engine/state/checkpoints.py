"""Checkpoints of one sequence: lengths that its states can come back to although they cannot be cut there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

from mixkv.engine.state.group import Snapshot, State

NEWEST = 3
"""Checkpoints that stay as long as others can go: where the last answer began, and where it ended."""

Snapshots = tuple[Snapshot | None, ...]


class Checkpoints:
    """Snapshots of all states at some lengths. They never change, and forks share them.

    Together they take `budget` bytes at most (`fit`): arrays of their own, and pages that the sequence no longer has
    because it wrote others since. A page that several snapshots have counts once.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._at: dict[int, Snapshots] = {}  # in ascending order; replaced as a whole, never changed
        self._own = 0
        self._pages: dict[int, int] = {}

    def __iter__(self) -> Iterator[int]:
        return iter(self._at)

    def __contains__(self, n: int) -> bool:
        return n in self._at

    def __bool__(self) -> bool:
        return bool(self._at)

    def of(self, n: int, state: int) -> Snapshot | None:
        """What the state of this number was after n tokens, None where nothing says so."""
        return self._at[n][state] if n in self._at else None

    @property
    def newest(self) -> int:
        """Its length, 0 if there is none."""
        return max(self._at, default=0)

    @property
    def have_pages(self) -> bool:
        """Whether pages are given back, or are the sequence's own, once there are fewer of them."""
        return bool(self._pages)

    def nbytes(self, states: Sequence[State]) -> int:
        """What they take beside the pages that the sequence's states have in use."""
        if not self._pages:
            return self._own
        in_use = set().union(*(state.pages() for state in states))
        return self._own + sum(size for page, size in self._pages.items() if page not in in_use)

    def exact_at(self, n: int, states: Sequence[State]) -> bool:
        """Whether states, which can be brought to n tokens, are exact there: cut, or by a checkpoint at that length."""
        return all(
            state.truncates_exactly(n) or ((snapshot := self.of(n, i)) is not None and snapshot.exact)
            for i, state in enumerate(states)
        )

    def add(self, n: int, snapshots: Snapshots) -> None:
        """The longest so far. Does nothing where it exceeds the budget by itself, or there is nothing in it."""
        if any(snapshots) and _own_bytes(snapshots) <= self.budget:
            self._set(self._at | {n: snapshots})

    def drop(self, n: int) -> None:
        """Without the one at this length, if there is one."""
        if n in self._at:
            self._set({at: snapshots for at, snapshots in self._at.items() if at != n})

    def cut(self, n: int) -> None:
        """Without those that are longer."""
        if any(at > n for at in self._at):
            self._set({at: snapshots for at, snapshots in self._at.items() if at <= n})

    def drop_one(self) -> None:
        """Without the one that is missed least: of those before the newest few the one whose neighbours are closest to
        each other, so that the others stay spread over the sequence."""
        lengths = list(self._at)
        gaps = [after - before for before, after in zip([0, *lengths], [*lengths[1:], *lengths[-1:]], strict=False)]
        for newest in (NEWEST, 1, 0):
            if can_go := range(len(lengths) - newest):
                return self.drop(lengths[min(can_go, key=gaps.__getitem__)])

    def fit(self, states: Sequence[State]) -> int:
        """Keep to the budget; returns what they take then. After all that changes pages: one that is written to stays a
        checkpoint's, and counts from then on."""
        while (size := self.nbytes(states)) > self.budget:
            self.drop_one()
        return size

    def fork(self) -> Checkpoints:
        """Another one's, with the same snapshots."""
        twin = Checkpoints(self.budget)
        twin._set(self._at)
        return twin

    def _set(self, at: dict[int, Snapshots]) -> None:
        every = [snapshot for snapshot in chain.from_iterable(at.values()) if snapshot is not None]
        pages: dict[int, int] = {}
        for snapshot in every:
            pages.update(snapshot.pages)
        # One assignment: an interrupt comes before it or after it.
        self._at, self._pages, self._own = at, pages, sum(snapshot.nbytes for snapshot in every)


def _own_bytes(snapshots: Snapshots) -> int:
    return sum(snapshot.nbytes for snapshot in snapshots if snapshot is not None)
