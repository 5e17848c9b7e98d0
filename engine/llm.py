"""LLM: a loaded model with its tokenizer and one sequence; `load` makes one, `generate` is the one-shot form."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as Ids
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from mixkv.engine.cache_config import CachePlan, KVCacheConfig
from mixkv.engine.generation import Generation
from mixkv.engine.kv import KVCache
from mixkv.engine.kv_plan import plan_cache
from mixkv.engine.memory import available_memory, plan_memory
from mixkv.engine.prompt import encode_prompt, warn_beyond_training
from mixkv.engine.results import Completion
from mixkv.engine.sampling import SamplingParams
from mixkv.engine.sequence import Progress, Sequence
from mixkv.engine.session import restore_session, save_session
from mixkv.engine.threads import Meanwhile, choose_threads
from mixkv.engine.tokenizer import load_tokenizer
from mixkv.engine.tokenizer.base import Tokenizer
from mixkv.kernels.errors import ConfigError, GGUFError, InputError
from mixkv.models.config import read_config
from mixkv.models.gguf import GGUFFile, open_gguf
from mixkv.models.llama import Llama
from mixkv.models.registry import family_of, load_model

PREFIX_REUSE = ("on", "exact", "off")
MAX_CTX = 1 << 31
Prompt = str | Ids[int] | NDArray[np.integer]


def demo_model() -> Path:
    """The small model that ships with the package."""
    from importlib.resources import files  # 8 ms that runs with a model of their own save

    return Path(str(files("mixkv.models").joinpath("data/mixkv-demo-Q8_0.gguf")))


class LLM:
    """A model ready to generate. One call at a time; calls from other threads wait for their turn.

    `cache` is the KV cache (`cache.stats()`), `tokenizer` text <-> ids, `config` the model's hyper-parameters, `gguf`
    its open file.
    """

    def __init__(
        self, gguf: GGUFFile, model: Llama, tokenizer: Tokenizer, cache_config: KVCacheConfig, plan: CachePlan,
        *, n_ctx: int, n_batch: int, n_threads: int, prefix_reuse: str, load_seconds: float,
    ) -> None:  # fmt: skip
        self.path, self.config, self.tokenizer, self.cache_config = gguf.path, model.config, tokenizer, cache_config
        self.n_ctx, self.n_batch, self.prefix_reuse, self.load_seconds = n_ctx, n_batch, prefix_reuse, load_seconds
        cache = KVCache(model.config, plan, n_ctx=n_ctx, chunk=n_batch)
        self.gguf = gguf
        self._sequence = Sequence(model, cache, n_batch=n_batch, n_threads=n_threads)
        self._turn = threading.RLock()

    @property
    def cache(self) -> KVCache:
        """The KV cache of the sequence in hand."""
        return self._sequence.cache

    @property
    def tokens(self) -> list[int]:
        """Ids of the tokens in the cache."""
        return list(self._sequence.tokens)

    @property
    def sequence(self) -> Sequence:
        """The sequence in hand: its model and cache, for people who run forward passes themselves."""
        return self._sequence

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights that generating a token reads: all tensors but an embedding that only looks rows up."""
        tensors = self.gguf.tensors
        lookup_only = "output.weight" in tensors
        return sum(t.n_bytes for name, t in tensors.items() if not (lookup_only and name == "token_embd.weight"))

    @property
    def n_threads(self) -> int:
        """Threads that compute."""
        return self._sequence.n_threads

    def tokenize(self, prompt: Prompt, *, parse_special: bool = False) -> list[int]:
        """Ids of a prompt, BOS in front where the model wants it, alone for ""; ids are checked and passed through.

        InputError for an empty prompt (a text, if there is no BOS), ids out of range, or more tokens than the context.
        """
        if isinstance(prompt, str):
            ids = encode_prompt(prompt, self.tokenizer, parse_special=parse_special)
        else:
            ids = _checked_ids(prompt, self.config.n_vocab)
        if not ids:
            raise InputError("the prompt is empty: give at least one character or token")
        if len(ids) > self.n_ctx:
            raise InputError(
                f"the prompt has {len(ids)} tokens, but the context holds {self.n_ctx}: "
                "load with a larger n_ctx (-c), or shorten the prompt"
            )
        return ids

    def generate(
        self, prompt: Prompt, *, parse_special: bool = False, progress: Progress | None = None,
        params: SamplingParams | None = None, **options: Any,
    ) -> Completion:  # fmt: skip
        """Continue `prompt` (text or ids) to the end and return a Completion.

        options are fields of SamplingParams (max_tokens, temperature, top_k, stop, seed, ...), on top of `params`.
        Ctrl-C returns what there is, with finish_reason "interrupted". progress(done, total) counts prompt tokens.
        """
        with self._my_turn():
            return self._start(prompt, parse_special, progress, params, options).completion()

    def stream(
        self, prompt: Prompt, *, parse_special: bool = False, progress: Progress | None = None,
        params: SamplingParams | None = None, **options: Any,
    ) -> Generation:  # fmt: skip
        """Like `generate`, but an iterator of Chunks; it also has `text`, `tokens`, `finish_reason` and `stats`.

        One stream at a time: whatever else runs on this LLM ends an unfinished one, whose next chunk is an InputError.
        """
        with self._my_turn():
            return self._start(prompt, parse_special, progress, params, options)

    def logits(self, ids: Ids[int] | NDArray[np.integer], *, progress: Progress | None = None) -> NDArray[np.float32]:
        """(n, n_vocab) float32: row i are the logits after ids[: i + 1]. Replaces what is in the cache."""
        checked = self.tokenize(ids)
        with self._my_turn():
            self.reset()
            return self._sequence.feed(checked, all_rows=True, progress=progress)

    def new_sequence(self, config: KVCacheConfig, n_ctx: int) -> Sequence:
        """An empty sequence of this model whose cache is `config`; weights are shared, the one in hand stays."""
        n_batch = min(self.n_batch, n_ctx)
        cache = KVCache(self.config, plan_cache(self.gguf, config), n_ctx=n_ctx, chunk=n_batch)
        return Sequence(self._sequence.model, cache, n_batch=n_batch, n_threads=self.n_threads)

    def reset(self) -> None:
        """Forget the sequence; the next prompt starts from nothing."""
        self._sequence.truncate(0)
        self.cache.clear()

    def truncate(self, n: int) -> None:
        """Forget all but the first n tokens; InputError if there are fewer."""
        self._sequence.truncate(n)

    def save_session(self, path: str | Path) -> None:
        """Write the sequence (tokens and cache) to a file, whole or not at all. SessionError says what failed."""
        with self._my_turn():
            save_session(path, self._sequence, self.gguf)

    def load_session(self, path: str | Path, *, convert: bool = False) -> int:
        """Replace the sequence by one from a file; returns its number of tokens.

        SessionError, and nothing changed, for a damaged file or another model. A session of other cache settings
        is refused unless `convert` is set, which rewrites it into this cache's.
        """
        with self._my_turn():
            self._sequence = restore_session(path, self._sequence, self.gguf, convert=convert)
            return self.cache.n

    @contextmanager
    def _my_turn(self) -> Iterator[None]:
        with self._turn:
            yield

    def _start(
        self, prompt: Prompt, parse_special: bool, progress: Progress | None, params: SamplingParams | None,
        options: dict[str, Any],
    ) -> Generation:  # fmt: skip
        SamplingParams.from_options(options)  # names and values are checked on their own first
        chosen = replace(params, **options) if params is not None else SamplingParams.from_options(options)
        ids = self.tokenize(prompt, parse_special=parse_special)
        if self.prefix_reuse == "off":
            self.reset()
        return Generation(
            self._sequence, self.tokenizer, ids, chosen, load_seconds=self.load_seconds,
            exact_prefix=self.prefix_reuse == "exact", progress=progress, turn=self._turn,
        )  # fmt: skip


def _checked_ids(ids: Ids[int] | NDArray[np.integer], n_vocab: int) -> list[int]:
    try:
        array = np.asarray(ids)
    except (ValueError, OverflowError):
        raise InputError("token ids must be a flat sequence of whole numbers, not lists of lists") from None
    if array.size == 0:
        return []
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise InputError(f"token ids must be a flat sequence of whole numbers, not {array.dtype} {array.shape}")
    bad = array[(array < 0) | (array >= n_vocab)]
    if bad.size:
        raise InputError(f"token id {bad[0]} is out of range: this model has ids 0 to {n_vocab - 1}")
    return cast(list[int], array.tolist())


def load(
    path: str | Path | None = None, *, n_ctx: int | None = None, n_batch: int = 512, n_threads: int | None = None,
    cache_config: KVCacheConfig | None = None, prefix_reuse: str = "on", exact: bool = False, dense: bool = False,
    overrides: Mapping[str, object] | None = None, progress: Callable[[int, int], None] | None = None,
    **cache_settings: Any,
) -> LLM:  # fmt: skip
    """Load a GGUF model; without a path, the demo model that ships with the package.

    n_ctx: tokens the context holds; left out, what the model was trained for, or less if memory is short. n_batch:
    tokens of a prompt computed at a time. n_threads: left out, the usable cores. The cache is described by
    `cache_config`, or by keywords with the names of KVCacheConfig's fields (mixed_kv_cache, hot_window, ...).
    prefix_reuse: what a new prompt may take from the cache; "on": the longest common prefix, "exact": only if no
    recent token would be a dequantized one, "off": nothing. exact: float32 activations in native kernels. dense:
    weights dequantized once, at load (reference kernels; faster, and up to 7 times the memory). overrides: metadata in
    place of the file's, such as {"{arch}.rope.freq_base": 1e6}; "{arch}" is the file's architecture. progress(bytes
    done, bytes in all) is called while weights are read.

    Raises GGUFError, TokenizerError, ConfigError, OutOfMemoryError.
    """
    start = time.perf_counter()
    if cache_config is not None and cache_settings:
        raise ConfigError(f"give cache_config or {min(cache_settings)!r}, not both")
    config = cache_config or KVCacheConfig.from_keywords(**cache_settings)
    if prefix_reuse not in PREFIX_REUSE:
        raise ConfigError(f"prefix_reuse {prefix_reuse!r} must be one of {', '.join(PREFIX_REUSE)}")
    _check_count("n_batch", n_batch, 1 << 20)
    if n_ctx is not None:
        _check_count("n_ctx", n_ctx, MAX_CTX)
    threads = choose_threads(n_threads)
    gguf = open_gguf(demo_model() if path is None else path, overrides)
    try:
        family_of(gguf)
        model_config = read_config(gguf)
        plan = plan_cache(gguf, config)
        n_ctx = _fit_context(gguf, n_ctx, n_batch, dense, plan)
        warn_beyond_training(n_ctx, model_config)
        with Meanwhile(lambda: load_tokenizer(gguf)) as vocabulary:
            model = load_model(gguf, exact=exact, dense=dense, progress=_byte_progress(gguf, progress))
        tokenizer = vocabulary.result()
        if tokenizer.n_vocab != model_config.n_vocab:
            raise GGUFError(
                f"{gguf.path}: the vocabulary has {tokenizer.n_vocab} tokens, but the embedding {model_config.n_vocab} "
                "rows; the file is damaged"
            )
    except BaseException:
        gguf.close()
        raise
    return LLM(
        gguf, model, tokenizer, config, plan, n_ctx=n_ctx, n_batch=min(n_batch, n_ctx), n_threads=threads,
        prefix_reuse=prefix_reuse, load_seconds=time.perf_counter() - start,
    )  # fmt: skip


def _check_count(name: str, value: object, most: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise ConfigError(f"{name} {value!r} must be a number from 1 to {most}")


def _fit_context(gguf: GGUFFile, n_ctx: int | None, n_batch: int, dense: bool, plan: CachePlan) -> int:
    """The context to reserve: as asked (OutOfMemoryError if it cannot be), else the model's, halved until it fits."""
    config = read_config(gguf)
    available = available_memory()
    wanted = n_ctx or config.n_ctx_train
    while True:
        memory = plan_memory(gguf, config, plan, n_ctx=wanted, n_batch=n_batch, dense=dense)
        if n_ctx is not None or wanted <= 4096 or available is None or memory.total <= available:
            memory.check(available)
            return wanted
        wanted //= 2


def _byte_progress(gguf: GGUFFile, progress: Callable[[int, int], None] | None) -> Callable[[int], None] | None:
    if progress is None:
        return None
    total, done = sum(info.n_bytes for info in gguf.tensors.values()), 0

    def report(n_bytes: int) -> None:
        nonlocal done
        done += n_bytes
        progress(done, total)

    return report


def generate(path: str | Path | None, prompt: Prompt, **options: Any) -> Completion:
    """Load a model, continue `prompt`, return the Completion: options may be `load`'s and SamplingParams' fields."""
    sampling = {name: options.pop(name) for name in SamplingParams.names() if name in options}
    return load(path, **options).generate(prompt, **sampling)
