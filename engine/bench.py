"""Speed of a model on this machine: prompts, generation, and both at a depth, as llama-bench has them.

Every row says how many bytes a second the test must at least have read, to be held against what the memory can do.
Prompts are fixed random ids; a test at a depth first fills the cache, untimed, and goes back there for each repetition.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Ids
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mixkv.engine.cache_config import KVCacheConfig
from mixkv.engine.llm import LLM
from mixkv.engine.sequence import Sequence
from mixkv.kernels import CACHE_TYPES, Backend
from mixkv.kernels.errors import ConfigError

PROBE_BYTES = 1 << 30
Report = Callable[[str], None]


@dataclass(frozen=True)
class BenchTest:
    """n_prompt tokens of a prompt, or n_gen tokens one by one, after `depth` tokens."""

    n_prompt: int = 0
    n_gen: int = 0
    depth: int = 0

    @property
    def name(self) -> str:
        """`pp512`, `tg32@d8192`, as llama-bench would say."""
        what = f"pp{self.n_prompt}" if self.n_prompt else f"tg{self.n_gen}"
        return f"{what}@d{self.depth}" if self.depth else what

    @property
    def length(self) -> int:
        return self.depth + self.n_prompt + self.n_gen


@dataclass(frozen=True)
class BenchRow:
    """One result. read_gb_s: weights and cache that each forward pass must read, 10^9 bytes a second."""

    test: str
    kv: str
    n_prompt: int
    n_gen: int
    depth: int
    threads: int
    tokens_per_second: float
    stddev: float
    kv_bytes: int
    peak_rss_bytes: int
    read_gb_s: float


def bench_tests(prompts: Ids[int], gens: Ids[int], depths: Ids[int]) -> list[BenchTest]:
    """Every prompt length and every generation length at every depth; 0 leaves one out."""
    tests = [BenchTest(n_prompt=n, depth=d) for d in depths for n in prompts if n]
    tests += [BenchTest(n_gen=n, depth=d) for d in depths for n in gens if n]
    if any(t.n_prompt < 0 or t.n_gen < 0 or t.depth < 0 for t in tests):
        raise ConfigError("lengths and depths of a benchmark are 0 or more")
    if not tests:
        raise ConfigError("nothing to measure: give a prompt length (-p) or a generation length (-n)")
    return tests


def cache_config(name: str) -> KVCacheConfig:
    """The cache called `name`: mixed, or a uniform type."""
    if name == "mixed":
        return KVCacheConfig(mixed_kv_cache=True)
    if name not in CACHE_TYPES:
        raise ConfigError(f"unknown cache {name!r}: use mixed, {', '.join(CACHE_TYPES)}")
    return KVCacheConfig(type_k=name, type_v=name)


def read_bandwidth(backend: Backend) -> float:
    """10^9 bytes a second that the backend's threads can read from memory: the best of five passes over 1 GiB."""
    return max(float(backend.read_bandwidth(PROBE_BYTES)) for _ in range(5)) / 1e9


def run_bench(
    llm: LLM, tests: Ids[BenchTest], caches: Ids[str], *, repetitions: int = 5, report: Report | None = None
) -> Iterator[BenchRow]:
    """Measure every test with every cache. One untimed run warms each test up; speeds are means over repetitions.

    Tests of one cache run from shallow to deep, so that its depth is filled only once.
    """
    if repetitions < 1:
        raise ConfigError(f"repetitions {repetitions} must be at least 1")
    longest = max(test.length for test in tests)
    for kv in caches:
        sequence = llm.new_sequence(cache_config(kv), longest + 1)
        for test in sorted(tests, key=lambda t: t.depth):
            if report is not None:
                report(f"{test.name} {kv}")
            yield _measure(llm, sequence, kv, test, repetitions)


def _measure(llm: LLM, sequence: Sequence, kv: str, test: BenchTest, repetitions: int) -> BenchRow:
    ids = np.random.default_rng(0).integers(0, llm.config.n_vocab, test.length + 1).tolist()
    _reset_peak_rss()
    if sequence.cache.n > test.depth:
        sequence.truncate(test.depth)
    if sequence.cache.n < test.depth:
        sequence.feed(ids[sequence.cache.n : test.depth])
    speeds = []
    kv_bytes = 0
    for i in range(repetitions + 1):
        sequence.truncate(test.depth)
        start = time.perf_counter()
        if test.n_prompt:
            sequence.feed(ids[test.depth : test.depth + test.n_prompt])
        for token in ids[test.depth : test.depth + test.n_gen]:
            sequence.feed([token])
        elapsed = time.perf_counter() - start
        kv_bytes = sequence.cache.nbytes
        if i:
            speeds.append((test.n_prompt + test.n_gen) / elapsed)
    mean = statistics.fmean(speeds)
    passes = test.n_gen or -(-test.n_prompt // llm.n_batch)
    per_pass = llm.weight_bytes + kv_bytes if test.n_gen else llm.weight_bytes
    seconds = (test.n_gen or test.n_prompt) / mean
    return BenchRow(
        test=test.name,
        kv=kv,
        n_prompt=test.n_prompt,
        n_gen=test.n_gen,
        depth=test.depth,
        threads=llm.n_threads,
        tokens_per_second=mean,
        stddev=statistics.stdev(speeds) if len(speeds) > 1 else 0.0,
        kv_bytes=kv_bytes,
        peak_rss_bytes=_peak_rss(),
        read_gb_s=passes * per_pass / seconds / 1e9,
    )


def _reset_peak_rss() -> None:
    """Linux starts the peak afresh; elsewhere it stays that of the whole process."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _peak_rss() -> int:
    """The most bytes this process had in memory since `_reset_peak_rss`."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
