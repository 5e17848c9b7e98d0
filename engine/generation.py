"""One generation as an iterator of chunks: the text of a `Decode`'s tokens, stops, log probabilities, what it cost."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from collections.abc import Sequence as Ids
from contextlib import AbstractContextManager
from dataclasses import replace

from mixkv.engine.decode import Decode, Placer, Processor
from mixkv.engine.lookup import PromptLookup
from mixkv.engine.results import Chunk, Completion, GenerationStats, TokenLogprob
from mixkv.engine.sampling import Sampler, SamplingParams
from mixkv.engine.scheduler import Scheduler
from mixkv.engine.sequence import Progress
from mixkv.engine.stops import StopMatcher
from mixkv.engine.tokenizer.base import Tokenizer
from mixkv.engine.tokenizer.detokenizer import StreamDetokenizer
from mixkv.kernels.errors import MixkvError
from mixkv.models.batch import F32

LOOKAHEAD = 4
"""Chunks that a stream may be ahead of its reader, where others compute anyway."""


class TokenText:
    """From tokens to chunks, as they come."""

    def __init__(self, tokenizer: Tokenizer, params: SamplingParams, sampler: Sampler) -> None:
        self.chunks: deque[Chunk] = deque()
        self.logprobs: list[TokenLogprob] = []
        self.pieces: list[str] = []
        self.stops = StopMatcher(params.stop)
        self._n_logprobs, self._sampler, self._skip_special = params.logprobs, sampler, params.skip_special_tokens
        self._detokenizer = StreamDetokenizer(tokenizer, skip_special=params.skip_special_tokens)

    def push(self, token: int, logits: F32) -> bool:
        """One more token and the logits (n_vocab,) it was drawn from; whether a stop string is complete."""
        logprob = top = None
        if self._n_logprobs is not None:
            entry = self._sampler.logprobs(logits, token, self._n_logprobs)
            logprob, top = entry.logprob, entry.top
            self.logprobs.append(TokenLogprob(token, logprob, top))
        text, stopped = self.stops.push(self._detokenizer.push(token))
        self.pieces.append(text)
        self.chunks.append(Chunk(text, token, logprob, top))
        return stopped

    def end(self, reason: str, end_token: int | None) -> Chunk:
        """The last chunk: what was held back, with `end_token` if it prints, and why the generation ended."""
        last = "" if end_token is None or self._skip_special else self._detokenizer.push(end_token)
        rest, stopped = self.stops.push(last + self._detokenizer.flush())
        rest += self.stops.flush()
        self.pieces.append(rest)
        return Chunk(rest, finish_reason="stop" if stopped else reason)


class Generation:
    """Iterate over it for chunks; afterwards (or in between) `text`, `tokens`, `finish_reason` and `stats` hold.

    `end_token`: the end-of-generation token that ended it, which is not among `tokens`; None if something else did.
    A KeyboardInterrupt while a token is computed ends it with finish_reason "interrupted" and what there is. `close`
    ends it early. InputError from the next chunk on, once somebody else used its sequence.
    """

    def __init__(
        self, scheduler: Scheduler, slots: Placer, tokenizer: Tokenizer, prompt: list[int], params: SamplingParams, *,
        load_seconds: float = 0.0, prefix_reuse: str = "on", progress: Progress | None = None,
        processors: Ids[Processor] = (),
    ) -> None:  # fmt: skip
        self.params, self.prompt = params, prompt
        self.sampler = Sampler(
            params, scheduler.model.config.n_vocab, tokenizer.decode, eog_tokens=sorted(tokenizer.eog_ids)
        )
        self.finish_reason: str | None = None
        self._scheduler, self._load_seconds, self._progress, self._reported = scheduler, load_seconds, progress, 0
        words = self._words = TokenText(tokenizer, params, self.sampler)
        self.job = Decode(
            slots, prompt, self.sampler, ends=frozenset() if params.ignore_eos else tokenizer.eog_ids,
            limit=params.max_tokens, on_token=words.push, wanted=lambda: len(words.chunks) < LOOKAHEAD,
            prefix_reuse=prefix_reuse,
            drafter=PromptLookup() if params.draft == "lookup" else None, processors=processors,
        )  # fmt: skip
        if params.max_tokens == 0:
            self.job.finish("length")
        self._added = self._over = False

    def __iter__(self) -> Iterator[Chunk]:
        return self

    def __next__(self) -> Chunk:
        # no generator: it and this object would hold each other, and the model would outlive an unfinished stream
        if self._over:
            raise StopIteration
        try:
            while not self._words.chunks and not self.job.done:
                if not self._added:
                    self._added = True
                    self._scheduler.add(self.job)
                self._scheduler.advance([self.job])
                self.report()
        except KeyboardInterrupt:
            self._scheduler.cancel(self.job)
            return self._end("interrupted")
        except BaseException:
            self.close()
            raise
        if self._words.chunks:
            return self._words.chunks.popleft()
        self._over = True
        self.job.raise_error()
        return self._end(self.job.finish_reason or "interrupted")

    def __del__(self) -> None:
        if getattr(self, "_added", False):
            self._scheduler.drop(self.job)

    def close(self) -> None:
        """End it here: no more chunks, and its sequence is free for others. Twice does no harm."""
        self._over = True
        self._words.chunks.clear()
        self._scheduler.cancel(self.job)

    def attended(self) -> AbstractContextManager[None]:
        """While the block runs nobody takes its sequence, whatever its thread does between two chunks."""
        return self._scheduler.attended([self.job])

    def report(self) -> None:
        """Tell `progress` how much of the prompt is computed, if that is news."""
        job = self.job
        if self._progress is not None and job.fed - job.reused > self._reported:
            self._reported = job.fed - job.reused
            self._progress(self._reported, len(self.prompt) - job.reused)

    @property
    def tokens(self) -> list[int]:
        """The tokens so far."""
        return self.job.tokens

    @property
    def end_token(self) -> int | None:
        """The end-of-generation token that ended it."""
        return self.job.end_token

    @property
    def stop(self) -> str | None:
        """The stop string that ended it."""
        return self._words.stops.matched

    @property
    def logprobs(self) -> list[TokenLogprob]:
        """Their log probabilities, where asked for."""
        return self._words.logprobs

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(self._words.pieces)

    @property
    def stats(self) -> GenerationStats:
        """What it cost so far."""
        job = self.job
        cache = job.cache_stats or (job.sequence or job.slots.in_hand).cache.stats()
        return GenerationStats(
            load_seconds=self._load_seconds,
            prompt_tokens=len(self.prompt),
            reused_tokens=job.reused,
            prompt_seconds=job.prompt_seconds,
            generated_tokens=len(job.tokens),
            decode_seconds=job.decode_seconds,
            seed=self.sampler.seed,
            cache=cache,
        )

    def completion(self) -> Completion:
        """Run to the end and return the whole."""
        with self.attended():
            for _ in self:
                pass
        return self._completion()

    def completion_or_error(self) -> Completion:
        """The whole, once nothing more will be computed; a failure is in it instead of raised."""
        for chunk in self.take_chunks():
            if chunk.error is not None:
                return replace(self._completion(), error=chunk.error)
        return self._completion()

    def take_chunks(self) -> Iterator[Chunk]:
        """The chunks there are by now, without computing any; a failure is the last one's `error`."""
        while self._words.chunks:
            yield self._words.chunks.popleft()
        if self.job.done and not self._over:
            error, self.job.error = self.job.error, None
            if isinstance(error, MixkvError):
                yield replace(self._end("error"), error=error)
            elif error is not None:
                raise error
            else:
                yield self._end(self.job.finish_reason or "interrupted")

    def _completion(self) -> Completion:
        assert self.finish_reason is not None
        return Completion(
            self.text,
            self.tokens,
            self.finish_reason,
            self.logprobs if self.params.logprobs is not None else None,
            self.stats,
            self.stop,
        )

    def _end(self, reason: str) -> Chunk:
        self._over = True
        chunk = self._words.end(reason, self.end_token)
        self.finish_reason = chunk.finish_reason
        return chunk
