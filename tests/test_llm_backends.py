"""Models in one process, each with a backend of its own."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

import mixkv

THREADS = Path("/proc/self/task")


@pytest.mark.filterwarnings("ignore::mixkv.MixkvWarning")
def test_two_models_of_other_thread_counts_generate_at_once() -> None:
    """Their numbers of threads were one setting of the process: within seconds a call wrote past its scratch memory."""
    prompts = {
        1: [[1, *((403 + (n * 7 + i) % 900) for i in range(300))] for n in range(12)],
        8: [[1, 403 + n] for n in range(12)],
    }
    llms = {n: mixkv.load(n_threads=n, n_ctx=512) for n in prompts}
    max_tokens = {1: 1, 8: 12}

    def texts(n_threads: int) -> list[list[int]]:
        llm = llms[n_threads]
        return [llm.generate(p, max_tokens=max_tokens[n_threads], temperature=0.0).tokens for p in prompts[n_threads]]

    wanted = {n: texts(n) for n in prompts}
    got: dict[int, list[list[list[int]]]] = {n: [] for n in prompts}
    workers = [threading.Thread(target=lambda n=n: got[n].extend(texts(n) for _ in range(3))) for n in prompts]
    for w in workers:
        w.start()
    for w in workers:
        w.join(240)
    assert not any(w.is_alive() for w in workers)
    assert got == {n: [wanted[n]] * 3 for n in prompts}
    assert {n: llm.n_threads for n, llm in llms.items()} == {1: 1, 8: 8}


def test_a_model_its_cache_and_its_sequences_share_one_backend() -> None:
    llm, other = mixkv.load(n_threads=1, n_ctx=64), mixkv.load(n_threads=1, n_ctx=64)
    assert llm.backend is llm.sequence.model.backend is not other.backend
    sequence = llm.new_sequence(mixkv.KVCacheConfig(mixed_kv_cache=True), 64)
    assert sequence.model.backend is llm.backend
