"""load: from a file to an LLM, all checked before anything large is touched; and the one-shot `generate`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mixkv.engine.cache_config import CachePlan, KVCacheConfig
from mixkv.engine.hub import local_model
from mixkv.engine.kv_plan import plan_cache
from mixkv.engine.llm import LLM
from mixkv.engine.loaded import Loaded
from mixkv.engine.memory import available_memory, plan_memory
from mixkv.engine.prompt import Prompt, warn_beyond_training
from mixkv.engine.results import Completion
from mixkv.engine.sampling import SamplingParams
from mixkv.engine.scheduler import Scheduler
from mixkv.engine.threads import Meanwhile, choose_threads
from mixkv.engine.tokenizer import load_tokenizer
from mixkv.engine.tokenizer.base import Tokenizer
from mixkv.kernels import Backend, open_backend
from mixkv.kernels.errors import ConfigError, GGUFError
from mixkv.models.gguf import GGUFFile, open_gguf
from mixkv.models.key_sample import HeadStatistics
from mixkv.models.registry import load_model, read_config

PREFIX_REUSE = ("on", "exact", "off")
MAX_CTX = 1 << 31
MAX_PARALLEL = 1024


def demo_model() -> Path:
    """The small model that ships with the package."""
    from importlib.resources import files  # 8 ms that runs with a model of their own save

    return Path(str(files("mixkv.models").joinpath("data/mixkv-demo-Q8_0.gguf")))


def load(
    path: str | Path | None = None, *, n_ctx: int | None = None, n_batch: int = 512, n_threads: int | None = None,
    cache_config: KVCacheConfig | None = None, n_parallel: int = 1, kv_memory: int | None = None,
    prefix_reuse: str = "on", exact: bool = False, dense: bool = False,
    overrides: Mapping[str, object] | None = None, progress: Callable[[int, int], None] | None = None,
    **cache_settings: Any,
) -> LLM:  # fmt: skip
    """Load a GGUF model; without a path, the demo model that ships with the package.

    path: a file, or a model of the hub: "hf://USER/REPO", "hf://USER/REPO:QUANT" or "hf://USER/REPO/FILE.gguf".

    n_ctx: tokens that each sequence can hold; left out, what the model was trained for, or less if memory is short.
    n_batch: tokens of prompts computed at a time. n_parallel: sequences computed at once; more calls wait. kv_memory:
    bytes for all caches together, forks included; left out, no limit. n_threads: left out, the usable cores. The cache
    is described by `cache_config`, or by keywords with the names of KVCacheConfig's fields (mixed_kv_cache, ...).
    prefix_reuse: what a new prompt may take from the cache; "on": the longest common prefix, "exact": only if no
    recent token would be a dequantized one, "off": nothing. exact: float32 activations in native kernels. dense:
    weights dequantized once, at load (reference kernels; faster, and up to 7 times the memory). overrides: metadata in
    place of the file's, such as {"{arch}.rope.freq_base": 1e6}; "{arch}" is the file's architecture. progress(bytes
    done, bytes in all) is called while weights are read, and before that while a model of the hub comes.

    Raises GGUFError, HubError, TokenizerError, ConfigError, OutOfMemoryError.
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
    _check_count("n_parallel", n_parallel, MAX_PARALLEL)
    if kv_memory is not None:
        _check_count("kv_memory", kv_memory, 1 << 62)
    backend = open_backend(choose_threads(n_threads))
    gguf = open_gguf(demo_model() if path is None else local_model(path, progress), overrides)
    try:
        model_config = read_config(gguf)
        heads = HeadStatistics(gguf, backend)
        plan = plan_cache(heads, config)
        n_ctx = _fit_context(
            gguf, backend, n_ctx, plan, n_batch=n_batch, n_parallel=n_parallel, kv_memory=kv_memory, dense=dense
        )
        warn_beyond_training(n_ctx, model_config)

        def read_the_rest() -> Tokenizer:
            tokenizer = load_tokenizer(gguf)
            heads.read()
            return tokenizer

        with Meanwhile(read_the_rest) as vocabulary:
            model = load_model(
                gguf, backend, n_ctx=n_ctx, exact=exact, dense=dense, progress=_byte_progress(gguf, progress)
            )
        tokenizer = vocabulary.result()
        if tokenizer.n_vocab != model_config.n_vocab:
            raise GGUFError(
                f"{gguf.path}: the vocabulary has {tokenizer.n_vocab} tokens, but the embedding {model_config.n_vocab} "
                "rows; the file is damaged"
            )
        gguf.metadata.keep_texts()
    finally:  # nothing is read later: a file that is cut off while it is mapped would end the process
        gguf.close()
    scheduler = Scheduler(model, n_batch=min(n_batch, n_ctx), n_parallel=n_parallel)
    return LLM(
        Loaded(
            gguf, scheduler, tokenizer, config, plan, heads, n_ctx=n_ctx, prefix_reuse=prefix_reuse,
            pool=backend.page_pool(kv_memory), load_seconds=time.perf_counter() - start,
        )
    )  # fmt: skip


def _check_count(name: str, value: object, most: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise ConfigError(f"{name} {value!r} must be a number from 1 to {most}")


def _fit_context(
    gguf: GGUFFile, backend: Backend, n_ctx: int | None, plan: CachePlan, *, n_batch: int, n_parallel: int,
    kv_memory: int | None, dense: bool,
) -> int:  # fmt: skip
    """The context to reserve: as asked (OutOfMemoryError if it cannot be), else the model's, halved until it fits."""
    config = read_config(gguf)
    available = available_memory()
    wanted = n_ctx or config.n_ctx_train
    while True:
        memory = plan_memory(
            gguf, config, plan, backend, n_ctx=wanted, n_batch=n_batch, n_parallel=n_parallel, kv_memory=kv_memory,
            dense=dense,
        )  # fmt: skip
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
