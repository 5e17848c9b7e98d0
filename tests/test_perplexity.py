"""`mixkv perplexity` measured on the demo model: against direct computation, against itself, across a kill."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from gguf_tools import refusal, tiny_llama, write_gguf
from prose import PROSE

import mixkv
from mixkv.engine.evaluate import PerplexityRow, PerplexityRun, TextWindows, load_subject, parse_variants, windows
from mixkv.engine.llm import LLM
from mixkv.kernels.errors import ConfigError, SessionError

N_CTX = 256


@pytest.fixture(scope="module")
def llm() -> LLM:
    return load_subject(None, n_ctx=N_CTX, n_batch=96, n_threads=2, exact=False)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "prose.txt"
    path.write_text(PROSE)
    return path


def measure(llm: LLM, text: Path, kv: str, n_ctx: int = N_CTX, most: int | None = 1) -> dict[str, PerplexityRow]:
    run = PerplexityRun(llm, TextWindows.of(text, llm.tokenizer, n_ctx, most), parse_variants(kv))
    return {row.kv: row for row in run.run()}


def test_perplexity_is_that_of_the_logits(llm: LLM, text: Path) -> None:
    found = TextWindows.of(text, llm.tokenizer, N_CTX)
    nll: list[float] = []
    for ids in found:
        x = llm.logits(ids)[N_CTX // 2 : -1].astype(np.float64)  # row i is what follows ids[: i + 1]
        log_p = x - np.log(np.exp(x - x.max(1, keepdims=True)).sum(1, keepdims=True)) - x.max(1, keepdims=True)
        nll += (-log_p[np.arange(len(x)), ids[N_CTX // 2 + 1 :]]).tolist()
    assert len(found) >= 2
    row = measure(llm, text, "f16", most=None)["f16"]
    assert row.quality.n_tokens == len(nll) == len(found) * 127
    assert row.quality.ppl == pytest.approx(np.exp(np.mean(nll)), rel=1e-5)
    assert row.quality.ppl_stderr == pytest.approx(row.quality.ppl * np.std(nll, ddof=1) / len(nll) ** 0.5, rel=1e-4)
    assert 5 < row.quality.ppl < 200  # a trained model on plain English


def test_a_cache_without_loss_is_not_apart_at_all(llm: LLM, text: Path) -> None:
    rows = measure(llm, text, "f16,mixed:k=f16,v=f16,hot=32,f16:rotate=off")
    for row in rows.values():
        q = row.quality
        assert (q.kld_mean, q.kld_max, q.same_top, q.ppl_ratio) == (0, 0, 1, 1), row.kv
        assert q.ppl == rows["f16"].quality.ppl


def test_a_window_over_the_whole_context_loses_nothing(llm: LLM, text: Path) -> None:
    """Whatever the cold types and the rotation are: nothing turns cold, so the cache is a plain FP16 one."""
    rows = measure(llm, text, f"f16,mixed:hot={N_CTX},mixed:hot={N_CTX},rotate=off,mixed:hot={N_CTX},k=q8_0,sink=0")
    for row in rows.values():
        q = row.quality
        assert (q.kld_mean, q.kld_max, q.same_top, q.ppl_ratio) == (0, 0, 1, 1), row.kv
        assert q.ppl == rows["f16"].quality.ppl and row.kv_bytes == rows["f16"].kv_bytes


def test_kl_divergence_falls_with_the_window(llm: LLM, text: Path) -> None:
    rows = list(measure(llm, text, ",".join(f"mixed:hot={n},sink=4" for n in (0, 32, 96, 160)), most=2).values())
    klds = [row.quality.kld_mean for row in rows]
    assert all(a > b > 0 for a, b in pairwise(klds)), klds
    assert klds[-1] < klds[0] / 5
    assert all(0 < row.quality.kld_median < row.quality.kld_p99 <= row.quality.kld_max for row in rows)
    assert [row.kv_bytes for row in rows] == sorted(row.kv_bytes for row in rows)


def test_more_bits_are_nearer(llm: LLM, text: Path) -> None:
    rows = measure(llm, text, "q8_0,q4_0,mixed:hot=0,k=q8_0,v=q4_0")
    q8, q4, mixed = (row.quality.kld_mean for row in rows.values())
    assert 0 < q8 < mixed < q4
    assert [round(row.bits_per_element, 1) for row in rows.values()][:2] == [8.5, 4.5]
    assert all(row.tokens_per_second > 0 and row.kv_peak_bytes >= row.kv_bytes for row in rows.values())


def test_batch_sizes_change_nothing(llm: LLM, text: Path) -> None:
    other = load_subject(None, n_ctx=N_CTX, n_batch=37, n_threads=2, exact=False)
    a, b = (measure(x, text, "mixed:hot=32,sink=4")["mixed:hot=32,sink=4"].quality for x in (llm, other))
    assert a.ppl == pytest.approx(b.ppl, rel=1e-4) and a.kld_mean == pytest.approx(b.kld_mean, rel=0.05)


def test_depth_curve_holds_the_mean(llm: LLM, text: Path) -> None:
    row = measure(llm, text, "q4_0")["q4_0"]
    assert len(row.by_depth) == 16 and N_CTX // 2 <= row.by_depth[0][0] < row.by_depth[-1][0] < N_CTX
    assert np.mean([kld for _, kld in row.by_depth]) == pytest.approx(row.quality.kld_mean, rel=0.02)


class Killed(Exception):
    pass


def test_resuming_gives_the_same_numbers(llm: LLM, text: Path, tmp_path: Path) -> None:
    found, variants = TextWindows.of(text, llm.tokenizer, 128, most=4), parse_variants("f16,mixed:hot=16,sink=0")
    state = tmp_path / "state.npz"

    def kill(done: int, total: int) -> None:
        if done == 2:
            raise Killed

    with pytest.raises(Killed):
        PerplexityRun(llm, found, variants, resume=state).run(kill)
    fed: list[int] = []
    rows = PerplexityRun(llm, found, variants, resume=state).run(lambda done, _: fed.append(done))
    assert fed == [2, 3, 4]  # two windows were left
    whole = PerplexityRun(llm, found, variants).run()
    for a, b in zip(rows, whole, strict=True):
        assert replace(a, tokens_per_second=0) == replace(b, tokens_per_second=0)
    assert [path.name for path in tmp_path.iterdir()] == ["state.npz"]
    finished = PerplexityRun(llm, found, variants, resume=state).run(lambda done, _: fed.append(done))
    assert fed[3:] == [4] and finished == rows


def test_resume_files_of_others_are_refused(llm: LLM, text: Path, tmp_path: Path) -> None:
    found, variants = TextWindows.of(text, llm.tokenizer, 64, most=1), parse_variants("q8_0")
    state = tmp_path / "state.npz"
    PerplexityRun(llm, found, variants, resume=state).run()
    good = state.read_bytes()

    def again(found: TextWindows, kv: str, path: Path = state) -> str:
        return refusal(SessionError, lambda: PerplexityRun(llm, found, parse_variants(kv), resume=path))

    assert "caches" in again(found, "q4_0")
    assert "n_ctx" in again(TextWindows.of(text, llm.tokenizer, 32, most=1), "q8_0")
    assert "text" in again(TextWindows.of(text, llm.tokenizer, 64, most=2), "q8_0")
    assert state.read_bytes() == good
    for damaged in (b"", b"PK\x03\x04 nonsense", good[: len(good) // 2], np.lib.format.MAGIC_PREFIX + b"\1\0"):
        state.write_bytes(damaged)
        assert "state.npz" in again(found, "q8_0")
        assert state.read_bytes() == damaged
    np.savez(state.open("wb"), key=np.array("[]"))
    assert "state.npz" in again(found, "q8_0")
    assert "cannot" in again(found, "q8_0", tmp_path)
    run = PerplexityRun(llm, found, variants, resume=tmp_path / "nowhere" / "state.npz")
    with pytest.raises(SessionError, match="nowhere"):
        run.run()


def test_memory_does_not_grow_with_the_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "PIECE_CHARS", 500)  # far less than the text, as for a long one
    llm = load_subject(
        write_gguf(tmp_path / "tiny.gguf", *tiny_llama()), n_ctx=64, n_batch=64, n_threads=1, exact=False
    )

    def peak(copies: int) -> tuple[int, int]:
        path = tmp_path / "text"
        path.write_text(PROSE[:900] * copies)
        tracemalloc.start()
        rows = PerplexityRun(
            llm, TextWindows.of(path, llm.tokenizer, 64), parse_variants("f16,mixed:hot=16,sink=0")
        ).run()
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return rows[0].quality.n_tokens, peak_bytes

    (few, small), (many, large) = peak(1), peak(3)
    assert many > 2.9 * few > 900
    assert large - small < 50 * (many - few)  # a few numbers for each position, not its 276 logits of 4 bytes


@pytest.mark.parametrize(
    ("kv", "word"),
    [
        ("", "empty item"),
        ("f16,,q4_0", "empty item"),
        ("hot=4,mixed", "name a cache first"),
        ("f17", "'f17'"),
        ("mixed:warm=3", "'warm=3'"),
        ("mixed:hot", "'hot'"),
        ("mixed:hot=-3", "'-3'"),
        ("mixed:hot=many", "'many'"),
        ("mixed:k=q5_0", "'q5_0'"),
        ("mixed:rotate=maybe", "'maybe'"),
        ("mixed:scale=best", "'best'"),
        ("mixed:plan=on", "'on'"),
        ("q4_0:hot=64", "mixed:hot=64"),
    ],
)
def test_bad_lists_of_caches(kv: str, word: str) -> None:
    assert word in refusal(ConfigError, lambda: parse_variants(kv))


def test_lists_of_caches() -> None:
    found = parse_variants(
        "f16, q4_0:rotate=off,mixed:hot=64,sink=4,k=q8_0,v=q4_0,rotate=on,mixed,mixed,q8_0:scale=plain"
    )
    names = ["f16", "q4_0:rotate=off", "mixed:hot=64,sink=4,k=q8_0,v=q4_0,rotate=on", "mixed", "q8_0:scale=plain"]
    assert [v.name for v in found] == names
    assert found[0].is_base and not any(v.is_base for v in found[1:])
    assert found[1].config == mixkv.KVCacheConfig(type_k="q4_0", type_v="q4_0", rotate="off")
    assert found[2].config == mixkv.KVCacheConfig(
        mixed_kv_cache=True, hot_window=64, sink_tokens=4, type_k="q8_0", type_v="q4_0", rotate="on"
    )
    assert found[3].config == mixkv.KVCacheConfig(mixed_kv_cache=True)
    assert (found[4].config.type_k, found[4].config.q4_scale) == ("q8_0", "plain")


def test_a_window_too_short_to_score(llm: LLM, text: Path) -> None:
    with pytest.raises(ConfigError, match="too short"):
        PerplexityRun(llm, TextWindows.of(text, llm.tokenizer, 3, most=1), parse_variants("f16"))
