"""Decode: the loop of a generation, in ids. Prompt in, tokens out; text is made above it (generation.py).

Each step computes the newest token, and behind it a draft: what a grammar leaves no choice about, or what a drafter
proposes. Sampling decides position by position, with the same logits and the same random numbers as without a draft;
the first proposal that it does not agree with is turned down, and what stands behind that.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Ids
from typing import Protocol

from mixkv.engine.jobs import TAKEN, BaseJob, Part
from mixkv.engine.sampling import Sampler
from mixkv.engine.sequence import Sequence, common_prefix
from mixkv.engine.state.stats import CacheStats
from mixkv.engine.waypoints import Waypoints
from mixkv.kernels.errors import InputError
from mixkv.models.batch import F32

OnToken = Callable[[int, F32], bool]
"""(token, its logits (n_vocab,)) -> whether the generation ends with it."""

FORCED_AT_ONCE = 16
"""Tokens of a forced text in one step: logits are had of each, and others wait for theirs meanwhile."""


class Drafter(Protocol):
    """Proposes how a text may go on."""

    def propose(self, most: int) -> list[int]:
        """At most `most` tokens that may follow; none where there is no good guess."""

    def extend(self, tokens: list[int]) -> None:
        """Tokens of the text: the prompt, then each that was sampled."""

    def judged(self, proposed: int, kept: int, seconds: float) -> None:
        """A step with `proposed` tokens of draft took `seconds`, and `kept` of them were right."""


class Processor(Protocol):
    """Has a say in each token before it is drawn: a grammar, for example. To be inherited from.

    It sees tokens in the order in which they are drawn, and never one that is taken back: drafts are decided position
    by position. What it raises ends its own generation.
    ended: nothing may follow the tokens so far; the generation ends there, with finish_reason "stop".
    """

    ended: bool = False

    def mask(self, logits: F32) -> F32:
        """The logits (n_vocab,) to draw from; -inf bans a token. The array is not to be changed."""

    def accept(self, token: int) -> None:
        """A token of the text: the prompt's are not told, every drawn one is."""

    def forced(self) -> Ids[int]:
        """The tokens that its masks will leave no choice but, next one first; they are computed as a draft."""
        return ()


class Placer(Protocol):
    """Finds a sequence for a generation (slots.py)."""

    @property
    def in_hand(self) -> Sequence:
        """The sequence that was worked on last."""

    def place(self, job: Decode) -> Sequence | None:
        """See `Job.place`."""

    def begin(self, job: Decode) -> int:
        """Make the job's sequence hold the longest prefix of its prompt that can be had, and say how long that is."""

    def reached(self, job: Decode) -> None:
        """The job's sequence stands at one of its cuts."""


class Decode(BaseJob):
    """One generation. tokens: those sampled so far; reused: prompt tokens that were in the cache; finish_reason: "stop"
    or "length" once it is done and not failed; end_token: which of `ends` ended it.

    ends: ids that end it. limit: tokens to generate at most, None for as many as the context holds. wanted: asked
    whether to go on while nobody waits. prefix_reuse: "on", "exact" or "off" (load.py). cuts: lengths of the prompt at
    which others wait for the sequence as it stands there.
    """

    def __init__(
        self, slots: Placer, prompt: list[int], sampler: Sampler, *, ends: frozenset[int], limit: int | None,
        on_token: OnToken, wanted: Callable[[], bool], prefix_reuse: str = "on", drafter: Drafter | None = None,
        processors: Ids[Processor] = (),
    ) -> None:  # fmt: skip
        super().__init__()
        self.slots, self.prompt, self.sampler, self.ends, self.limit = slots, prompt, sampler, ends, limit
        self.tokens: list[int] = []
        self.finish_reason: str | None = None
        self.end_token: int | None = None
        self.prefix_reuse, self.cuts = prefix_reuse, set[int]()
        self.reused = self.fed = 0
        self.prompt_seconds = self.decode_seconds = 0.0
        self.cache_stats: CacheStats | None = None
        self._on_token, self._wanted, self._drafter, self._processors = on_token, wanted, drafter, tuple(processors)
        self._draft: list[int] = []
        self._guessed = False  # whether the draft is the drafter's
        self._waypoints: Waypoints | None = None
        self._cut = self._length = 0  # how the sequence was left: whoever else changed it has taken this one's place

    @property
    def generates(self) -> bool:
        return self.fed == len(self.prompt)

    @property
    def ready(self) -> bool:
        return self.waiting > 0 or self._wanted()

    def place(self) -> Sequence | None:
        return self.slots.place(self)

    def begin(self) -> None:
        assert self.sequence is not None
        common = common_prefix(self.sequence.tokens, self.prompt[:-1])
        self.reused = self.fed = self.slots.begin(self)
        if self.prefix_reuse != "off" and self.sequence.cache.needs_checkpoints:
            self._waypoints = Waypoints(self.sequence.cache, len(self.prompt), common)
        self._cut, self._length = self.sequence.cuts, self.sequence.cache.n
        self.sampler.extend(self.prompt)
        if self._drafter is not None:
            self._drafter.extend(self.prompt)

    def next_part(self, most: int) -> Part:
        if self.sequence is None or (self.sequence.cuts, self.sequence.cache.n) != (self._cut, self._length):
            raise InputError(TAKEN)
        if not self.generates:
            stop = min([self.fed + most, len(self.prompt), *(cut for cut in self.cuts if cut > self.fed)])
            if self._waypoints is not None:
                stop = min(stop, self._waypoints.next_stop() or stop)
            return Part(self.prompt[self.fed : stop], int(stop == len(self.prompt)))
        self._draft = self._propose(most - 1)
        return Part([self.tokens[-1], *self._draft], 1 + len(self._draft), len(self._draft))

    def _propose(self, most: int) -> list[int]:
        """What to compute behind the newest token: what processors leave no choice about, else the drafter's guess."""
        assert self.sequence is not None
        most = min(most, self.sequence.cache.most_drafted())
        if self.limit is not None:
            most = min(most, self.limit - len(self.tokens) - 1)
        forced = next((tokens for p in self._processors if (tokens := p.forced())), ())
        self._guessed = not forced and self._drafter is not None
        if most <= 0:
            return []
        return (
            self._drafter.propose(most)
            if self._guessed and self._drafter is not None
            else list(forced[: min(most, FORCED_AT_ONCE)])
        )

    def take(self, logits: F32, seconds: float) -> int:
        decoding = self.generates and bool(self.tokens)
        if decoding:
            self.decode_seconds += seconds
        else:
            self.prompt_seconds += seconds
        kept = 0
        for i, row in enumerate(logits):
            masked = row
            for processor in self._processors:
                masked = processor.mask(masked)
            token = self.sampler.sample(masked)
            if not self._accept(token, row) or i >= len(self._draft) or token != self._draft[i]:
                break
            kept += 1
        if self._drafter is not None and self._guessed and decoding:
            self._drafter.judged(len(self._draft), kept, seconds)
        return kept

    def _accept(self, token: int, row: F32) -> bool:
        """Take a sampled token; False where the generation ends."""
        if token in self.ends:
            self.end_token = token
            self.finish("stop")
            return False
        self.sampler.accept(token)
        for processor in self._processors:
            processor.accept(token)
        if self._drafter is not None:
            self._drafter.extend([token])
        self.tokens.append(token)
        if self._on_token(token, row) or any(processor.ended for processor in self._processors):
            self.finish("stop")
        elif self.limit is not None and len(self.tokens) >= self.limit:
            self.finish("length")
        return not self.done

    def taken(self, n: int) -> None:
        assert self.sequence is not None
        self._length += n
        replying = self.generates
        if self.fed < len(self.prompt):
            self.fed += n
            if self.fed in self.cuts:
                if self._waypoints is not None:
                    self._waypoints.leave()  # once, for all that fork here
                self.slots.reached(self)
        if self._waypoints is not None:
            self._waypoints.passed(replying)
        if self.tokens and self.sequence.cache.n >= self.sequence.cache.n_ctx:
            self.finish("length")
        if self.done:
            self.cache_stats = self.sequence.cache.stats()

    def finish(self, reason: str) -> None:
        """End the generation, unless it has ended."""
        if not self.done:
            self.done, self.finish_reason = True, reason

    def fail(self, error: BaseException) -> None:
        if not self.done and self.sequence is not None:
            self.cache_stats = self.sequence.cache.stats()
        super().fail(error)
