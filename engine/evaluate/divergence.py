"""How far one next-token distribution is from another: the arithmetic of `mixkv perplexity`.

Logits arrive as float32 and everything after them is float64: a KL divergence of 1e-5 is a difference of numbers of
about 10. Distributions are worked on a few rows at a time, so that a vocabulary of 200,000 costs no more memory than
one of 4,000. What is kept is three numbers a position (`Scores`); every figure of a result is made from those.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mixkv.models.batch import F32

F64 = NDArray[np.float64]
WORK_BYTES = 8 << 20
"""Bytes of one float64 block of logits."""


@dataclass(frozen=True)
class Scores:
    """One cache at some positions, arrays of equal shape.

    nll: -log p(the token that follows), nats, float32. kld: sum p log(p / q) of the whole distribution against the
    FP16 cache's p, nats, float32. same_top: whether both find the same token most probable.
    """

    nll: NDArray[np.float32]
    kld: NDArray[np.float32]
    same_top: NDArray[np.bool_]


def score_rows(base: F32, logits: F32, targets: NDArray[np.integer]) -> Scores:
    """Scores of `logits` (n, n_vocab) against `base` (n, n_vocab); targets (n,): the tokens that follow.

    KL divergence in terms of logits x, y and their log-sums X, Y: sum p (x - y) - X + Y, which is exactly 0 for
    equal rows. A token that `base` rules out (-inf) adds nothing; one that only `logits` rules out makes it inf.
    """
    n, n_vocab = base.shape
    nll, kld = np.empty(n, np.float32), np.empty(n, np.float32)
    step = max(1, WORK_BYTES // (8 * n_vocab))
    for start in range(0, n, step):
        rows = slice(start, min(n, start + step))
        x, y = base[rows].astype(np.float64), logits[rows].astype(np.float64)
        x_sum, y_sum = _log_sum_exp(x), _log_sum_exp(y)
        nll[rows] = (y_sum - np.take_along_axis(y, targets[rows, None], axis=1))[:, 0]
        p = np.exp(x - x_sum)
        with np.errstate(invalid="ignore"):
            terms = np.where(p > 0, p * (x - y), 0.0)
        kld[rows] = np.maximum(terms.sum(axis=1) - (x_sum - y_sum)[:, 0], 0.0)  # rounding can leave -1e-16
    return Scores(nll, kld, base.argmax(axis=1) == logits.argmax(axis=1))


def _log_sum_exp(x: F64) -> F64:
    """log(sum(exp(x))) of each row, (n, 1)."""
    top = x.max(axis=1, keepdims=True)
    total: F64 = top + np.log(np.exp(x - top).sum(axis=1, keepdims=True))
    return total


@dataclass(frozen=True)
class Quality:
    """Figures of one cache over n_tokens scored positions; KL divergences in nats, shares from 0 to 1.

    Standard errors are those of the mean over positions taken as independent, as llama.cpp's tool gives them.
    ppl_ratio compares token by token with FP16 (exp of the mean difference), which is far sharper than two
    perplexities side by side.
    """

    n_tokens: int
    ppl: float
    ppl_stderr: float
    ppl_ratio: float
    ppl_ratio_stderr: float
    kld_mean: float
    kld_stderr: float
    kld_median: float
    kld_p99: float
    kld_max: float
    same_top: float


def summarize(scores: Scores, base: Scores) -> Quality:
    """The figures of a result. `scores`, `base` (FP16's own): the same positions, any shape."""
    nll, kld = scores.nll.ravel().astype(np.float64), scores.kld.ravel().astype(np.float64)
    difference = nll - base.nll.ravel()
    ppl, ratio = _exp(nll.mean()), _exp(difference.mean())
    return Quality(
        n_tokens=nll.size,
        ppl=ppl,
        ppl_stderr=ppl * _stderr(nll),
        ppl_ratio=ratio,
        ppl_ratio_stderr=ratio * _stderr(difference),
        kld_mean=float(kld.mean()),
        kld_stderr=_stderr(kld),
        kld_median=float(np.median(kld)),
        kld_p99=float(np.quantile(kld, 0.99)),
        kld_max=float(kld.max()),
        same_top=float(scores.same_top.mean()),
    )


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf


def _stderr(x: F64) -> float:
    """Standard error of the mean of x (n,)."""
    return float(x.std() / math.sqrt(x.size - 1)) if x.size > 1 else math.nan
