"""Mirostat 1 and 2: the cuts equal their formulas, the loop reaches its target, degenerate rows do no harm."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_sampling import row, sampler
from test_sampling_filters import softmax_plain

from mixkv.engine.sampling.filters import Candidates
from mixkv.engine.sampling.mirostat import surprise_cut, zipf_cut


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("target", [2.0, 4.0])
def test_mirostat_converges_to_the_target_surprise(version: int, target: float) -> None:
    """On a Zipf distribution of 3,000 words the mean surprise, among the tokens left, settles at the target."""
    logits = -1.1 * np.log(np.arange(1, 3001))
    chain = sampler(3000, mirostat=version, mirostat_ent=target, mirostat_lr=0.1, temperature=1.0)
    surprises = []
    for _ in range(2500):
        left = chain.candidates(logits)
        token = chain.sample(logits)
        surprises.append(-math.log2(left.probs[np.searchsorted(left.ids, token)]))
    assert np.mean(surprises[500:]) == pytest.approx(target, abs=0.1)


@given(st.integers(0, 1000), st.floats(0, 20))
def test_mirostat_1_cut_equals_the_papers_formula(seed: int, mu: float) -> None:
    logits = row(seed, n=300)
    candidates = Candidates.of(logits)
    probs = sorted(softmax_plain(dict(enumerate(logits.tolist()))).values(), reverse=True)[:100]
    ratios = [(math.log((i + 2) / (i + 1)), math.log(probs[i] / probs[i + 1])) for i in range(99)]
    s = sum(t * b for t, b in ratios) / sum(t * t for t, _ in ratios)
    k = ((s - 1) * 2**mu / (1 - 300.0 ** -(s - 1))) ** (1 / s)
    assert abs(len(zipf_cut(candidates, mu, 300).ids) - min(max(int(k), 1), 300)) <= 1e-9 * k


@given(st.integers(0, 1000), st.floats(-5, 20))
def test_mirostat_2_cut_keeps_what_is_less_surprising_than_mu(seed: int, mu: float) -> None:
    candidates = Candidates.of(row(seed, n=300))
    want = {i for i, q in softmax_plain(dict(enumerate(row(seed, n=300).tolist()))).items() if -math.log2(q) <= mu}
    assert set(surprise_cut(candidates, mu).ids) == (want or {int(np.argmax(candidates.logits))})


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("logits", [[0.0], [1.0, 1.0, 1.0], [5.0, -np.inf, -np.inf], [1e38, -1e38, 0.0]])
def test_mirostat_survives_degenerate_distributions(version: int, logits: list[float]) -> None:
    chain = sampler(len(logits), mirostat=version, mirostat_lr=1000.0)
    for _ in range(50):
        assert np.isfinite(logits[chain.sample(logits)])


def test_mirostat_leaves_penalties_and_filters_out_but_not_the_bias() -> None:
    chain = sampler(3, mirostat=2, mirostat_ent=100.0, presence_penalty=1e6, top_k=1, logit_bias={0: -np.inf})
    chain.accept(1)
    assert {chain.sample([1.0, 1.0, 1.0]) for _ in range(100)} == {1, 2}


def test_mirostat_2_keeps_the_most_probable_token_however_low_mu_has_fallen() -> None:
    assert surprise_cut(Candidates.of(np.array([0.0, 1.0], np.float32)), -1e6).ids.tolist() == [1]
