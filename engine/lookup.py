"""Prompt lookup: a drafter that looks for the text's last few tokens further up and proposes what followed there.

Summaries that quote, edits of code and answers about a document repeat their prompt for whole sentences. A draft costs
a wider step, so it has to pay: acceptance and the time of steps of each width are measured as the text goes, and where
drafts do not gain anything none are made, but for a small one now and then to see whether that has changed. What is
proposed never changes a text (decode.py), so neither do those times.
"""

from __future__ import annotations

LONGEST, SHORTEST = 5, 3
"""Tokens that have to be repeated before what followed them is proposed."""
LENGTHS = (1, 3, 7)
"""Drafts that are proposed: with the token before them they make steps of 2, 4 and 8 tokens, which kernels work in."""
PROBE_EVERY = 64
"""Tokens after which a draft is tried again where they do not pay."""
FORGET = 0.9
LEAST_GAIN = 1.1
"""Times the tokens a second that a draft must promise: times are noisy, and a draft that gains nothing is not free."""


class PromptLookup:
    """See `Drafter` in decode.py."""

    def __init__(self) -> None:
        self._text: list[int] = []
        self._ends: dict[tuple[int, ...], int] = {}  # n-gram -> where its latest occurrence but the text's end ends
        self._agreed, self._asked = 2.8, 4.0  # of 4 imagined tokens 2.8 were right: drafts are tried at first
        self._seconds: dict[int, float] = {}  # length of a draft -> time of its step
        self._idle = 0

    def extend(self, tokens: list[int]) -> None:
        """Tokens of the text: the prompt, then each that was sampled."""
        text, ends = self._text, self._ends
        for token in tokens:
            n = len(text)
            for length in range(SHORTEST, min(LONGEST, n) + 1):
                ends[tuple(text[n - length :])] = n
            text.append(token)

    def propose(self, most: int) -> list[int]:
        """At most `most` tokens that may follow; none where there is no match, or drafts do not pay."""
        self._idle += 1
        start = self._match()
        if start is None:
            return []
        length = self._best_length()
        if length == 0 and self._idle >= PROBE_EVERY:
            length = LENGTHS[1]
        found: list[int] = []
        for i in range(start, start + min(length, most)):  # beyond the text's end the draft repeats itself
            found.append(self._text[i] if i < len(self._text) else found[i - len(self._text)])
        if found:
            self._idle = 0
        return found

    def judged(self, proposed: int, kept: int, seconds: float) -> None:
        """A step with `proposed` tokens of draft took `seconds`, and `kept` of them were right."""
        known = self._seconds.get(proposed)
        self._seconds[proposed] = seconds if known is None else FORGET * known + (1 - FORGET) * seconds
        if proposed:
            self._agreed = FORGET * self._agreed + kept
            self._asked = FORGET * self._asked + min(kept + 1, proposed)

    def _match(self) -> int | None:
        """Where the text went on after the latest occurrence of as many of its last tokens as can be found."""
        for length in range(min(LONGEST, len(self._text)), SHORTEST - 1, -1):
            end = self._ends.get(tuple(self._text[-length:]))
            if end is not None:
                return end
        return None

    def _best_length(self) -> int:
        """The length that gives the most tokens a second; 0 where none is faster than no draft."""
        one = self._seconds.get(0)
        if one is None:
            return 0
        share = min(1.0, self._agreed / self._asked)
        best, most = 0, LEAST_GAIN / one
        for length in LENGTHS:
            tokens = 1 + sum(share**i for i in range(1, length + 1))
            seconds = self._seconds.get(length, one * (1 + 0.02 * length))
            if tokens / seconds > most:
                best, most = length, tokens / seconds
        return best
