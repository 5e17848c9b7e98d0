"""`mixkv bench`: speed of prompts and generation, by cache and depth, as a table or as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from mixkv.cli.flags import flag, with_flags
from mixkv.cli.hub import HubFlags, model_path
from mixkv.cli.terminal import DONE, Terminal
from mixkv.kernels.errors import ConfigError

if TYPE_CHECKING:
    from mixkv.engine.bench import BenchRow

WHAT, HOW = "What to measure", "How"
MIB = 1 << 20


@dataclass(frozen=True)
class BenchFlags:
    """Lists are comma-separated, as in llama-bench."""

    model: str | None = flag("-m", "--model", panel=WHAT, metavar="FILE", help="GGUF model", default="the demo model")
    prompts: str = flag("-p", "--n-prompt", panel=WHAT, value="512", metavar="LIST", help="Prompt lengths; 0: none",
                        default="512")  # fmt: skip
    gens: str = flag("-n", "--n-gen", panel=WHAT, value="128", metavar="LIST", help="Tokens to generate; 0: none",
                     default="128")  # fmt: skip
    depths: str = flag("-d", "--n-depth", panel=WHAT, value="0", metavar="LIST", help="Tokens in the cache before",
                       default="0")  # fmt: skip
    parallel: str = flag("-np", "--parallel", panel=WHAT, value="1", metavar="LIST", help="Sequences at once",
                         default="1")  # fmt: skip
    caches: str = flag("--kv", panel=WHAT, value="f16,mixed", metavar="LIST", help="mixed, f32, f16, q8_0, q4_0",
                       default="f16,mixed")  # fmt: skip
    repetitions: int = flag("-r", "--repetitions", panel=HOW, value=5, help="Runs of each test", default="5")
    n_threads: int = flag("-t", "--threads", panel=HOW, value=-1, help="Threads; -1: the usable cores")
    n_batch: int = flag("-b", "--batch-size", panel=HOW, value=512, help="Prompt tokens at a time", default="512")
    output: str = flag("-o", "--output", panel=HOW, value="md", metavar="md|json", help="Table, or a JSON list",
                       default="md")  # fmt: skip
    quiet: bool = flag("-q", "--quiet", panel=HOW, value=False, help="No progress on stderr")


@with_flags
def bench(flags: BenchFlags, hub: HubFlags) -> int:
    """Measure tokens per second, and how much of the memory's bandwidth that uses."""
    from mixkv.engine.bench import bench_tests, cache_config, read_bandwidth, run_bench
    from mixkv.engine.load import load

    if flags.output not in ("md", "json"):
        raise ConfigError(f"-o {flags.output!r} is no format: use md or json")
    tests = bench_tests(
        _numbers("-p", flags.prompts), _numbers("-n", flags.gens), _numbers("-d", flags.depths),
        _numbers("-np", flags.parallel),
    )  # fmt: skip
    caches = [name.strip() for name in flags.caches.split(",")]
    for name in caches:
        cache_config(name)
    terminal = Terminal(quiet=flags.quiet)
    path = model_path(flags.model, hub, terminal)
    with terminal.progress("loading") as progress:
        llm = load(
            path, n_ctx=max(test.length for test in tests) + 1, n_batch=flags.n_batch, progress=progress,
            n_parallel=max(test.n_parallel for test in tests),
            n_threads=None if flags.n_threads == -1 else flags.n_threads,
        )  # fmt: skip
    peak = read_bandwidth(llm.backend)
    terminal.say(f"{llm.config.name}, {llm.n_threads} threads, memory reads {peak:.1f} GB/s")
    rows = list(run_bench(llm, tests, caches, repetitions=flags.repetitions, report=terminal.say))
    if flags.output == "json":
        print(json.dumps([asdict(row) for row in rows], indent=1))
    else:
        print(table(rows, peak))
    return DONE


def table(rows: list[BenchRow], peak_gb_s: float) -> str:
    """Markdown, aligned; the share is of the bandwidth that the probe read with."""
    head = ("test", "kv", "threads", "t/s", "+-", "t/s each", "KV MiB", "peak MiB", "GB/s", f"of {peak_gb_s:.1f}")
    body = [
        (
            row.test, row.kv, str(row.threads), f"{row.tokens_per_second:.2f}", f"{row.stddev:.2f}",
            f"{row.tokens_per_second_each:.2f}",
            f"{row.kv_bytes / MIB:.1f}", f"{row.peak_rss_bytes / MIB:.0f}", f"{row.read_gb_s:.2f}",
            f"{row.read_gb_s / peak_gb_s:.0%}",
        )
        for row in rows
    ]  # fmt: skip
    widths = [max(len(line[i]) for line in (head, *body)) for i in range(len(head))]
    lines = [
        "| " + " | ".join(cell.rjust(w) for cell, w in zip(line, widths, strict=True)) + " |" for line in (head, *body)
    ]
    lines.insert(1, "|" + "|".join("-" * (w + 1) + ":" for w in widths) + "|")
    return "\n".join(lines)


def _numbers(name: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"{name} {text!r} must be whole numbers with commas between") from None
