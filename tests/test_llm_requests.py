"""What may be asked of an LLM, and what not: loading, settings, reused prefixes, and requests that are refused."""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_tools import random_llama

import mixkv
from mixkv.engine.load import PREFIX_REUSE
from mixkv.engine.threads import Meanwhile
from mixkv.kernels import available_cores

GREEDY: dict[str, Any] = {"max_tokens": 24, "temperature": 0.0}
IDS = list(range(20, 120))

CASES: dict[str, tuple[type[Exception], str, Callable[[mixkv.LLM], object]]] = {
    "no-ids": (mixkv.InputError, "prompt is empty", lambda llm: llm.generate([])),
    "empty-logits": (mixkv.InputError, "prompt is empty", lambda llm: llm.logits([])),
    "too-long": (mixkv.InputError, "129 tokens, but the context holds 128", lambda llm: llm.generate([5] * 129)),
    "too-long-logits": (mixkv.InputError, "129 tokens", lambda llm: llm.logits([5] * 129)),
    "id-too-large": (mixkv.InputError, "276 is out of range", lambda llm: llm.generate([5, 276])),
    "id-negative": (mixkv.InputError, "-1 is out of range", lambda llm: llm.stream([-1])),
    "id-huge": (mixkv.InputError, "whole numbers", lambda llm: llm.generate([2**70])),
    "ids-floats": (mixkv.InputError, "whole numbers", lambda llm: llm.generate(np.array([1.0, 2.0]))),
    "ids-bools": (mixkv.InputError, "whole numbers", lambda llm: llm.generate([True, False])),
    "ids-strings": (mixkv.InputError, "whole numbers", lambda llm: llm.generate(["a", "b"])),
    "ids-nested": (mixkv.InputError, "flat sequence", lambda llm: llm.generate([[1, 2], [3, 4]])),
    "ids-ragged": (mixkv.InputError, "flat sequence", lambda llm: llm.generate([[1, 2], [3]])),
    "none": (mixkv.InputError, "whole numbers", lambda llm: llm.generate(None)),
    "bytes": (mixkv.InputError, "whole numbers", lambda llm: llm.generate(b"text")),
    "unknown": (mixkv.ConfigError, "max_token", lambda llm: llm.generate("a", max_token=3)),
    "unknown-stream": (mixkv.ConfigError, "temprature", lambda llm: llm.stream("a", temprature=3)),
    "bad-value": (mixkv.ConfigError, "top_p", lambda llm: llm.generate("a", top_p=2.0)),
    "bad-truncate": (mixkv.InputError, "cannot truncate", lambda llm: llm.truncate(-1)),
}

LOADS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown": ({"hotwindow": 3}, "hotwindow"),
    "n_ctx-0": ({"n_ctx": 0}, "n_ctx 0"),
    "n_ctx-huge": ({"n_ctx": 2**31 + 1}, "n_ctx"),
    "n_ctx-text": ({"n_ctx": "many"}, "n_ctx 'many'"),
    "n_batch-0": ({"n_batch": 0}, "n_batch 0"),
    "n_threads--2": ({"n_threads": -2}, "n_threads -2"),
    "n_threads-bool": ({"n_threads": True}, "n_threads True"),
    "prefix": ({"prefix_reuse": "maybe"}, "prefix_reuse 'maybe'"),
    "type": ({"type_k": "q5_1"}, "q5_1"),
    "window": ({"mixed_kv_cache": True, "hot_window": -1}, "hot_window -1"),
    "window-float": ({"hot_window": 12.5}, "hot_window 12.5"),
    "sinks": ({"sink_tokens": -3}, "sink_tokens -3"),
    "rotate": ({"rotate": "yes"}, "rotate 'yes'"),
    "scale": ({"q4_scale": "best"}, "q4_scale 'best'"),
    "mixed": ({"mixed_kv_cache": 1}, "mixed_kv_cache 1"),
    "layer": ({"per_layer": {7: {"type_k": "f16"}}}, "layer 7"),
    "layer-setting": ({"per_layer": {0: {"typ": "f16"}}}, "'typ'"),
    "both": ({"cache_config": mixkv.KVCacheConfig(), "hot_window": 3}, "not both"),
}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_llama(tmp_path_factory.mktemp("model") / "llama.gguf")


@pytest.fixture
def small(path: Path) -> mixkv.LLM:
    return mixkv.load(path, n_threads=1, dense=True, n_ctx=128)


class TestPrefixReuse:
    """Several generations on one LLM reuse what they share."""

    @pytest.mark.parametrize("mixed", [False, True])
    def test_a_longer_prompt_continues_and_gives_the_tokens_of_a_fresh_llm(self, path: Path, mixed: bool) -> None:
        llm, fresh = (mixkv.load(path, n_threads=1, mixed_kv_cache=mixed, hot_window=32) for _ in range(2))
        first = llm.generate(IDS[:80], max_tokens=10, temperature=0.0)
        turn = IDS[:80] + first.tokens + [33, 44]
        out = llm.generate(turn, **GREEDY)
        assert out.stats.reused_tokens == 80 + len(first.tokens) - 1  # the last token was never fed
        assert out.stats.prompt_tokens == len(turn)
        assert out.tokens == fresh.generate(turn, **GREEDY).tokens

    def test_the_same_prompt_again_computes_its_last_token_only(self, small: mixkv.LLM) -> None:
        """Somebody has to compute the logits after it."""
        a = small.generate(IDS, **GREEDY)
        b = small.generate(IDS, **GREEDY)
        assert (b.tokens, b.stats.reused_tokens) == (a.tokens, 99)

    def test_exact_starts_over_rather_than_use_restored_tokens(self, path: Path) -> None:
        """Cutting back past the window reads dequantized values as recent ones: "exact" refuses, "on" says so."""
        other = [*IDS[:60], 3, 4]
        settings: dict[str, Any] = {"n_threads": 1, "mixed_kv_cache": True, "hot_window": 16}
        wanted = mixkv.load(path, **settings).generate(other, **GREEDY)
        seen = {}
        for reuse in PREFIX_REUSE:
            llm = mixkv.load(path, prefix_reuse=reuse, **settings)
            llm.generate(IDS, max_tokens=1)
            out = llm.generate(other, max_tokens=1, temperature=0.0)
            seen[reuse] = out.stats.reused_tokens, out.stats.cache.degraded_tokens > 0
            if reuse != "on":
                assert out.tokens == wanted.tokens[:1]
        assert seen == {"on": (60, True), "exact": (0, False), "off": (0, False)}

    def test_off_reuses_nothing(self, path: Path) -> None:
        llm = mixkv.load(path, n_threads=1, prefix_reuse="off")
        tokens = [llm.generate(IDS, **GREEDY) for _ in range(2)]
        assert tokens[0].tokens == tokens[1].tokens and tokens[1].stats.reused_tokens == 0

    def test_reset_and_truncate(self, small: mixkv.LLM) -> None:
        small.generate(IDS, max_tokens=1)
        small.truncate(40)
        assert small.tokens == IDS[:40] and small.cache.n == 40
        assert small.generate(IDS, max_tokens=1).stats.reused_tokens == 40
        small.reset()
        assert small.tokens == [] and small.cache.n == 0
        with pytest.raises(mixkv.InputError):
            small.truncate(1)


class TestBadRequests:
    """One typed line for each; the sequence in hand is not touched."""

    @pytest.mark.parametrize("case", CASES)
    def test_is_an_error_that_changes_nothing(self, small: mixkv.LLM, case: str) -> None:
        error, words, call = CASES[case]
        wanted = small.generate([9, 8, 7], **GREEDY)
        before = small.tokens, small.cache.stats()
        with pytest.raises(error, match=words) as caught:
            call(small)
        assert "\n" not in str(caught.value)
        assert (small.tokens, small.cache.stats()) == before
        assert small.generate([9, 8, 7], **GREEDY).tokens == wanted.tokens

    @pytest.mark.parametrize("case", LOADS)
    def test_settings_of_load(self, path: Path, case: str) -> None:
        settings, words = LOADS[case]
        with pytest.raises(mixkv.ConfigError, match=words) as caught:
            mixkv.load(path, **settings)
        assert "\n" not in str(caught.value)

    def test_files_that_are_not_there(self, tmp_path: Path) -> None:
        for path in (tmp_path / "missing.gguf", tmp_path):
            with pytest.raises(mixkv.MixkvError):
                mixkv.load(path)

    def test_one_shot_with_an_unknown_option(self, path: Path) -> None:
        with pytest.raises(mixkv.ConfigError, match="colour"):
            mixkv.generate(path, "a", colour="red")


class TestLoad:
    def test_the_context_is_the_models_own_unless_told(self, path: Path) -> None:
        assert mixkv.load(path).n_ctx == 512
        assert mixkv.load(path, n_ctx=64).n_ctx == 64
        assert mixkv.load(path, n_ctx=2000).n_ctx == 2000

    def test_progress_counts_all_bytes(self, path: Path) -> None:
        seen: list[tuple[int, int]] = []
        mixkv.load(path, progress=lambda done, total: seen.append((done, total)))
        assert seen[-1][0] == seen[-1][1] and [done for done, _ in seen] == sorted(done for done, _ in seen)
        assert 0.9 * path.stat().st_size < seen[-1][1] <= path.stat().st_size

    def test_more_threads_than_cores_warns(self, path: Path) -> None:
        with pytest.warns(mixkv.MixkvWarning, match="usable cores"):
            llm = mixkv.load(path, n_threads=available_cores() + 1)
        assert llm.n_threads == available_cores() + 1
        assert mixkv.load(path).n_threads == available_cores()

    def test_stats_say_what_it_cost(self, small: mixkv.LLM) -> None:
        out = small.generate([7] * 40, max_tokens=5, ignore_eos=True)
        stats = out.stats
        assert (stats.prompt_tokens, stats.reused_tokens, stats.generated_tokens) == (40, 0, 5)
        assert stats.load_seconds == small.load_seconds > 0
        assert stats.prompt_tokens_per_second == pytest.approx(40 / stats.prompt_seconds)
        assert stats.decode_tokens_per_second == pytest.approx(4 / stats.decode_seconds)
        assert stats.cache == small.cache.stats() and stats.cache.n_tokens == 44
        assert stats.cache.nbytes == stats.cache.fp16_bytes == 44 * 1024

    def test_the_mixed_cache_of_the_demo_model_is_smaller(self) -> None:
        llm = mixkv.load(n_threads=1, dense=True, mixed_kv_cache=True, hot_window=32, n_batch=64)
        llm.generate("All day long the rain fell on the roof and the road. " * 20, max_tokens=4)
        stats = llm.cache.stats()
        assert stats.n_tokens > 200
        assert stats.nbytes < 0.5 * stats.fp16_bytes and stats.bits_per_element < 8


def test_what_runs_meanwhile_hands_over_its_value_or_its_error() -> None:
    """The vocabulary is read beside the weights: its errors arrive where it is asked for, after the block's own."""
    with Meanwhile(lambda: 7) as answer:
        pass
    assert answer.result() == 7
    with Meanwhile(lambda: 1 // 0) as broken:
        pass
    with pytest.raises(ZeroDivisionError):
        broken.result()
    with pytest.raises(KeyError), Meanwhile(lambda: 1 // 0):
        raise KeyError("the block's own")


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Only reference counts free memory: weights are too large to wait for the collector."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
def test_a_model_goes_with_its_last_name(tmp_path: Path) -> None:
    """Also after a stream that was left in the middle, and a request that failed."""
    llm = mixkv.load(random_llama(tmp_path / "tiny.gguf"), n_ctx=128)
    model = weakref.ref(llm.sequence.scheduler.model)
    next(llm.stream(IDS, **GREEDY))
    with contextlib.suppress(mixkv.InputError):
        llm.generate("")
    del llm
    assert model() is None


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("own_error", [None, KeyError])
def test_work_that_failed_meanwhile_keeps_nothing_alive(own_error: type[Exception] | None) -> None:
    def work() -> None:
        held = np.zeros(1)
        seen.append(weakref.ref(held))
        raise ValueError

    seen: list[weakref.ref[object]] = []
    with contextlib.suppress(ValueError, KeyError), Meanwhile(work) as broken:
        if own_error:
            raise own_error
        broken.result()
    assert seen[0]() is None
