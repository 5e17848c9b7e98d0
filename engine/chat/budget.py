"""A bound on thinking: after so many tokens of it, what closes it is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from mixkv.engine.decode import Processor
from mixkv.models.batch import F32


class ThinkingBudget(Processor):
    """Closes thinking after `limit` tokens of it, the tag that opens it not counted.

    opening, closing: the tags. opened: whether the prompt has opened it; otherwise it counts from where the reply
    begins with `opening`. close: the tokens of `closing`. text: what a token prints, special ones too.
    """

    def __init__(
        self, limit: int, tags: tuple[str, str], close: Sequence[int], *, opened: bool, text: Callable[[int], bytes]
    ) -> None:  # fmt: skip
        self._limit, self._opening, self._closing = limit, *(tag.encode() for tag in tags)
        self._close, self._text = list(close), text
        self._opened, self._over, self._said, self._count = opened, False, b"", 0
        self._left: list[int] = list(close) if opened and limit == 0 else []

    def mask(self, logits: F32) -> F32:
        """See `Processor`."""
        if not self._left:
            return logits
        only = np.full_like(logits, -np.inf)
        only[self._left[0]] = 0.0
        return only

    def accept(self, token: int) -> None:
        """See `Processor`."""
        if self._over:
            return
        if self._left:
            self._left = self._left[1:]
            self._over = not self._left
            return
        self._said += self._text(token)
        if not self._opened:
            self._open()
            return
        self._count += 1
        self._said = self._said[-len(self._closing) - len(self._text(token)) :]
        self._over = self._closing in self._said
        if not self._over and self._count >= self._limit:
            self._left = self._close

    def forced(self) -> Sequence[int]:
        """See `Processor`."""
        return self._left

    def _open(self) -> None:
        """Whether thinking has begun, or can no longer."""
        said = self._said.lstrip()
        if said.startswith(self._opening):
            self._opened, self._said = True, b""
            self._left = self._close if self._limit == 0 else []
        elif not self._opening.startswith(said):
            self._over = True
