"""Where a generation leaves checkpoints behind, so that the next turn of a chat computes the new turn alone.

A next turn's prompt begins as this one's did. Where the cache stands then it goes on from there; but a template may
write the answer's end in other tokens than were sampled, or leave its thinking out and with that how the prompt ended.
And prompts that have only their instructions in common come after each other. So there are checkpoints shortly before
the prompt's end, close to the answer's, where an earlier prompt departed from this one, and now and then in between.
"""

from __future__ import annotations

from mixkv.engine.state.cache import KVCache

BEFORE_END = 8
"""Tokens at a prompt's end that a template may write otherwise in the next turn: "<think>" and the like. The same
prompt once more goes on before them, too: somebody has to compute the logits after its last token."""
EVERY = 2048
"""Prompt tokens from one checkpoint to the next."""
REPLY_EVERY = 32
"""Tokens of an answer from one checkpoint to the next; the last two stay. Copying the 19 MB of a model's 18 states of
16 x 128 x 128 numbers takes less than a hundredth of the time of 32 tokens."""
LEAST = 32
"""Tokens that it must be worth. A prompt that stops for a checkpoint takes a forward pass more."""


class Waypoints:
    """Those of one generation, from where it continues its sequence.

    n_prompt: the prompt's tokens. common: how many of these its sequence had, whether or not they could be kept.
    """

    def __init__(self, cache: KVCache, n_prompt: int, common: int) -> None:
        self._cache = cache
        self._last = cache.checkpoints.newest
        self._stops = sorted((common, n_prompt - BEFORE_END))
        self._reply: list[int] = []
        if cache.n - self._last >= LEAST:  # an answer ended here, or instructions
            self.leave()

    def leave(self) -> None:
        """A checkpoint here."""
        self._cache.checkpoint()
        self._last = self._cache.n

    def next_stop(self) -> int | None:
        """The length at which the prompt should stop next, and `passed` be told."""
        return next((at for at in self._stops if at > self._cache.n and at - self._last >= LEAST), None)

    def passed(self, replying: bool) -> None:
        """More tokens are stored, of the prompt or of the answer."""
        n = self._cache.n
        if replying:
            if n - self._last >= REPLY_EVERY:
                self._reply.append(n)
                if len(self._reply) > 2:
                    self._cache.checkpoints.drop(self._reply.pop(0))
                self.leave()
        elif n - self._last >= (LEAST if n in self._stops else EVERY):
            self.leave()
