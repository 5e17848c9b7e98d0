"""One generation as an iterator of chunks: prefill, then sample, detokenize, watch for stops, decode, repeat."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

from mixkv.engine.results import Chunk, Completion, GenerationStats, TokenLogprob
from mixkv.engine.sampling import Sampler, SamplingParams
from mixkv.engine.sequence import Progress, Sequence
from mixkv.engine.stops import StopMatcher
from mixkv.engine.tokenizer.base import Tokenizer
from mixkv.engine.tokenizer.detokenizer import StreamDetokenizer
from mixkv.kernels.errors import InputError
from mixkv.models.llama import F32


class Generation:
    """Iterate over it for chunks; afterwards (or in between) `text`, `tokens`, `finish_reason` and `stats` hold.

    `end_token`: the end-of-generation token that ended it, which is not among `tokens`; None if something else did.
    A KeyboardInterrupt while a token is computed ends it with finish_reason "interrupted" and what there is.
    turn: held while a chunk is computed. InputError from the next chunk on, once somebody else used the sequence.
    """

    def __init__(
        self, sequence: Sequence, tokenizer: Tokenizer, prompt: list[int], params: SamplingParams, *,
        load_seconds: float = 0.0, exact_prefix: bool = False, progress: Progress | None = None,
        turn: AbstractContextManager[object] | None = None,
    ) -> None:  # fmt: skip
        self.sequence, self.params, self.prompt = sequence, params, prompt
        self.sampler = Sampler(
            params, sequence.model.config.n_vocab, tokenizer.decode, eog_tokens=sorted(tokenizer.eog_ids)
        )
        self.tokens: list[int] = []
        self.logprobs: list[TokenLogprob] = []
        self.finish_reason: str | None = None
        self.end_token: int | None = None
        self._text: list[str] = []
        self._eog_ids = tokenizer.eog_ids
        self._detokenizer = StreamDetokenizer(tokenizer, skip_special=params.skip_special_tokens)
        self._stops = StopMatcher(params.stop)
        self._load_seconds, self._exact_prefix, self._progress = load_seconds, exact_prefix, progress
        self._reused, self._prompt_seconds, self._decode_seconds = 0, 0.0, 0.0
        self._turn, self._cuts = turn or nullcontext(), 0
        self._stopped = self._over = False

    def __iter__(self) -> Iterator[Chunk]:
        return self

    def __next__(self) -> Chunk:
        # no generator: it and this object would hold each other, and the model would outlive an unfinished stream
        with self._turn:
            if self._over:
                raise StopIteration
            self._over = True  # also by an error: going on would feed the last token once more
            try:
                chunk = self._step()
            except KeyboardInterrupt:
                chunk = self._finish("interrupted")
            self._over = self.finish_reason is not None
            return chunk

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(self._text)

    @property
    def stats(self) -> GenerationStats:
        """What it cost so far."""
        return GenerationStats(
            load_seconds=self._load_seconds,
            prompt_tokens=len(self.prompt),
            reused_tokens=self._reused,
            prompt_seconds=self._prompt_seconds,
            generated_tokens=len(self.tokens),
            decode_seconds=self._decode_seconds,
            seed=self.sampler.seed,
            cache=self.sequence.cache.stats(),
        )

    def completion(self) -> Completion:
        """Run to the end and return the whole."""
        for _ in self:
            pass
        assert self.finish_reason is not None
        return Completion(
            self.text,
            self.tokens,
            self.finish_reason,
            self.logprobs if self.params.logprobs is not None else None,
            self.stats,
            self._stops.matched,
        )

    def _step(self) -> Chunk:
        if self._stopped:
            return self._finish("stop")
        limit, cache = self.params.max_tokens, self.sequence.cache
        if limit is not None and len(self.tokens) >= limit:
            return self._finish("length")
        if self.tokens and cache.n >= cache.policy.n_ctx:
            return self._finish("length")
        logits = self._decode() if self.tokens else self._prefill()
        token = self.sampler.sample(logits[-1])
        if token in self._eog_ids and not self.params.ignore_eos:
            self.end_token = token
            return self._finish("stop")
        return self._accept(token, logits[-1])

    def _prefill(self) -> F32:
        start = time.perf_counter()
        self._reused = self.sequence.keep_prefix(self.prompt, self._exact_prefix)
        self._cuts = self.sequence.cuts
        self.sampler.extend(self.prompt)
        try:
            return self.sequence.feed(self.prompt[self._reused :], progress=self._progress)
        finally:
            self._prompt_seconds = time.perf_counter() - start

    def _decode(self) -> F32:
        if self.sequence.cuts != self._cuts:
            raise InputError("this stream is over: a later call on the same LLM took its place in the cache")
        start = time.perf_counter()
        try:
            return self.sequence.feed(self.tokens[-1:])
        finally:
            self._decode_seconds += time.perf_counter() - start

    def _accept(self, token: int, logits: F32) -> Chunk:
        self.sampler.accept(token)
        self.tokens.append(token)
        logprob = top = None
        if self.params.logprobs is not None:
            entry = self.sampler.logprobs(logits, token, self.params.logprobs)
            logprob, top = entry.logprob, entry.top
            self.logprobs.append(TokenLogprob(token, logprob, top))
        text, self._stopped = self._stops.push(self._detokenizer.push(token))
        self._text.append(text)
        return Chunk(text, token, logprob, top)

    def _finish(self, reason: str) -> Chunk:
        last = ""
        if self.end_token is not None and not self.params.skip_special_tokens:
            last = self._detokenizer.push(self.end_token)
        rest, stopped = self._stops.push(last + self._detokenizer.flush())
        rest += self._stops.flush()
        self._text.append(rest)
        self.finish_reason = "stop" if stopped else reason
        return Chunk(rest, finish_reason=self.finish_reason)
