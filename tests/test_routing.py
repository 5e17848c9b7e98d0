"""Which experts a token goes to: both twins against an oracle that sorts Python tuples, and against each other."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from native_tools import NATIVE_IS_BUILT, native_backend
from numpy.typing import NDArray

from mixkv.kernels.parts import Routing
from mixkv.kernels.reference_routed import route

F32 = NDArray[np.float32]
GATINGS = ["softmax", "sigmoid", "softmax of chosen"]


def native_route(p: F32, routing: Routing, selection_bias: F32 | None) -> tuple[NDArray[np.int32], F32]:
    chosen, weights = native_backend(1).debug_route(p, routing, selection_bias)
    return chosen, weights


TWINS = [route, pytest.param(native_route, marks=pytest.mark.skipif(not NATIVE_IS_BUILT, reason="not built here"))]


def rank(value: float, number: int) -> tuple[bool, float, int]:
    """Sorts larger values first, the lower number first among equals, NaN last."""
    return (True, 0.0, number) if math.isnan(value) else (False, -value, number)


def oracle(p: list[float], r: Routing, bias: list[float]) -> tuple[list[int], list[float]]:
    """One token's experts and weights, in float64 and as plainly as it can be said."""
    numbers = range(r.n_experts)
    if r.gating == "softmax":
        score = [math.exp(x - max(p)) / math.fsum(math.exp(y - max(p)) for y in p) for x in p]
    elif r.gating == "sigmoid":
        score = [1 / (1 + math.exp(-x)) for x in p]
    else:
        score = p
    choice = [s + b for s, b in zip(score, bias, strict=True)]
    if r.n_groups > 1:
        size = r.n_experts // r.n_groups
        best = [sum(sorted(choice[g * size : (g + 1) * size])[-2:]) for g in range(r.n_groups)]
        kept = sorted(range(r.n_groups), key=lambda g: rank(best[g], g))[: r.n_groups_used]
        numbers = [e for e in numbers if e // size in kept]
    chosen = sorted(numbers, key=lambda e: rank(choice[e], e))[: r.n_used]
    weights = [score[e] for e in chosen]
    if r.gating == "softmax of chosen":
        weights = [math.exp(w - max(weights)) for w in weights]
        weights = [w / math.fsum(weights) for w in weights]
    elif r.normalize:
        weights = [w / max(math.fsum(weights), 2**-14) for w in weights]
    return chosen, [r.scale * w for w in weights]


@st.composite
def routings(draw: st.DrawFn, n_experts: int | None = None) -> Routing:
    n_groups = draw(st.sampled_from([1, 1, 2, 3, 4])) if n_experts is None else 1
    size = draw(st.integers(1, 9)) if n_experts is None else n_experts
    n_groups_used = draw(st.integers(1, n_groups))
    most = size * (n_groups_used if n_groups > 1 else 1)
    return Routing(
        n_experts=size * n_groups, n_used=draw(st.integers(1, most)), gating=draw(st.sampled_from(GATINGS)),
        normalize=draw(st.booleans()), scale=draw(st.sampled_from([1.0, 2.5, 0.1])), n_groups=n_groups,
        n_groups_used=n_groups_used,
    )  # fmt: skip


@pytest.mark.parametrize("twin", TWINS)
@given(data=st.data())
def test_a_token_goes_where_the_rules_say(twin: Any, data: st.DataObject) -> None:
    """Groups, ties and the bias that counts for the choice alone. Products are multiples of a step, plus a tenth: two
    scores are equal exactly, or far apart, and sums of two never meet by symmetry."""
    r = data.draw(routings())
    steps = st.lists(st.integers(-9, 9), min_size=r.n_experts, max_size=r.n_experts)
    p = np.array([0.1 + 0.3 * k for k in data.draw(steps)], np.float32)
    bias = np.array([0.37 * k for k in data.draw(steps)], np.float32) if data.draw(st.booleans()) else None
    chosen, weights = twin(p[None], r, bias)
    want, want_weights = oracle(p.tolist(), r, [0.0] * r.n_experts if bias is None else bias.tolist())
    assert chosen[0].tolist() == want
    np.testing.assert_allclose(weights[0], want_weights, rtol=1e-5, atol=1e-7)


@pytest.mark.skipif(not NATIVE_IS_BUILT, reason="not built here")
@given(data=st.data())
def test_any_products_lead_to_experts(data: st.DataObject) -> None:
    """NaN and infinities of every kind: different experts, all there are, the same from both twins, whose weights are
    NaN in the same places. Without the rule for NaN the order of comparisons decided, and sorting might never end."""
    r = data.draw(routings())
    numbers = st.one_of(
        st.sampled_from([np.nan, np.inf, -np.inf, 0.0]), st.integers(-30, 30).map(lambda k: 0.1 + 3 * k)
    )
    rows = st.lists(numbers, min_size=r.n_experts, max_size=r.n_experts)
    p = np.array(data.draw(st.lists(rows, min_size=1, max_size=3)), np.float32)
    bias = np.array(data.draw(rows), np.float32) if data.draw(st.booleans()) else None
    chosen, weights = native_route(p, r, bias)
    with np.errstate(invalid="ignore"):
        want, want_weights = route(p, r, bias)
    for row in chosen.tolist():
        assert len(set(row)) == r.n_used and set(row) <= set(range(r.n_experts))
    np.testing.assert_array_equal(chosen, want)
    np.testing.assert_allclose(weights, want_weights, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("twin", TWINS)
def test_nothing_but_nan(twin: Any) -> None:
    """A token of NaN goes to the first experts and tells by its weights; with groups, to those of the first."""
    p = np.full((2, 12), np.nan, np.float32)
    p[1] = np.arange(12)
    for gating in GATINGS:
        for groups in (1, 4):
            r = Routing(12, 3, gating=gating, n_groups=groups, n_groups_used=1)  # type: ignore[arg-type]
            chosen, weights = twin(p, r, None)
            assert chosen.tolist() == [[0, 1, 2], [11, 10, 9]]
            assert np.isnan(weights[0]).all() and not np.isnan(weights[1]).any()


@pytest.mark.parametrize("twin", TWINS)
def test_scores_that_round_to_the_same(twin: Any) -> None:
    """Sigmoids of 20 and 30 are both 1 in float32, softmaxes of -200 and -300 both 0: products tell them apart."""
    p = np.array([[20, 30, 0, 1], [-200, 0, -300, -100]], np.float32)
    assert twin(p, Routing(4, 1, gating="sigmoid", normalize=False, on_input=True), None)[0].tolist() == [[1], [1]]
    assert twin(p, Routing(4, 3), None)[0][1].tolist() == [1, 3, 0]


@pytest.mark.parametrize("twin", TWINS)
def test_a_sum_is_never_too_small_to_divide_by(twin: Any) -> None:
    """Weights that sum to less than the smallest normal float16 are divided by that instead."""
    p = np.array([[-20.0, -21.0, -22.0]], np.float32)
    weights = twin(p, Routing(3, 2, gating="sigmoid"), None)[1]
    np.testing.assert_allclose(weights[0], np.exp([-20.0, -21.0]) * 2**14, rtol=1e-5)


def test_numbers_that_cannot_be() -> None:
    """More experts wanted than a token may choose from ended in memory that is not ours."""
    from mixkv.kernels.errors import InputError

    if not NATIVE_IS_BUILT:
        pytest.skip("the native extension is not built here")
    p = np.zeros((1, 12), np.float32)
    for routing, words in (
        (Routing(12, 13), "routing.n_used"), (Routing(12, 0), "routing.n_used"), (Routing(0, 1), "routing.n_experts"),
        (Routing(12, 4, n_groups=4, n_groups_used=1), "routing.n_used"),
        (Routing(12, 2, n_groups=5), "routing.n_groups"),
        (Routing(12, 2, n_groups=4, n_groups_used=5), "routing.n_groups_used"),
        (Routing(12, 2, gating="argmax"), "argmax"),  # type: ignore[arg-type]
    ):  # fmt: skip
        with pytest.raises(InputError, match=words):
            native_route(p, routing, None)
