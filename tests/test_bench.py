"""`mixkv bench`: its rows count what they say, on the real engine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_process import run
from model_tools import random_llama

import mixkv
from mixkv.engine.bench import BenchTest, bench_tests, run_bench


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_llama(tmp_path_factory.mktemp("model") / "llama.gguf", n_ctx=512)


def test_every_combination_is_a_test() -> None:
    tests = bench_tests([8, 0], [4], [0, 16], [1, 2])
    assert [t.name for t in tests] == [
        "pp8", "pp8 x2", "pp8@d16", "pp8@d16 x2", "tg4", "tg4 x2", "tg4@d16", "tg4@d16 x2",
    ]  # fmt: skip
    for lists in (([-1], [1], [0], [1]), ([1], [1], [-1], [1]), ([0], [0], [0], [1]), ([1], [1], [0], [0])):
        with pytest.raises(mixkv.ConfigError):
            bench_tests(*lists)


def test_sequences_at_once_are_computed_together(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other would show the speed of one: each forward pass has a token of every sequence."""
    llm = mixkv.load(path, n_threads=1, n_ctx=64, n_parallel=3)
    sizes: list[int] = []
    forward = type(llm.sequence.model).forward
    monkeypatch.setattr(
        type(llm.sequence.model), "forward", lambda self, batch, s: sizes.append(len(batch)) or forward(self, batch, s)
    )
    (row,) = run_bench(llm, [BenchTest(n_gen=4, depth=8, n_parallel=3)], ["f16"], repetitions=2)
    assert sizes == [8] + [3] * (3 * 4)
    assert row.tokens_per_second == pytest.approx(3 * row.tokens_per_second_each) and row.n_parallel == 3
    assert row.kv_bytes == 3 * 12 * 2 * 2 * 2 * 64 * 2  # sequences, tokens, layers, K and V, heads, head_dim, bytes


def test_the_command_line(path: Path) -> None:
    done = run("bench", "-m", str(path), "-p", "8", "-n", "4", "-np", "1,2", "-r", "1", "--kv", "mixed", "-o", "json")
    rows = json.loads(done.out)
    assert [(r["test"], r["n_parallel"]) for r in rows] == [("pp8", 1), ("pp8 x2", 2), ("tg4", 1), ("tg4 x2", 2)]
    assert all(r["tokens_per_second_each"] * r["n_parallel"] == pytest.approx(r["tokens_per_second"]) for r in rows)
    bad = run("bench", "-m", str(path), "-np", "0")
    assert bad.status == 2 and "sequences at once" in bad.complaint
