"""Sessions that are saved and restored: bit for bit, or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attention_oracle import nmse
from model_tools import random_llama

import mixkv
from mixkv.kernels.errors import SessionError

IDS = np.random.default_rng(1).integers(3, 276, 400).tolist()
MIXED: dict[str, Any] = {"mixed_kv_cache": True, "hot_window": 32, "sink_tokens": 16}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_llama(tmp_path_factory.mktemp("model") / "llama.gguf")


def filled(path: Path, n: int, **settings: Any) -> mixkv.LLM:
    """An LLM with the first n of IDS in its cache."""
    llm = mixkv.load(path, n_threads=1, dense=True, **settings)
    llm.logits(IDS[:n])
    return llm


def continuation(llm: mixkv.LLM) -> list[tuple[int, float, Any]]:
    """Tokens with their log probabilities, to the last bit, from what is in the cache; 20 tokens are added."""
    out = llm.generate([*llm.tokens, 5, 6], max_tokens=19, temperature=0.0, logprobs=3, ignore_eos=True)
    assert out.stats.reused_tokens == out.stats.prompt_tokens - 2
    return [(entry.token, entry.logprob, entry.top) for entry in out.logprobs or []]


def next_logits(llm: mixkv.LLM) -> np.ndarray:
    """Those after one more token."""
    return llm.sequence.feed([5])[0]


CACHES: dict[str, dict[str, Any]] = {
    "f16": {},
    "f32": {"type_k": "f32", "type_v": "f32"},
    "q8_0": {"type_k": "q8_0", "type_v": "q8_0"},
    "q4_0": {"type_k": "q4_0", "type_v": "q4_0"},
    "mixed": MIXED,
    "mixed-reserve": MIXED | {"rollback_reserve": 20},
    "mixed-no-window": MIXED | {"hot_window": 0, "sink_tokens": 0},
    "mixed-types": MIXED | {"type_k": "q8_0", "type_v": "f16", "rotate": "on"},
    "mixed-layers": MIXED | {"per_layer": {1: {"type_k": "f16", "rotate": "off"}}},
}


@pytest.mark.parametrize("settings", CACHES)
def test_a_restored_session_continues_bit_for_bit(path: Path, tmp_path: Path, settings: str) -> None:
    """Tokens, their form, rotation and counts: anything lost shows in the last bit of a probability."""
    for n in (1, 15, 16, 63, 64, 200):
        llm = filled(path, n, **CACHES[settings])
        llm.save_session(tmp_path / "s.mixkv")
        other = mixkv.load(path, n_threads=1, dense=True, **CACHES[settings])
        assert other.load_session(tmp_path / "s.mixkv") == n
        assert other.tokens == llm.tokens == IDS[:n]
        a, b = llm.cache.stats(), other.cache.stats()
        assert (a.hot_tokens, a.cold_tokens, a.nbytes) == (b.hot_tokens, b.cold_tokens, b.nbytes)
        assert continuation(other) == continuation(llm)


def test_degraded_tokens_stay_degraded(path: Path, tmp_path: Path) -> None:
    """A file must not make dequantized values look exact again."""
    llm = filled(path, 200, **MIXED)
    llm.truncate(120)
    degraded = llm.cache.stats().degraded_tokens
    llm.save_session(tmp_path / "s")
    other = mixkv.load(path, n_threads=1, dense=True, **MIXED)
    other.load_session(tmp_path / "s")
    assert other.cache.stats().degraded_tokens == degraded > 0
    assert continuation(other) == continuation(llm)


def test_an_empty_session(path: Path, tmp_path: Path) -> None:
    llm = mixkv.load(path, n_threads=1, **MIXED)
    llm.save_session(tmp_path / "s")
    other = filled(path, 90, **MIXED)
    assert other.load_session(tmp_path / "s") == 0
    assert other.tokens == [] and other.cache.nbytes == 0


def test_the_file_is_about_as_large_as_the_cache(path: Path, tmp_path: Path) -> None:
    """Each token once, in the form it is kept in, and its id."""
    llm = filled(path, 400, **MIXED)
    llm.save_session(tmp_path / "s")
    assert llm.cache.nbytes + 4 * 400 < (tmp_path / "s").stat().st_size < llm.cache.nbytes + 4 * 400 + 2000


def test_saving_again_replaces_the_file(path: Path, tmp_path: Path) -> None:
    llm = filled(path, 50, **MIXED)
    llm.save_session(tmp_path / "s")
    continuation(llm)
    llm.save_session(tmp_path / "s")
    assert filled(path, 3, **MIXED).load_session(tmp_path / "s") == 70
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


class TestMismatch:
    """Sessions of something else: an error that names both sides, and a cache that is as it was."""

    def refused(self, llm: mixkv.LLM, session: Path, words: str) -> None:
        before = llm.tokens, llm.cache.stats()
        with pytest.raises(SessionError, match=words) as caught:
            llm.load_session(session)
        assert "\n" not in str(caught.value)
        assert (llm.tokens, llm.cache.stats()) == before

    def test_another_model(self, path: Path, tmp_path: Path) -> None:
        filled(path, 70, **MIXED).save_session(tmp_path / "s")
        llm = filled(random_llama(tmp_path / "other.gguf", seed=1), 70, **MIXED)
        wanted = continuation(filled(tmp_path / "other.gguf", 70, **MIXED))
        self.refused(llm, tmp_path / "s", "another model")
        assert continuation(llm) == wanted

    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            (MIXED | {"hot_window": 64}, "hot_window = 32, and this cache has 64"),
            (MIXED | {"sink_tokens": 4}, "sink_tokens = 16, and this cache has 4"),
            (MIXED | {"type_k": "q8_0"}, "layer 0 = .*q4_0.* and this cache has .*q8_0"),
            (MIXED | {"q4_scale": "plain"}, "layer 0 = .*q4_scale='unbiased'.* and this cache has .*q4_scale='plain'"),
            (MIXED | {"rotate": "off"}, "layer 0 = .*rotate_k=True.* and this cache has .*rotate_k=False"),
            ({}, "hot_window = 32, and this cache has None"),
        ],
    )
    def test_other_settings(self, path: Path, tmp_path: Path, settings: dict[str, Any], words: str) -> None:
        filled(path, 150, **MIXED).save_session(tmp_path / "s")
        llm = filled(path, 70, **settings)
        self.refused(llm, tmp_path / "s", words)
        assert continuation(llm) == continuation(filled(path, 70, **settings))

    def test_a_context_too_small(self, path: Path, tmp_path: Path) -> None:
        filled(path, 150, **MIXED).save_session(tmp_path / "s")
        self.refused(filled(path, 70, n_ctx=100, **MIXED), tmp_path / "s", "150 tokens, but the context holds 100")

    def test_other_reserves_and_chunks_fit(self, path: Path, tmp_path: Path) -> None:
        """They are this program's business, not the session's."""
        llm = filled(path, 150, **MIXED, rollback_reserve=20, n_batch=16)
        llm.save_session(tmp_path / "s")
        other = mixkv.load(path, n_threads=1, dense=True, n_ctx=250, n_batch=100, **MIXED)
        other.load_session(tmp_path / "s")
        assert other.cache.stats().cold_tokens + other.cache.stats().hot_tokens == 150 - 16
        assert continuation(other) == continuation(llm)


class TestConversion:
    """Restoring into other settings, when asked for."""

    def test_into_a_wider_cache_keeps_the_values(self, path: Path, tmp_path: Path) -> None:
        """Cold tokens become FP16 rows of dequantized numbers, and are counted as degraded."""
        llm = filled(path, 200, **MIXED)
        cold = llm.cache.stats().cold_tokens
        llm.save_session(tmp_path / "s")
        wide = mixkv.load(path, n_threads=1, dense=True, mixed_kv_cache=True, hot_window=400)
        assert wide.load_session(tmp_path / "s", convert=True) == 200
        stats = wide.cache.stats()
        assert (stats.cold_tokens, stats.degraded_tokens) == (0, cold)
        a, b = continuation(llm), continuation(wide)
        assert a[0][0] == b[0][0]
        assert a[0][1] == pytest.approx(b[0][1], abs=0.02)  # FP16 rounding of dequantized rows, 2^-11

    def test_of_tokens_that_have_both_forms_takes_the_exact_one(self, path: Path, tmp_path: Path) -> None:
        """With a reserve there are cold tiles of which no row is needed."""
        llm = filled(path, 90, **MIXED, rollback_reserve=60)
        assert llm.cache.stats().cold_tokens == 32 and llm.cache.stats().hot_tokens == 74
        llm.save_session(tmp_path / "s")
        wide = mixkv.load(path, n_threads=1, dense=True, mixed_kv_cache=True, hot_window=100)
        assert wide.load_session(tmp_path / "s", convert=True) == 90
        assert wide.cache.stats().degraded_tokens == 0

    @pytest.mark.parametrize("settings", CACHES)
    def test_into_every_kind_of_cache(self, path: Path, tmp_path: Path, settings: str) -> None:
        """The converted cache continues nearly as one that was filled in those settings."""
        filled(path, 200).save_session(tmp_path / "s")
        llm = mixkv.load(path, n_threads=1, dense=True, **CACHES[settings])
        assert llm.load_session(tmp_path / "s", convert=True) == 200
        native = filled(path, 200, **CACHES[settings])
        a, b = llm.cache.stats(), native.cache.stats()
        assert (a.cold_tokens, a.hot_tokens, a.nbytes) == (b.cold_tokens, b.hot_tokens, b.nbytes)
        exact = next_logits(filled(path, 200, type_k="f32", type_v="f32"))
        wanted = next_logits(native)
        # both are off the exact logits by what their types cost, each in its own way; FP16 in the file costs 1e-5
        assert nmse(next_logits(llm), wanted) <= 4 * nmse(wanted, exact) + 1e-4

    def test_of_a_damaged_file_is_refused_as_well(self, path: Path, tmp_path: Path) -> None:
        filled(path, 50).save_session(tmp_path / "s")
        data = bytearray((tmp_path / "s").read_bytes())
        data[-100] ^= 1
        (tmp_path / "s").write_bytes(data)
        with pytest.raises(SessionError, match="checksum"):
            filled(path, 3, **MIXED).load_session(tmp_path / "s", convert=True)
