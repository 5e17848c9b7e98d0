"""Stop strings in streamed text, wherever the pieces are cut.

Text leaves only once it cannot be part of a stop string any more. Which stop counts does not depend on the cuts: the
one that is complete first, and the longest of those that end there; the text ends where it starts.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """Passes text on until one of the stop strings is complete, and never emits any part of one.

    stops: non-empty strings. `matched` is the stop string that was found, or None.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.matched: str | None = None
        self._stops = tuple(stops)
        self._longest = max(map(len, self._stops), default=0)
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """Takes the next piece of text; returns the text that may be shown now, and whether the generation is over.

        After a stop was found all further text is swallowed.
        """
        if self.matched is not None:
            return "", True
        text = self._held + text
        found = [(start + len(stop), start, stop) for stop in self._stops if (start := text.find(stop)) >= 0]
        if found:
            _, start, self.matched = min(found)
            self._held = ""
            return text[:start], True
        cut = len(text) - self._possible_start(text)
        self._held = text[cut:]
        return text[:cut], False

    def flush(self) -> str:
        """What was held back, once no more text will follow; empty after a stop."""
        held, self._held = self._held, ""
        return held

    def _possible_start(self, text: str) -> int:
        """Length of the longest end of `text` with which a stop string could begin."""
        for n in range(min(len(text), self._longest - 1), 0, -1):
            end = text[-n:]
            if any(stop.startswith(end) for stop in self._stops):
                return n
        return 0
