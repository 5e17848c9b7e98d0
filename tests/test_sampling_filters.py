"""Each filter against a slow float64 twin written from its published definition, and the rules all of them keep."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixkv.engine.sampling import filters
from mixkv.engine.sampling.filters import Candidates

# --- twins: dicts of id -> logit, most probable first, plain Python floats ---


def softmax_plain(logits: dict[int, float]) -> dict[int, float]:
    peak = max(logits.values())
    weights = {i: math.exp(x - peak) for i, x in logits.items()}
    total = math.fsum(weights.values())
    return {i: w / total for i, w in weights.items()}


def ranked_plain(score: dict[int, float]) -> list[int]:
    """Ids by falling score, the lower id first among equals."""
    return sorted(score, key=lambda i: (-score[i], i))


def mass_plain(order: list[int], probs: dict[int, float], mass: float, min_keep: int) -> set[int]:
    kept: list[int] = []
    for token in order:
        if math.fsum(probs[i] for i in kept) >= mass and len(kept) >= max(min_keep, 1):
            break
        kept.append(token)
    return set(kept)


def top_k_plain(logits: dict[int, float], k: int) -> set[int]:
    return set(ranked_plain(logits)[: k if k > 0 else None])


def top_p_plain(logits: dict[int, float], p: float, min_keep: int = 0) -> set[int]:
    return set(logits) if p >= 1 else mass_plain(ranked_plain(logits), softmax_plain(logits), p, min_keep)


def typical_plain(logits: dict[int, float], p: float, min_keep: int = 0) -> set[int]:
    if p >= 1:
        return set(logits)
    probs = softmax_plain(logits)
    entropy = math.fsum(-q * math.log(q) for q in probs.values() if q > 0)
    nearness = {i: -abs(-math.log(q) - entropy) for i, q in probs.items()}
    return mass_plain(ranked_plain(nearness), probs, p, min_keep)


def min_p_plain(logits: dict[int, float], p: float, min_keep: int = 0) -> set[int]:
    probs = softmax_plain(logits)
    kept = {i for i, q in probs.items() if q >= p * max(probs.values())}
    return kept | set(ranked_plain(logits)[:min_keep])


def top_n_sigma_plain(logits: dict[int, float], n: float) -> set[int]:
    values = list(logits.values())
    mean = math.fsum(values) / len(values)
    sigma = math.sqrt(math.fsum((x - mean) ** 2 for x in values) / len(values))
    return {i for i, x in logits.items() if n <= 0 or x >= max(values) - n * sigma}


def xtc_plain(logits: dict[int, float], threshold: float) -> set[int]:
    probs = softmax_plain(logits)
    above = [i for i in ranked_plain(logits) if probs[i] >= threshold]
    return set(logits) - set(above[:-1])


# --- inputs ---


def make(logits: list[float] | np.ndarray) -> Candidates:
    return Candidates.of(np.asarray(logits, np.float32))


def plain(candidates: Candidates) -> dict[int, float]:
    return {int(i): float(x) for i, x in zip(candidates.ids, candidates.logits, strict=True)}


@st.composite
def rows(draw: st.DrawFn) -> np.ndarray:
    """Rows of logits without ties near a boundary: normal numbers, some of them -inf."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n = draw(st.sampled_from([1, 2, 3, 19, 111, 700]))
    row = (rng.normal(size=n) * draw(st.sampled_from([0.3, 2.0, 10.0]))).astype(np.float32)
    row[rng.random(n) < draw(st.sampled_from([0.0, 0.5]))] = -np.inf
    row[int(rng.integers(n))] = 1.0
    return row


# Values that may tie everywhere; what is checked on them must hold for ties, too.
coarse = st.lists(st.sampled_from([-5.0, -1.0, 0.0, 0.5, 2.0, 1e30, -1e30]), min_size=1, max_size=40)
shares = st.sampled_from([0.0, 0.05, 0.3, 0.5, 0.77, 0.95, 0.999, 1.0])
min_keeps = st.sampled_from([0, 1, 3])


@given(rows(), st.sampled_from([-1, 0, 1, 2, 5, 40, 699, 10_000]))
def test_top_k_equals_its_twin(row: np.ndarray, k: int) -> None:
    candidates = make(row)
    assert set(filters.top_k(candidates, k).ids) == top_k_plain(plain(candidates), k)


@given(rows(), shares, min_keeps)
def test_top_p_equals_its_twin(row: np.ndarray, p: float, min_keep: int) -> None:
    candidates = make(row)
    assert set(filters.top_p(candidates, p, min_keep).ids) == top_p_plain(plain(candidates), p, min_keep)


@given(rows(), shares, min_keeps)
def test_typical_equals_its_twin(row: np.ndarray, p: float, min_keep: int) -> None:
    candidates = make(row)
    assert set(filters.typical(candidates, p, min_keep).ids) == typical_plain(plain(candidates), p, min_keep)


@given(rows(), shares, min_keeps)
def test_min_p_equals_its_twin(row: np.ndarray, p: float, min_keep: int) -> None:
    candidates = make(row)
    assert set(filters.min_p(candidates, p, min_keep).ids) == min_p_plain(plain(candidates), p, min_keep)


@given(rows(), st.sampled_from([-1.0, 0.0, 0.1, 1.0, 2.5]))
def test_top_n_sigma_equals_its_twin(row: np.ndarray, n: float) -> None:
    candidates = make(row)
    assert set(filters.top_n_sigma(candidates, n).ids) == top_n_sigma_plain(plain(candidates), n)


@given(rows(), st.sampled_from([0.001, 0.05, 0.1, 0.3, 0.5]))
def test_xtc_equals_its_twin(row: np.ndarray, threshold: float) -> None:
    candidates = make(row)
    left = filters.xtc(candidates, 1.0, threshold, 0, np.random.default_rng(0))
    assert set(left.ids) == xtc_plain(plain(candidates), threshold)


@given(rows(), st.sampled_from([1e-3, 0.5, 0.8, 1.0, 3.0]))
def test_temperature_equals_softmax_of_the_divided_logits(row: np.ndarray, t: float) -> None:
    candidates = make(row)
    want = softmax_plain({i: x / t for i, x in plain(candidates).items()})
    np.testing.assert_allclose(filters.temperature(candidates, t).probs, list(want.values()), rtol=1e-9, atol=1e-300)


@given(coarse, st.integers(1, 60))
def test_top_k_keeps_exactly_k_also_among_equals_and_prefers_low_ids(row: list[float], k: int) -> None:
    candidates = make(row)
    kept = filters.top_k(candidates, k)
    assert len(kept.ids) == min(k, len(row))
    assert set(kept.ids) == top_k_plain(plain(candidates), k)


@given(coarse, st.sampled_from([0.0, 0.2, 0.5, 0.9, 0.99]))
def test_top_p_is_the_smallest_set_that_reaches_p_also_among_equals(row: list[float], p: float) -> None:
    candidates = make(row)
    kept = filters.top_p(candidates, p)
    probs = candidates.probs
    order = np.argsort(-candidates.logits, kind="stable")
    n = len(kept.ids)
    assert set(kept.ids) == set(order[:n])
    assert probs[order[:n]].sum() >= p - 1e-12
    assert n == 1 or probs[order[: n - 1]].sum() < p + 1e-12


def test_a_mass_that_is_reached_exactly_is_enough() -> None:
    quarters = make([1.0, 1.0, 1.0, 1.0])
    assert filters.top_p(quarters, 0.5).ids.tolist() == [0, 1]
    assert filters.top_p(quarters, 0.75).ids.tolist() == [0, 1, 2]


def test_top_p_finds_a_nucleus_wider_than_its_first_prefix() -> None:
    """The search starts with a few hundred tokens and widens; a flat distribution needs most of the vocabulary."""
    row = np.random.default_rng(3).normal(size=20_000).astype(np.float32) * 0.1
    kept = filters.top_p(make(row), 0.9)
    assert len(kept.ids) > 15_000
    probs = make(row).probs
    order = np.argsort(-row, kind="stable")
    want = int(np.searchsorted(np.cumsum(probs[order]), 0.9)) + 1
    assert set(kept.ids) == set(order[:want])


@settings(max_examples=200)
@given(coarse, shares, min_keeps, st.floats(-2, 5), st.floats(1e-300, 1e300))
def test_no_filter_removes_all_candidates_or_breaks_their_order(
    row: list[float], p: float, min_keep: int, sigmas: float, t: float
) -> None:
    rng = np.random.default_rng(0)
    for narrow in (
        lambda c: filters.top_n_sigma(c, sigmas),
        lambda c: filters.top_k(c, int(sigmas)),
        lambda c: filters.typical(c, p, min_keep),
        lambda c: filters.top_p(c, p, min_keep),
        lambda c: filters.min_p(c, p, min_keep),
        lambda c: filters.xtc(c, 1.0, p, min_keep, rng),
        lambda c: filters.temperature(c, t),
    ):
        left = narrow(make(row))
        assert 1 <= len(left.ids) == len(left.logits) <= len(row)
        assert np.all(np.diff(left.ids) > 0)
        assert np.isfinite(left.logits).all()
        assert left.probs.sum() == pytest.approx(1)
        assert 0 <= filters.draw(left, rng) < len(left.ids)


def test_xtc_keeps_the_least_probable_of_the_top_choices() -> None:
    probs = np.array([0.05, 0.4, 0.15, 0.3, 0.1])
    candidates = make(np.log(probs))
    left = filters.xtc(candidates, 1.0, 0.12, 0, np.random.default_rng(0))
    assert left.ids.tolist() == [0, 2, 4]


def test_xtc_leaves_a_single_top_choice_alone_and_respects_min_keep() -> None:
    candidates = make(np.log([0.8, 0.1, 0.06, 0.04]))
    rng = np.random.default_rng(0)
    assert len(filters.xtc(candidates, 1.0, 0.3, 0, rng).ids) == 4
    assert filters.xtc(candidates, 1.0, 0.05, 0, rng).ids.tolist() == [2, 3]
    assert len(filters.xtc(candidates, 1.0, 0.05, 3, rng).ids) == 4
    assert len(filters.xtc(candidates, 1.0, 0.51, 0, rng).ids) == 4


def test_xtc_acts_with_its_probability() -> None:
    candidates = make(np.log([0.5, 0.3, 0.2]))
    rng = np.random.default_rng(5)
    acted = sum(len(filters.xtc(candidates, 0.3, 0.1, 0, rng).ids) < 3 for _ in range(4000))
    assert abs(acted / 4000 - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 4000)


def test_draw_never_picks_a_candidate_without_probability() -> None:
    candidates = make([-1e30, 0.0, -1e30, 0.0, -1e30])

    class Edge:
        """A generator that returns the ends of [0, 1)."""

        def __init__(self, value: float) -> None:
            self.value = value

        def random(self) -> float:
            return self.value

    assert filters.draw(candidates, Edge(0.0)) == 1  # type: ignore[arg-type]
    assert filters.draw(candidates, Edge(np.nextafter(1.0, 0.0))) == 3  # type: ignore[arg-type]
