"""Many sequences on one model: what each gets is what it would get alone, to the bit, whoever computes beside it."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_tools import random_llama

import mixkv

CACHES: dict[str, dict[str, Any]] = {
    "mixed": {"mixed_kv_cache": True, "hot_window": 17, "sink_tokens": 3},
    "f16": {},
    "q8_0": {"type_k": "q8_0", "type_v": "q8_0"},
}
SHARED = [30 + i % 77 for i in range(80)]
PROMPTS = [
    [5], [6, 7, 8], [9 + i % 50 for i in range(33)], [70 - i % 60 for i in range(130)], [*SHARED, 11, 12],
    [*SHARED, 13, 14, 15], [*SHARED[:40], 9, 9, 9], [5, 6] * 20,
]  # fmt: skip
N = 20
OPTIONS: list[dict[str, Any]] = [
    {"max_tokens": N, "ignore_eos": True, "logprobs": 1} | more
    for more in ({"temperature": 0.0}, {"temperature": 0.9, "seed": 3}, {"temperature": 0.0, "draft": "lookup"})
]
Requests = tuple[int, int]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_llama(tmp_path_factory.mktemp("model") / "llama.gguf")


def load(path: Path, kind: str, **options: Any) -> mixkv.LLM:
    return mixkv.load(path, n_threads=2, n_ctx=256, prefix_reuse="exact", **CACHES[kind], **options)


@cache
def alone(path: Path, isa: str, kind: str, prompt: int, option: int) -> list[tuple[int, float]]:
    """Tokens of a prompt with their log probabilities, computed with nothing beside it."""
    options = {name: value for name, value in OPTIONS[option].items() if name != "draft"}
    out = load(path, kind).generate(PROMPTS[prompt], **options)
    assert out.logprobs is not None
    return [(entry.token, entry.logprob) for entry in out.logprobs]


def seen(stream: Any) -> list[tuple[int, float]]:
    return [(entry.token, entry.logprob) for entry in stream.logprobs]


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(sorted(CACHES)),
    n_batch=st.sampled_from([7, 64, 512]),
    actions=st.lists(
        st.tuples(st.sampled_from(["start", "pull", "pull", "close", "fork", "reset"]), st.integers(0, 99)),
        min_size=4, max_size=40,
    ),
)  # fmt: skip
def test_bits_do_not_depend_on_who_else_is_in_the_batch(
    path: Path, isa: str, kind: str, n_batch: int, actions: list[tuple[str, int]]
) -> None:
    """Streams that join, leave, are forked away from and draft: each token and its logits are those alone."""
    llm = load(path, kind, n_batch=n_batch, n_parallel=4)
    llms, streams = [llm], list[tuple[Any, Requests]]()
    for action, n in actions:
        if action == "start":
            request = n % len(PROMPTS), n % len(OPTIONS)
            streams.append((llms[n % len(llms)].stream(PROMPTS[request[0]], **OPTIONS[request[1]]), request))
        elif action == "fork" and len(llms) < 4:
            llms.append(llms[n % len(llms)].fork())
        elif action == "reset":
            llms[n % len(llms)].reset()
        elif streams:
            stream, _ = streams[n % len(streams)]
            try:
                stream.close() if action == "close" else next(stream, None)
            except mixkv.InputError as error:
                assert "took its place" in str(error)
    for stream, request in streams:
        wanted = alone(path, isa, kind, *request)
        try:
            for _ in stream:
                pass
        except mixkv.InputError as error:
            assert "took its place" in str(error)
        got = seen(stream)
        assert got == wanted[: len(got)]
        assert len(got) == N or stream.finish_reason in (None, "interrupted")


@pytest.mark.parametrize("kind", CACHES)
@pytest.mark.parametrize("n_parallel", [1, 3, 8])
def test_generate_batch_is_each_prompt_alone_in_order(path: Path, isa: str, kind: str, n_parallel: int) -> None:
    """Common beginnings computed once, prompts of very different lengths, and more of them than places."""
    llm = load(path, kind, n_batch=64, n_parallel=n_parallel)
    for option in range(2):
        outs = llm.generate_batch(PROMPTS, **OPTIONS[option])
        for i, out in enumerate(outs):
            assert out.logprobs is not None and out.finish_reason == "length"
            assert [(e.token, e.logprob) for e in out.logprobs] == alone(path, isa, kind, i, option)


def test_a_common_beginning_is_computed_once(path: Path) -> None:
    """The second prompt onwards begin with what the first left behind, in exact form although its end is far on."""
    prompts = [[*SHARED, *range(20, 100), i] for i in range(5)] + [[*SHARED, 7, i] for i in range(3)]
    for n_parallel in (1, 2, 4):
        outs = load(path, "mixed", n_parallel=n_parallel).generate_batch(prompts, max_tokens=2, temperature=0.0)
        computed = sum(out.stats.prompt_tokens - out.stats.reused_tokens for out in outs)
        assert computed <= len(SHARED) + 80 + 1 * 5 + 2 * 3 + 1
        assert all(out.stats.cache.degraded_tokens == 0 for out in outs)


def test_chunks_of_a_batch_are_those_of_its_streams(path: Path) -> None:
    llm = load(path, "f16", n_parallel=3)
    wanted = [llm.generate(prompt, **OPTIONS[0]) for prompt in PROMPTS]
    text: dict[int, str] = dict.fromkeys(range(len(PROMPTS)), "")
    reasons: dict[int, str | None] = {}
    order = []
    for i, chunk in llm.stream_batch(PROMPTS, **OPTIONS[0]):
        assert i not in reasons, "a chunk after the last"
        text[i] += chunk.text
        order.append(i)
        if chunk.finish_reason is not None:
            reasons[i] = chunk.finish_reason
    assert [text[i] for i in range(len(PROMPTS))] == [out.text for out in wanted]
    assert reasons == dict.fromkeys(range(len(PROMPTS)), "length")
    assert order != sorted(order), "they come as they are made"


def test_params_for_all_or_for_each(path: Path) -> None:
    llm = load(path, "f16", n_parallel=2)
    one = mixkv.SamplingParams(max_tokens=3, temperature=0.0, ignore_eos=True)
    each = [mixkv.SamplingParams(max_tokens=n, temperature=0.0) for n in (1, 2, 3)]
    assert [len(out.tokens) for out in llm.generate_batch(PROMPTS[:3], params=one)] == [3, 3, 3]
    assert [len(out.tokens) for out in llm.generate_batch(PROMPTS[:3], params=each, ignore_eos=True)] == [1, 2, 3]
    assert [len(out.tokens) for out in llm.generate_batch(PROMPTS[:2], params=one, max_tokens=5)] == [5, 5]


class TestFaults:
    """A fault in one request ends that request and no other."""

    def test_a_prompt_too_long_among_good_ones(self, path: Path) -> None:
        llm = load(path, "mixed", n_parallel=2)
        prompts: list[Any] = [PROMPTS[1], [5] * 300, [9999], "", PROMPTS[2]]
        outs = llm.generate_batch(prompts, max_tokens=4, temperature=0.0, ignore_eos=True)
        assert [out.finish_reason for out in outs] == ["length", "error", "error", "length", "length"]
        assert "300 tokens, but the context holds 256" in str(outs[1].error)
        assert isinstance(outs[2].error, mixkv.InputError) and "out of range" in str(outs[2].error)
        wanted = load(path, "mixed").generate(PROMPTS[2], max_tokens=4, temperature=0.0, ignore_eos=True)
        assert outs[4].tokens == wanted.tokens and outs[4].error is None
        last = dict(llm.stream_batch(prompts, max_tokens=4, ignore_eos=True))
        assert [last[i].finish_reason for i in range(5)] == ["length", "error", "error", "length", "length"]
        assert "300 tokens" in str(last[1].error)

    def test_a_failure_while_it_runs(self, path: Path) -> None:
        """A bias that bans every token shows when the first one is drawn: the others are in the same batch then."""
        llm = load(path, "f16", n_parallel=3)
        every = dict.fromkeys(range(llm.config.n_vocab), -np.inf)
        params = [mixkv.SamplingParams(max_tokens=5, ignore_eos=True, temperature=0.0, logit_bias=bias)
                  for bias in ({}, every, {})]  # fmt: skip
        outs = llm.generate_batch(PROMPTS[:3], params=params)
        assert [out.finish_reason for out in outs] == ["length", "error", "length"]
        assert "no token is left" in str(outs[1].error)

    @pytest.mark.parametrize("prompts", [[], "text", None, 5])
    def test_what_is_no_list_of_prompts(self, path: Path, prompts: Any) -> None:
        llm = load(path, "f16")
        for call in (llm.generate_batch, lambda p: list(llm.stream_batch(p))):
            with pytest.raises(mixkv.InputError, match="list of at least one prompt"):
                call(prompts)

    def test_params_that_do_not_fit(self, path: Path) -> None:
        llm = load(path, "f16")
        for params in ([mixkv.SamplingParams()], "greedy", [1, 2]):
            with pytest.raises(mixkv.ConfigError, match="params"):
                llm.generate_batch(PROMPTS[:2], params=params)  # type: ignore[arg-type]

    def test_a_callback_that_raises_ends_the_call_and_loses_nothing(self, path: Path) -> None:
        llm = load(path, "mixed", n_parallel=2)
        wanted = llm.generate(PROMPTS[3], max_tokens=5, temperature=0.0).tokens

        def fail(done: int, total: int) -> None:
            if done >= 2:
                raise RuntimeError("the caller's own bug")

        with pytest.raises(RuntimeError, match="own bug"):
            llm.generate_batch(PROMPTS, max_tokens=5, temperature=0.0, progress=fail)
        assert llm.generate(PROMPTS[3], max_tokens=5, temperature=0.0).tokens == wanted

    def test_progress_counts_finished_prompts(self, path: Path) -> None:
        said: list[tuple[int, int]] = []
        load(path, "f16", n_parallel=2).generate_batch(
            [*PROMPTS[:3], [5] * 999], max_tokens=2, progress=lambda done, total: said.append((done, total))
        )
        assert said[0][0] <= 1 and said[-1] == (4, 4) and said == sorted(set(said))

    def test_an_interrupt_returns_what_there_is(self, path: Path) -> None:
        llm = load(path, "f16", n_parallel=2)

        def interrupt(done: int, total: int) -> None:
            if done:
                raise KeyboardInterrupt

        params = [mixkv.SamplingParams(max_tokens=n, temperature=0.0, ignore_eos=True) for n in (2, 50, 50)]
        outs = llm.generate_batch(PROMPTS[:3], params=params, progress=interrupt)
        assert [out.finish_reason for out in outs] == ["length", "interrupted", "interrupted"]
        assert len(outs[0].tokens) == 2 and 1 <= len(outs[1].tokens) < 50 and outs[2].tokens == []

    def test_a_batch_that_is_left_in_the_middle_frees_its_places(self, path: Path) -> None:
        llm = load(path, "f16", n_parallel=2)
        chunks = llm.stream_batch(PROMPTS, max_tokens=20, ignore_eos=True)
        next(chunks)
        chunks.close()  # type: ignore[attr-defined]
        assert len(llm.generate(PROMPTS[0], max_tokens=3, ignore_eos=True).tokens) == 3


def test_a_fork_goes_its_own_way(path: Path, isa: str) -> None:
    """Both continue from the same tokens; neither sees what the other adds."""
    llm = load(path, "mixed")
    llm.generate(PROMPTS[3], max_tokens=1, temperature=0.0)
    fork = llm.fork()
    assert fork.tokens == llm.tokens
    a, b = [*PROMPTS[3], 7, 8], [*PROMPTS[3], 9]
    outs = [x.generate(ids, max_tokens=9, temperature=0.0, logprobs=0) for x, ids in ((llm, a), (fork, b))]
    assert [out.stats.reused_tokens for out in outs] == [len(PROMPTS[3])] * 2
    for out, ids in zip(outs, (a, b), strict=True):
        assert load(path, "mixed").generate(ids, max_tokens=9, temperature=0.0, logprobs=0).logprobs == out.logprobs


class TestMemory:
    """One budget for all caches: prompts wait for it, nothing is lost over it."""

    PROMPTS = ([20 + i % 90 for i in range(150)], *([30 + j, *range(40, 130)] for j in range(5)))
    OPTIONS: dict[str, Any] = {"max_tokens": 5, "temperature": 0.0, "ignore_eos": True}  # noqa: RUF012

    def need(self, path: Path, prompts: int) -> int:
        """Bytes of pages at the fullest moment of some prompts, one after the other."""
        llm = load(path, "f16")
        for prompt in self.PROMPTS[:prompts]:
            llm.generate(prompt, **self.OPTIONS)
        return llm.cache.pool.peak_nbytes

    def test_more_prompts_than_memory_wait_for_it(self, path: Path) -> None:
        wanted = [load(path, "f16").generate(prompt, **self.OPTIONS).tokens for prompt in self.PROMPTS]
        for budget in (self.need(path, 6), 2 * self.need(path, 6)):
            llm = load(path, "f16", n_parallel=4, kv_memory=budget)
            outs = llm.generate_batch(list(self.PROMPTS), **self.OPTIONS)
            assert [(out.error, out.tokens) for out in outs] == [(None, tokens) for tokens in wanted]
            assert llm.cache.pool.peak_nbytes <= budget

    def test_a_prompt_that_never_fits_is_an_error_that_loses_nothing(self, path: Path) -> None:
        budget = self.need(path, 6) // 2
        llm = load(path, "f16", n_parallel=2, kv_memory=budget)
        with pytest.raises(mixkv.OutOfMemoryError, match=str(budget)):
            llm.generate(self.PROMPTS[0], **self.OPTIONS)
        short = llm.generate([5, 6, 7], **self.OPTIONS).tokens
        outs = llm.generate_batch([[5, 6, 7], self.PROMPTS[0], [5, 6, 7]], **self.OPTIONS)
        assert [out.finish_reason for out in outs] == ["length", "error", "length"]
        assert isinstance(outs[1].error, mixkv.OutOfMemoryError)
        assert outs[0].tokens == outs[2].tokens == short

    def test_a_common_beginning_is_stored_once(self, path: Path) -> None:
        """Eight sequences that begin alike hold the pages of one, and their own rings."""
        llm = load(path, "mixed")
        llm.generate(self.PROMPTS[0], **self.OPTIONS)
        alone = llm.cache.pool.nbytes
        forks = [llm.fork() for _ in range(7)]
        assert llm.cache.pool.nbytes == alone
        for i, fork in enumerate(forks):
            fork.generate([*self.PROMPTS[0], 9 + i], **self.OPTIONS)
        assert llm.cache.pool.nbytes < 5 * alone
