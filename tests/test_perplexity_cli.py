"""`mixkv perplexity` and `mixkv evaluate` run as processes: tables, JSON, resuming, errors of one line."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from cli_process import run
from prose import PROSE

FIELDS = {
    "kv", "ppl", "ppl_stderr", "kld_mean", "kld_median", "kld_p99", "kld_max", "same_top", "kv_bytes",
    "tokens_per_second", "n_tokens",
}  # fmt: skip


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("text") / "prose.txt"
    path.write_text(PROSE)
    return str(path)


def test_json_is_one_list(text: str, tmp_path: Path) -> None:
    words = [
        "perplexity",
        "-f",
        text,
        "--ctx",
        "128",
        "--chunks",
        "1",
        "-o",
        "json",
        "--resume",
        str(tmp_path / "state"),
    ]
    result = run(*words, "--kv", "f16,mixed:hot=16,sink=4,k=q8_0")
    assert (result.status, result.err) == (0, b"")
    base, mixed = json.loads(result.out)
    assert set(base) >= FIELDS and set(mixed) == set(base)
    assert (base["kv"], mixed["kv"]) == ("f16", "mixed:hot=16,sink=4,k=q8_0")
    assert (
        base["kld_mean"] == 0 < mixed["kld_mean"] < 1 and mixed["kv_bytes"] < base["kv_bytes"] == 128 * 8 * 2 * 64 * 4
    )
    assert base["n_tokens"] == mixed["n_tokens"] == 63 and 1 < base["ppl"] < 1000
    assert run(*words, "--kv", "f16,mixed:hot=16,sink=4,k=q8_0").out == result.out  # nothing is measured again
    other = run(*words, "--kv", "q8_0")
    assert other.status == 1 and "another run" in other.complaint and other.out == b""


def test_table(text: str) -> None:
    result = run("perplexity", "-f", text, "-c", "64", "--chunks", "1", "--kv", "f16,q4_0:rotate=off")
    assert (result.status, result.err) == (0, b"")
    lines = result.out.decode().splitlines()
    assert "31 tokens scored in 1 windows" in lines[0]
    assert any("q4_0:rotate=off" in line and line.count("│") > 8 for line in lines)
    assert all(len(line.rstrip()) <= 160 for line in lines)


def test_evaluate(text: str) -> None:
    words = [
        "evaluate",
        "-f",
        text,
        "-c",
        "200",
        "--prompts",
        "1",
        "-n",
        "4",
        "--depths",
        "0,100",
        "--kv",
        "f16,mixed:hot=16",
    ]
    result = run(*words, "-o", "json")
    assert (result.status, result.err) == (0, b"")
    data = json.loads(result.out)
    assert data["divergence"][0]["same_tokens"] == [4]
    assert [(row["kv"], row["depth"]) for row in data["recall"]] == [
        ("f16", None), ("f16", 0), ("f16", 1), ("mixed:hot=16", 0), ("mixed:hot=16", 1)
    ]  # fmt: skip
    assert all(row["logprob"] < 0 and math.isfinite(row["logprob"]) for row in data["recall"])
    tables = run(*words).out.decode()
    assert "greedy text against f16's" in tables and "not there" in tables


@pytest.mark.parametrize(
    ("words", "status", "complaint"),
    [
        (["perplexity"], 2, "-f FILE"),
        (["perplexity", "-f", "TEXT", "--ctx", "1024"], 1, "fewer than one window of 1024"),
        (["perplexity", "-f", "/nowhere/text"], 1, "/nowhere/text"),
        (["perplexity", "-f", "TEXT", "--kv", "f17"], 2, "'f17'"),
        (["perplexity", "-f", "TEXT", "-o", "yaml"], 2, "'yaml'"),
        (["perplexity", "-f", "TEXT", "--chunks", "0"], 2, "--chunks 0"),
        (["perplexity", "-f", "TEXT", "--plot", "picture.doc"], 2, "picture.doc"),
        (["perplexity", "-f", "TEXT", "-m", "/nowhere/model.gguf"], 1, "/nowhere/model.gguf"),
        (["evaluate", "-f", "TEXT", "--depths", "0,120"], 2, "'120'"),
        (["evaluate", "-f", "TEXT", "-c", "64", "-n", "64"], 2, "no room for a prompt"),
    ],
)
def test_errors_are_one_line(words: list[str], status: int, complaint: str, text: str) -> None:
    result = run(*(text if word == "TEXT" else word for word in words))
    assert result.status == status and complaint in result.complaint and result.out == b""
