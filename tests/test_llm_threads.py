"""Every public method of an LLM beside every other, from two threads: each result is that of some order of the calls.

A method that does not take its turn shows as wrong logits, as `tokens` that are not those in the cache, or as a session
that cannot be loaded again.
"""

from __future__ import annotations

import itertools
import multiprocessing
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_tools import random_llama

import mixkv

GREEDY: dict[str, Any] = {"temperature": 0.0, "ignore_eos": True}
A, B = [10 + i % 50 for i in range(90)], [200 - i % 70 for i in range(70)]
MIXED: dict[str, Any] = {"mixed_kv_cache": True, "hot_window": 16, "sink_tokens": 4, "prefix_reuse": "exact"}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_llama(tmp_path_factory.mktemp("model") / "llama.gguf")


class Calls:
    """The public methods as people call them, each with a check of its own result."""

    def __init__(self, path: Path, folder: Path, n_parallel: int) -> None:
        self.llm = mixkv.load(path, n_threads=1, n_batch=32, n_ctx=160, n_parallel=n_parallel, **MIXED)
        control = mixkv.load(path, n_threads=1, n_batch=32, n_ctx=160, **MIXED)
        self.a, self.b = (control.generate(ids, max_tokens=6, **GREEDY).tokens for ids in (A, B))
        self.rows = control.logits(A)
        self.saved, self.out = folder / "saved", folder / "out"
        control.generate(B, max_tokens=2, **GREEDY)
        control.save_session(self.saved)
        self.twin = control

    def generate(self) -> None:
        assert self.llm.generate(A, max_tokens=6, **GREEDY).tokens == self.a

    def stream(self) -> None:
        try:
            assert [c.token for c in self.llm.stream(B, max_tokens=6, **GREEDY)][:-1] == self.b
        except mixkv.InputError as error:  # nobody waited for it between two chunks
            assert "took its place" in str(error)

    def generate_batch(self) -> None:
        outs = self.llm.generate_batch([A, B, A[:40]], max_tokens=6, **GREEDY)
        assert [out.tokens for out in outs[:2]] == [self.a, self.b]

    def logits(self) -> None:
        np.testing.assert_allclose(self.llm.logits(A), self.rows, atol=1e-3)

    def reset(self) -> None:
        self.llm.reset()

    def truncate(self) -> None:
        try:
            self.llm.truncate(30)
        except mixkv.InputError as error:
            assert "cannot truncate" in str(error)

    def save_session(self) -> None:
        self.llm.save_session(self.out)
        self.twin.load_session(self.out)
        assert self.twin.cache.n == len(self.twin.tokens)

    def load_session(self) -> None:
        assert self.llm.load_session(self.saved) == len(B) + 1

    def fork(self) -> None:
        with self.llm.fork() as fork:
            assert len(fork.tokens) == fork.cache.n
            assert fork.generate(B, max_tokens=6, **GREEDY).tokens == self.b

    def feed(self) -> None:
        sequence = self.llm.new_sequence(self.llm.cache_config, 160)
        np.testing.assert_allclose(sequence.feed(A, all_rows=True), self.rows, atol=1e-3)

    def stats(self) -> None:
        stats = self.llm.cache.stats()
        assert stats.n_tokens == stats.sink_tokens + stats.hot_tokens + stats.cold_tokens


METHODS = [name for name in vars(Calls) if not name.startswith("_")]


@pytest.mark.parametrize("n_parallel", [1, 3])
@pytest.mark.parametrize("pair", list(itertools.combinations_with_replacement(METHODS, 2)), ids="-".join)
def test_two_methods_from_two_threads(path: Path, tmp_path: Path, pair: tuple[str, str], n_parallel: int) -> None:
    calls = Calls(path, tmp_path, n_parallel)
    errors: list[BaseException] = []

    def run(call: Callable[[], None]) -> None:
        try:
            for _ in range(3):
                call()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(getattr(calls, name),), daemon=True) for name in pair]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads), "somebody waits for ever"
    if errors:
        raise errors[0]
    assert calls.llm.cache.n == len(calls.llm.tokens)
    calls.generate()


@pytest.mark.parametrize("name", ["reset", "truncate", "load_session"])
def test_a_call_waits_for_one_that_is_between_two_steps(path: Path, tmp_path: Path, name: str) -> None:
    """Nothing is computed while a callback runs, but the sequence is not free: it would go on from another text."""
    calls = Calls(path, tmp_path, 1)
    other = threading.Thread(target=getattr(calls, name), daemon=True)
    ended_early = []

    def meanwhile(done: int, total: int) -> None:
        if not other.ident:
            other.start()
        other.join(0.1)
        ended_early.append(not other.is_alive())

    assert calls.llm.generate(A, max_tokens=6, progress=meanwhile, **GREEDY).tokens == calls.a
    other.join(30)
    assert not other.is_alive() and ended_early and not any(ended_early)


def test_every_public_method_is_tried() -> None:
    public = {name for name, value in vars(mixkv.LLM).items() if callable(value) and not name.startswith("_")}
    elsewhere = {"tokenize", "new_sequence", "stream_batch", "close"}  # no state; through feed; test_llm_batches; below
    assert public - elsewhere <= set(METHODS)


def generates(llm: mixkv.LLM, answers: Any) -> None:
    answers.put(llm.generate(A, max_tokens=6, **GREEDY).tokens)


@pytest.mark.parametrize("n_parallel", [1, 2])
def test_a_child_forked_while_another_thread_generates(path: Path, n_parallel: int) -> None:
    """It inherits the turn of a thread that it does not have: waiting for that would last for ever."""
    llm = mixkv.load(path, n_threads=2, n_ctx=512, n_parallel=n_parallel)
    wanted = mixkv.load(path, n_threads=1).generate(A, max_tokens=6, **GREEDY).tokens
    begun = threading.Event()
    stop = threading.Event()

    def busy() -> None:
        while not stop.is_set():
            for _ in llm.stream(B, max_tokens=300, **GREEDY):
                begun.set()
                if stop.is_set():
                    break

    thread = threading.Thread(target=busy, daemon=True)
    thread.start()
    assert begun.wait(30)
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    children = [context.Process(target=generates, args=(llm, answers)) for _ in range(4)]
    for child in children:
        child.start()
    got = [answers.get(timeout=30) for _ in children]
    stop.set()
    thread.join(30)
    for child in children:
        child.join(10)
    assert got == [wanted] * 4


class TestClosing:
    def test_a_closed_llm_says_so_in_every_method(self, path: Path, tmp_path: Path) -> None:
        with mixkv.load(path, n_threads=1, n_ctx=64) as llm:
            stream = llm.stream([5, 6], max_tokens=9, **GREEDY)
            first = next(stream)
            fork = llm.fork()
            assert next(stream).token is not None and first.token is not None, "a fork ends no stream"
        calls: list[Callable[[], object]] = [
            lambda: llm.generate("the"), lambda: llm.stream("the"), lambda: llm.logits([5]), llm.reset, llm.fork,
            lambda: llm.truncate(0), lambda: llm.save_session(tmp_path / "s"), lambda: llm.load_session(tmp_path / "s"),
            lambda: llm.generate_batch(["the"]), lambda: llm.cache, lambda: llm.tokens, lambda: llm.tokenize("the"),
            lambda: llm.new_sequence(mixkv.KVCacheConfig(), 16),
        ]  # fmt: skip
        for call in calls:
            with pytest.raises(mixkv.InputError, match="closed"):
                call()
        llm.close()
        assert [chunk.finish_reason for chunk in stream] == ["interrupted"]
        assert len(fork.generate([5, 6], max_tokens=3, **GREEDY).tokens) == 3, "a fork is closed on its own"

    def test_a_stream_that_is_closed_ends_and_frees_its_place(self, path: Path) -> None:
        llm = mixkv.load(path, n_threads=1, n_ctx=64)
        stream = llm.stream([5, 6], max_tokens=9, **GREEDY)
        next(stream)
        stream.close()
        stream.close()
        assert list(stream) == [] and len(stream.tokens) == 1
        assert len(llm.generate([5, 6], max_tokens=9, **GREEDY).tokens) == 9

    def test_pickling_says_what_to_do_instead(self, path: Path) -> None:
        with pytest.raises(mixkv.InputError, match=r"mixkv\.load"):
            pickle.dumps(mixkv.load(path, n_threads=1, n_ctx=64))
