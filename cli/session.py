"""What all commands that run a model share: loading it with a bar, and the statistics at the end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mixkv.cli import settings
from mixkv.cli.hub import HubFlags, model_path
from mixkv.cli.machine import MachineFlags, lock_memory, prepare
from mixkv.cli.options import ModelFlags
from mixkv.cli.overrides import OverrideFlags, overrides
from mixkv.cli.terminal import Terminal
from mixkv.engine.cache_config import CachePlan, KVCacheConfig

if TYPE_CHECKING:
    from mixkv.engine.llm import LLM
    from mixkv.engine.results import GenerationStats

MIB = 1 << 20


@dataclass(frozen=True)
class Opening:
    """Everything that decides which model is loaded and how."""

    model: ModelFlags
    hub: HubFlags
    overrides: OverrideFlags
    machine: MachineFlags
    cache: KVCacheConfig
    n_parallel: int = 1
    kv_memory: int | None = None


def open_llm(opening: Opening, terminal: Terminal) -> LLM:
    """Load the model that the flags name. Raises what `mixkv.load` raises."""
    flags, config = opening.model, opening.cache
    n_ctx, changed_metadata = settings.context_size(flags), overrides(opening.overrides)
    prepare(opening.machine, terminal)
    from mixkv.engine.load import load

    path = model_path(flags.model, opening.hub, terminal)
    with terminal.progress("loading") as report:
        llm = load(
            path, n_ctx=n_ctx, n_batch=flags.n_batch, n_threads=flags.n_threads, cache_config=config,
            exact=flags.exact, overrides=changed_metadata, progress=report, n_parallel=opening.n_parallel,
            kv_memory=opening.kv_memory,
        )  # fmt: skip
    if opening.machine.mlock:
        lock_memory(terminal)
    as_set = CachePlan.of(config, llm.config.layers).within(llm.n_ctx)
    changed = sum(mine != asked for mine, asked in zip(llm.cache.plan.layers, as_set.layers, strict=True))
    if changed:
        terminal.note(
            f"the weights of {changed} of {llm.config.n_layers} layers ask for more exact keys, and they get them: "
            "`mixkv inspect --kv-plan` says why, --kv-plan off leaves them as the settings say"
        )
    return llm


def show_statistics(stats: GenerationStats, llm: LLM, terminal: Terminal) -> None:
    """Speeds, and the cache's memory beside that of FP16."""
    cache = stats.cache
    if cache.n_tokens < stats.prompt_tokens and not stats.generated_tokens:
        terminal.tally(f"interrupted after {cache.n_tokens} of {stats.prompt_tokens} prompt tokens")
        return
    reused = f" ({stats.reused_tokens} reused)" if stats.reused_tokens else ""
    terminal.tally(
        f"prompt {stats.prompt_tokens} tokens{reused}, {stats.prompt_tokens_per_second:.1f} tokens/s | "
        f"text {stats.generated_tokens} tokens, {stats.decode_tokens_per_second:.1f} tokens/s | "
        f"load {stats.load_seconds:.2f} s, {llm.n_threads} threads"
    )
    share = f", {cache.nbytes / cache.fp16_bytes:.0%}" if cache.fp16_bytes else ""
    parts = f": {cache.sink_tokens} first, {cache.hot_tokens} recent, {cache.cold_tokens} old"
    terminal.tally(
        f"cache {_mib(cache.nbytes)} (FP16: {_mib(cache.fp16_bytes)}{share}) for {cache.n_tokens} of {cache.n_ctx} "
        f"tokens{parts if llm.cache_config.mixed_kv_cache else ''}"
    )


def _mib(n_bytes: int) -> str:
    return f"{n_bytes / MIB:.2f} MiB"
