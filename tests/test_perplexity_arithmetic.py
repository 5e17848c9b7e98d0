"""The arithmetic of `mixkv perplexity` against hand-computed cases and the definitions written out."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mixkv.engine.evaluate import divergence
from mixkv.engine.evaluate.divergence import Scores, score_rows, summarize


def logits_of(*rows: list[float]) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(np.array(rows, np.float64)).astype(np.float32)


def test_two_coins_by_hand() -> None:
    base, other = logits_of([0.5, 0.5]), logits_of([0.25, 0.75]) + np.float32(3)  # a constant changes nothing
    scores = score_rows(base, other, np.array([0]))
    assert scores.kld[0] == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3), abs=1e-6)
    assert scores.nll[0] == pytest.approx(math.log(4), abs=1e-6)
    assert not scores.same_top[0]  # equal probabilities: the first token counts as the top one


def test_equal_rows_are_exactly_zero_apart() -> None:
    base = np.random.default_rng(1).standard_normal((50, 333)).astype(np.float32) * 20
    scores = score_rows(base, base.copy(), np.zeros(50, int))
    assert (scores.kld == 0).all() and scores.same_top.all()


def test_impossible_tokens() -> None:
    base, other = logits_of([0.5, 0.5, 0.0], [0.5, 0.5, 0.0]), logits_of([0.5, 0.25, 0.25], [1.0, 0.0, 0.0])
    kld = score_rows(base, other, np.array([0, 0])).kld
    assert kld[0] == pytest.approx(0.5 * math.log(2), abs=1e-6)  # what base rules out adds nothing
    assert kld[1] == math.inf  # what only the other rules out cannot be made up for


def test_blocks_of_rows_against_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(divergence, "WORK_BYTES", 8 * 97 * 5)  # five rows at a time
    rng = np.random.default_rng(2)
    base = (rng.standard_normal((33, 97)) * 4).astype(np.float32)
    other = base + (rng.standard_normal((33, 97)) * 0.05).astype(np.float32)
    targets = rng.integers(0, 97, 33)
    p, q = (np.exp(x.astype(np.longdouble)) for x in (base, other))
    p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
    scores = score_rows(base, other, targets)
    np.testing.assert_allclose(scores.kld, (p * np.log(p / q)).sum(1).astype(float), rtol=1e-6)
    np.testing.assert_allclose(scores.nll, -np.log(q[np.arange(33), targets]).astype(float), rtol=1e-6)
    assert (scores.same_top == (p.argmax(1) == q.argmax(1))).all()


def test_summary() -> None:
    nll = np.array([[1.0, 2.0], [3.0, 6.0]], np.float32)
    kld = np.array([[0.0, 0.1], [0.2, 0.9]], np.float32)
    base = Scores(nll - np.float32(0.5), np.zeros_like(kld), np.ones_like(kld, bool))
    q = summarize(Scores(nll, kld, np.array([[True, True], [False, True]])), base)
    assert q.n_tokens == 4
    assert q.ppl == pytest.approx(math.exp(3))
    assert q.ppl_stderr == pytest.approx(math.exp(3) * np.std([1, 2, 3, 6], ddof=1) / 2)
    assert q.ppl_ratio == pytest.approx(math.exp(0.5)) and q.ppl_ratio_stderr == pytest.approx(0, abs=1e-9)
    assert q.kld_mean == pytest.approx(0.3) and q.kld_median == pytest.approx(0.15)
    assert q.kld_max == pytest.approx(0.9) and 0.8 < q.kld_p99 < 0.9
    assert q.same_top == 0.75


def test_uniform_guessing_has_the_vocabulary_as_perplexity() -> None:
    base = np.zeros((10, 123), np.float32)
    scores = score_rows(base, base, np.arange(10))
    q = summarize(scores, scores)
    assert q.ppl == pytest.approx(123, rel=1e-6) and q.ppl_stderr == pytest.approx(0, abs=1e-4)
