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
from mixkv.engine.scoring import Scoring
from mixkv.engine.sequence import Sequence
from mixkv.kernels import CACHE_TYPES, Backend
from mixkv.kernels.errors import ConfigError

PROBE_BYTES = 1 << 30
MAX_PARALLEL = 1024
Report = Callable[[str], None]


@dataclass(frozen=True)
class BenchTest:
    """n_prompt tokens of a prompt, or n_gen tokens one by one, after `depth` tokens; n_parallel sequences at once."""

    n_prompt: int = 0
    n_gen: int = 0
    depth: int = 0
    n_parallel: int = 1

    @property
    def name(self) -> str:
        """`pp512`, `tg32@d8192`, as llama-bench would say."""
        what = f"pp{self.n_prompt}" if self.n_prompt else f"tg{self.n_gen}"
        what = f"{what}@d{self.depth}" if self.depth else what
        return f"{what} x{self.n_parallel}" if self.n_parallel > 1 else what

    @property
    def length(self) -> int:
        return self.depth + self.n_prompt + self.n_gen


@dataclass(frozen=True)
class BenchRow:
    """One result. tokens_per_second: of all sequences together, tokens_per_second_each: of one of them. kv_bytes: of
    all. read_gb_s: weights and caches that each forward pass must read, 10^9 bytes a second."""

    test: str
    kv: str
    n_prompt: int
    n_gen: int
    depth: int
    n_parallel: int
    threads: int
    tokens_per_second: float
    tokens_per_second_each: float
    stddev: float
    kv_bytes: int
    peak_rss_bytes: int
    read_gb_s: float


def bench_tests(prompts: Ids[int], gens: Ids[int], depths: Ids[int], parallel: Ids[int] = (1,)) -> list[BenchTest]:
    """Every prompt and generation length at every depth, for each number of sequences; 0 leaves one out."""
    tests = [BenchTest(n, 0, d, k) for d in depths for n in prompts if n for k in parallel]
    tests += [BenchTest(0, n, d, k) for d in depths for n in gens if n for k in parallel]
    if any(t.n_prompt < 0 or t.n_gen < 0 or t.depth < 0 for t in tests):
        raise ConfigError("lengths and depths of a benchmark are 0 or more")
    if any(not 1 <= k <= MAX_PARALLEL for k in parallel):
        raise ConfigError(f"sequences at once are 1 to {MAX_PARALLEL}")
    if not tests:
        raise ConfigError("nothing to measure: give a length of prompts or of generations")
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
    every = [sequence, *(sequence.fork() for _ in range(test.n_parallel - 1))]
    speeds = []
    kv_bytes = 0
    for i in range(repetitions + 1):
        for one in every:
            one.truncate(test.depth)
        start = time.perf_counter()
        if test.n_prompt:
            _feed_all(every, ids[test.depth : test.depth + test.n_prompt])
        for token in ids[test.depth : test.depth + test.n_gen]:
            _feed_all(every, [token])
        elapsed = time.perf_counter() - start
        kv_bytes = sum(one.cache.nbytes for one in every)
        if i:
            speeds.append(test.n_parallel * (test.n_prompt + test.n_gen) / elapsed)
    mean = statistics.fmean(speeds)
    passes = test.n_gen or -(-test.n_parallel * test.n_prompt // llm.n_batch)
    per_pass = llm.weight_bytes + kv_bytes if test.n_gen else llm.weight_bytes
    seconds = test.n_parallel * (test.n_gen or test.n_prompt) / mean
    return BenchRow(
        test=test.name,
        kv=kv,
        n_prompt=test.n_prompt,
        n_gen=test.n_gen,
        depth=test.depth,
        n_parallel=test.n_parallel,
        threads=llm.n_threads,
        tokens_per_second=mean,
        tokens_per_second_each=mean / test.n_parallel,
        stddev=statistics.stdev(speeds) if len(speeds) > 1 else 0.0,
        kv_bytes=kv_bytes,
        peak_rss_bytes=_peak_rss(),
        read_gb_s=passes * per_pass / seconds / 1e9,
    )


def _feed_all(sequences: list[Sequence], ids: list[int]) -> None:
    """The same tokens to each sequence, computed together."""
    if len(sequences) == 1:
        sequences[0].feed(ids)
        return
    jobs = [Scoring(ids, lambda job, target=one: target, all_rows=False) for one in sequences]  # type: ignore[misc]
    sequences[0].scheduler.run(jobs, lambda: None)
    for job in jobs:
        job.raise_error()


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
