"""LLM: a loaded model with its tokenizer and the sequences that it works on. `load` (load.py) makes one."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Ids
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from mixkv.engine.batches import BatchRun, each_prompts_params
from mixkv.engine.cache_config import KVCacheConfig
from mixkv.engine.chat.api import ChatMethods
from mixkv.engine.decode import Processor
from mixkv.engine.generation import Generation
from mixkv.engine.kv_plan import plan_cache
from mixkv.engine.loaded import Loaded
from mixkv.engine.prompt import Prompt, prompt_ids
from mixkv.engine.results import Chunk, Completion
from mixkv.engine.sampling import SamplingParams
from mixkv.engine.scoring import Scoring
from mixkv.engine.sequence import Progress, Sequence
from mixkv.engine.session import restore_session, save_session
from mixkv.engine.slots import Slots
from mixkv.engine.state.cache import KVCache
from mixkv.engine.tokenizer.base import Tokenizer
from mixkv.kernels import Backend
from mixkv.kernels.errors import InputError, MixkvError
from mixkv.models.config import ModelConfig
from mixkv.models.gguf import GGUFFile
from mixkv.models.key_sample import HeadStatistics
from mixkv.models.weights import bytes_per_token


class LLM(ChatMethods):
    """A model ready to generate. Its methods may be called from any number of threads: up to `n_parallel` calls are
    computed together, more wait. A finished call leaves its sequence, for the next prompt to continue.

    `cache` is the KV cache of the sequence in hand (`cache.stats()`), `tokenizer` text <-> ids, `config` the model's
    hyper-parameters. `gguf` is its file, closed: tensors are listed, numbers and texts among the metadata are there,
    nothing else can be read. `with mixkv.load(...) as llm` closes the LLM at the end.
    """

    def __init__(self, loaded: Loaded, first: Sequence | None = None) -> None:
        self._loaded: Loaded | None = loaded
        self._slots = Slots(loaded.new_sequence, loaded.scheduler.n_parallel, first)

    # What it was loaded with

    @property
    def _shared(self) -> Loaded:
        if self._loaded is None:
            raise InputError("this LLM is closed: load the model again")
        return self._loaded

    @property
    def path(self) -> Path:
        return self._shared.gguf.path

    @property
    def gguf(self) -> GGUFFile:
        return self._shared.gguf

    @property
    def config(self) -> ModelConfig:
        return self._shared.config

    @property
    def tokenizer(self) -> Tokenizer:
        return self._shared.tokenizer

    @property
    def cache_config(self) -> KVCacheConfig:
        return self._shared.cache_config

    @property
    def n_ctx(self) -> int:
        """Tokens that each sequence can hold."""
        return self._shared.n_ctx

    @property
    def heads(self) -> HeadStatistics:
        """What plans of caches look at (kv_plan.py)."""
        return self._shared.heads

    @property
    def n_batch(self) -> int:
        return self._shared.scheduler.n_batch

    @property
    def n_parallel(self) -> int:
        """Calls that are computed at once."""
        return self._shared.scheduler.n_parallel

    @property
    def n_threads(self) -> int:
        """Threads that compute."""
        return self.backend.n_threads

    @property
    def backend(self) -> Backend:
        """The kernels that this model runs on, with threads of their own."""
        return self._shared.scheduler.model.backend

    @property
    def load_seconds(self) -> float:
        return self._shared.load_seconds

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights that generating a token reads (models/weights.py)."""
        return bytes_per_token(self.gguf, self.config)

    # What it holds

    @property
    def sequence(self) -> Sequence:
        """The sequence in hand, which the newest call worked on: for people who feed tokens themselves."""
        self._shared  # noqa: B018  # a closed one has none
        return self._slots.in_hand

    @property
    def cache(self) -> KVCache:
        """The KV cache of the sequence in hand."""
        return self.sequence.cache

    @property
    def tokens(self) -> list[int]:
        """Ids of the tokens in the cache."""
        return list(self.sequence.tokens)

    # What it does

    def tokenize(self, prompt: Prompt, *, parse_special: bool = False) -> list[int]:
        """Ids of a prompt, BOS in front where the model wants it (alone for ""), never EOS behind; ids are checked and
        passed through.

        InputError for an empty prompt (a text, if there is no BOS), ids out of range, or more tokens than the context.
        """
        return prompt_ids(prompt, self.tokenizer, n_ctx=self.n_ctx, parse_special=parse_special)

    def generate(
        self, prompt: Prompt, *, parse_special: bool = False, progress: Progress | None = None,
        params: SamplingParams | None = None, processors: Ids[Processor] = (), starts_after: str | None = None,
        **options: Any,
    ) -> Completion:  # fmt: skip
        """Continue `prompt` (text or ids) to the end and return a Completion.

        options are fields of SamplingParams (max_tokens, temperature, top_k, stop, seed, ...), on top of `params`.
        Ctrl-C returns what there is, with finish_reason "interrupted". progress(done, total) counts prompt tokens.
        processors: each may ban tokens before one is drawn (`Processor` in decode.py). starts_after: the text, such as
        "</think>", behind which json_schema, regex or grammar begin to hold.
        """
        return self._generation(
            prompt, parse_special, progress, params, options, processors, starts_after=starts_after
        ).completion()

    def stream(
        self, prompt: Prompt, *, parse_special: bool = False, progress: Progress | None = None,
        params: SamplingParams | None = None, processors: Ids[Processor] = (), starts_after: str | None = None,
        **options: Any,
    ) -> Generation:  # fmt: skip
        """Like `generate`, but an iterator of Chunks; it also has `text`, `tokens`, `finish_reason`, `stats`, `close`.

        As many streams at a time as `n_parallel` says: whatever else runs on this LLM ends an unfinished one that it
        finds no place beside, whose next chunk is then an InputError.
        """
        return self._generation(prompt, parse_special, progress, params, options, processors, starts_after=starts_after)

    def logits(self, ids: Ids[int] | NDArray[np.integer], *, progress: Progress | None = None) -> NDArray[np.float32]:
        """(n, n_vocab) float32: row i are the logits after ids[: i + 1]. Replaces what is in the cache."""
        checked = self.tokenize(ids)
        scheduler = self._shared.scheduler
        return Scoring(checked, self._slots.place, all_rows=True, progress=progress, restart=True).run(scheduler)

    def generate_batch(
        self, prompts: Ids[Prompt], *, params: SamplingParams | Ids[SamplingParams] | None = None,
        parse_special: bool = False, progress: Progress | None = None, **options: Any,
    ) -> list[Completion]:  # fmt: skip
        """Continue many prompts, `n_parallel` at a time; Completions in the order of the prompts.

        params: one for all, or one for each prompt; options stand on top. What prompts that wait together begin with
        alike is computed and stored once. Each text is that which its prompt would get alone. A prompt that fails (too
        long, say) has a Completion with finish_reason "error" and its `error`; the others go on. progress(prompts done,
        prompts in all). Ctrl-C returns what there is, "interrupted" where a text is not finished.
        """
        return self._batch(prompts, params, parse_special, options).completions(progress)

    def stream_batch(
        self, prompts: Ids[Prompt], *, params: SamplingParams | Ids[SamplingParams] | None = None,
        parse_special: bool = False, **options: Any,
    ) -> Iterator[tuple[int, Chunk]]:  # fmt: skip
        """Like `generate_batch`, but gives (index of the prompt, Chunk) as they come; each prompt's last chunk has a
        finish_reason, "error" with its `error` where it failed."""
        return self._batch(prompts, params, parse_special, options).stream()

    def _batch(
        self, prompts: Ids[Prompt], params: SamplingParams | Ids[SamplingParams] | None, parse_special: bool,
        options: dict[str, Any],
    ) -> BatchRun:  # fmt: skip
        every = each_prompts_params(prompts, params, options)
        runs: list[Generation | MixkvError] = []
        for prompt, chosen in zip(prompts, every, strict=True):
            try:
                runs.append(self._generation(prompt, parse_special, None, chosen, {}, exact=True))
            except MixkvError as error:
                runs.append(error)
        return BatchRun(runs, self._shared.scheduler, self._slots, self.load_seconds)

    def new_sequence(self, config: KVCacheConfig, n_ctx: int) -> Sequence:
        """An empty sequence of this model whose cache is `config`; weights are shared, the one in hand stays."""
        return self._shared.new_sequence(plan_cache(self._shared.heads, config), n_ctx)

    def fork(self) -> LLM:
        """An LLM of its own that goes on from the sequence in hand: weights are shared, and what is cached so far."""
        with self._shared.scheduler.paused():
            return LLM(self._shared, self.sequence.fork())

    def reset(self) -> None:
        """Forget the sequence; the next prompt starts from nothing."""
        with self._in_hand() as sequence:
            sequence.clear()

    def truncate(self, n: int) -> None:
        """Forget all but the first n tokens; InputError if there are fewer. What a cache that cannot be cut there loses
        besides is computed again."""
        with self._in_hand() as sequence:
            lost = sequence.tokens[:n]
            lost = lost[sequence.truncate(n) :]
        if lost:
            sequence.feed(lost)

    def save_session(self, path: str | Path) -> None:
        """Write the sequence (tokens and cache) to a file, whole or not at all. SessionError says what failed."""
        with self._shared.scheduler.paused():
            save_session(path, self.sequence)

    def load_session(self, path: str | Path, *, convert: bool = False) -> int:
        """Replace the sequence by one from a file; returns its number of tokens.

        SessionError, and nothing changed, for a damaged file or another model. A session of other cache settings
        is refused unless `convert` is set, which rewrites it into this cache's.
        """
        restored = restore_session(path, self.sequence, convert=convert)
        with self._in_hand() as sequence:
            sequence.replace_by(restored)
            return len(sequence.tokens)

    def close(self) -> None:
        """Give memory back now: caches of this LLM, and the model once no fork is left. Twice does no harm."""
        if self._loaded is not None:
            self._loaded.scheduler.cancel(*[s.job for s in self._slots.all() if s.job is not None])
            self._loaded = None
            del self._slots

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise InputError("an LLM cannot be pickled: load the model in each process, with mixkv.load")

    @contextmanager
    def _in_hand(self) -> Iterator[Sequence]:
        """The sequence in hand while nothing is computed; streams on it are over."""
        while True:
            sequence = self.sequence
            with self._shared.scheduler.alone(sequence):
                if sequence is self.sequence:  # else another call was quicker
                    yield sequence
                    return

    def _cached_tokens(self) -> list[list[int]]:
        return [list(sequence.tokens) for sequence in self._slots.all()]

    def _generation(
        self, prompt: Prompt, parse_special: bool, progress: Progress | None, params: SamplingParams | None,
        options: dict[str, Any], processors: Ids[Processor] = (), exact: bool = False, starts_after: str | None = None,
    ) -> Generation:  # fmt: skip
        chosen = SamplingParams.on_top_of(params, options)
        ids = self.tokenize(prompt, parse_special=parse_special)
        shared = self._shared
        return Generation(
            shared.scheduler, self._slots, shared.tokenizer, ids, chosen, load_seconds=shared.load_seconds,
            prefix_reuse="exact" if exact and shared.prefix_reuse == "on" else shared.prefix_reuse, progress=progress,
            processors=(*shared.constraint(chosen, starts_after), *processors),
        )  # fmt: skip
