"""Greedy divergence and needle recall, against what plain generation and plain logits say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf_tools import refusal
from model_tools import random_llama
from prose import PROSE

from mixkv.engine.evaluate import (
    TextWindows,
    greedy_divergence,
    load_subject,
    needle_recall,
    parse_variants,
)
from mixkv.engine.evaluate.recall import QUESTION, STATEMENT, draw_passwords
from mixkv.engine.llm import LLM
from mixkv.engine.load import load
from mixkv.kernels.errors import ConfigError, InputError

ROUGH = "mixed:hot=0,sink=0,rotate=off"
N_PREDICT = 40


@pytest.fixture(scope="module")
def llm() -> LLM:
    return load_subject(None, n_ctx=256, n_batch=256, n_threads=1, exact=False)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "prose.txt"
    path.write_text(PROSE)
    return path


def test_divergence_is_where_greedy_texts_part(text: Path, tmp_path: Path) -> None:
    model = random_llama(tmp_path / "random.gguf")  # where many tokens are nearly equal, texts part soon
    llm = load_subject(model, n_ctx=256, n_batch=256, n_threads=1, exact=False)
    prompts = list(TextWindows.of(text, llm.tokenizer, 160, most=4))
    base, rough = greedy_divergence(llm, prompts, N_PREDICT, parse_variants(f"f16,{ROUGH}"))
    assert base.same_tokens == base.lengths == (N_PREDICT,) * 4 and base.gaps == () and base.identical == 1
    texts = []
    for settings in ({}, {"mixed_kv_cache": True, "hot_window": 0, "sink_tokens": 0, "rotate": "off"}):
        other = load(model, n_ctx=256, n_batch=256, n_threads=1, dense=True, prefix_reuse="off", **settings)
        texts.append([
            other.generate(p.tolist(), max_tokens=N_PREDICT, temperature=0, ignore_eos=True).tokens for p in prompts
        ])  # fmt: skip
    expected = []
    for ours, theirs in zip(*texts, strict=True):
        differs = np.flatnonzero(np.array(ours) != np.array(theirs))
        expected.append(int(differs[0]) if differs.size else N_PREDICT)
    assert rough.same_tokens == tuple(expected)
    assert min(expected) < N_PREDICT  # some text did part, or this test shows nothing
    assert len(rough.gaps) == sum(n < N_PREDICT for n in expected) and all(gap > 0 for gap in rough.gaps)
    assert rough.mean_same == pytest.approx(np.mean(expected)) and rough.identical < 1


def test_recall_is_the_probability_of_the_answer(llm: LLM, text: Path) -> None:
    windows = list(TextWindows.of(text, llm.tokenizer, 200, most=2))
    rows = needle_recall(llm, windows, text, [0.0, 1.0], parse_variants("f16,mixed:hot=256,mixed:hot=16"), seed=3)
    assert [(row.kv, row.depth) for row in rows[:3]] == [("f16", None), ("f16", 0), ("f16", 1)]
    assert len(rows) == 7
    by_cache = {row.kv: row for row in rows if row.depth == 0}
    assert by_cache["mixed:hot=256"].logprob == pytest.approx(by_cache["f16"].logprob, abs=1e-3)
    assert by_cache["mixed:hot=16"].logprob != by_cache["f16"].logprob
    assert all(0 <= row.recall <= 1 and row.logprob < 0 and row.n_tokens == rows[0].n_tokens > 2 for row in rows)
    logprobs = []  # the same, written out
    for window, password in zip(windows, draw_passwords(text, 2, seed=3), strict=True):
        whole = llm.tokenizer.decode(_prompt(llm, window.tolist(), password))
        assert whole.count(password) == 2 and whole.endswith("is" + password)
        logprobs += _answer_logprobs(llm, _prompt(llm, window.tolist(), password), password)
    last = next(row for row in rows if row.kv == "f16" and row.depth == 1)
    assert last.logprob == pytest.approx(np.mean(logprobs), abs=1e-4) and last.n_tokens == len(logprobs)


def _ids(llm: LLM, text: str) -> list[int]:
    return llm.tokenizer.encode("\n" + text, add_special=False)[len(llm.tokenizer.encode("\n", add_special=False)) :]


def _prompt(llm: LLM, window: list[int], password: str) -> list[int]:
    """Text, needle, question and answer, the needle at depth 1; as long as the window."""
    needle, question = _ids(llm, STATEMENT.format(password)), _ids(llm, QUESTION + password)
    return window[: len(window) - len(needle) - len(question)] + needle + question


def _answer_logprobs(llm: LLM, ids: list[int], password: str) -> list[float]:
    n = len(_ids(llm, QUESTION + password)) - len(_ids(llm, QUESTION))
    x = llm.logits(ids)[-n - 1 : -1].astype(np.float64)
    log_p = x - np.log(np.exp(x).sum(1, keepdims=True))
    return log_p[np.arange(n), ids[-n:]].tolist()


def test_what_cannot_be_measured(llm: LLM, text: Path, tmp_path: Path) -> None:
    windows = list(TextWindows.of(text, llm.tokenizer, 40, most=1))
    variants = parse_variants("f16")
    assert "larger n_ctx" in refusal(InputError, lambda: needle_recall(llm, windows, text, [0.5], variants))
    (tmp_path / "digits").write_text("1 2 3 4 5 6 7 8 9 " * 20)
    few = refusal(InputError, lambda: needle_recall(llm, windows, tmp_path / "digits", [0.5], variants))
    assert "digits" in few and "words" in few
    refusal(ConfigError, lambda: greedy_divergence(llm, [], 4, variants))
    refusal(ConfigError, lambda: greedy_divergence(llm, windows, 0, variants))
