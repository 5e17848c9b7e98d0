"""Routed experts in NumPy; see contract.Backend.RoutedFFN and parts.Routing."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixkv.kernels.parts import F32, SILU, Activation, Norm, Routing
from mixkv.kernels.reference_layers import activate, add_to, normalise, sigmoid
from mixkv.kernels.reference_weights import Experts, linear

LEAST_SUM = np.float32(6.103515625e-5)
"""What the sum of weights is at least when they are normalised: the smallest normal float16."""


def route(p: F32, routing: Routing, selection_bias: F32 | None) -> tuple[NDArray[np.intp], F32]:
    """Experts (n, n_used) and weights (n, n_used) of tokens whose router products are p (n, n_experts)."""
    r = routing
    score = p
    if r.gating == "softmax":
        score = _softmax(p)
    elif r.gating == "sigmoid":
        score = sigmoid(p)
    if selection_bias is None and r.n_groups == 1:
        chosen = _largest(p, r.n_used)  # both kinds of score rise with p, which tells apart what they round to the same
    else:
        choice = score if selection_bias is None else score + selection_bias
        allowed = _experts_of_best_groups(choice, r)
        chosen = _take(allowed, _largest(_take(choice, allowed), r.n_used))
    weights = _take(score, chosen)
    if r.gating == "softmax of chosen":
        weights = _softmax(weights)
    elif r.normalize:
        weights = weights / np.maximum(weights.sum(axis=1, keepdims=True, dtype=np.float32), LEAST_SUM)
    return chosen, (weights * np.float32(r.scale)).astype(np.float32)


def _experts_of_best_groups(choice: F32, r: Routing) -> NDArray[np.intp]:
    """Experts (n, n_groups_used * group size) that a token may choose from, in rising order."""
    n, size = len(choice), r.n_experts // r.n_groups
    if r.n_groups == 1:
        return np.tile(np.arange(size), (n, 1))
    groups = choice.reshape(n * r.n_groups, size)
    with np.errstate(invalid="ignore"):  # inf - inf
        best = _take(groups, _largest(groups, 2)).sum(axis=1, dtype=np.float32).reshape(n, r.n_groups)
    kept = np.sort(_largest(best, r.n_groups_used), axis=1)
    return (kept[:, :, None] * size + np.arange(size)).reshape(n, r.n_groups_used * size)


def _largest(x: F32, n: int) -> NDArray[np.intp]:
    """Places (rows, n) of the n largest of each row, largest first; of two equal ones the lower first, NaN last."""
    return np.argsort(-x, axis=1, kind="stable")[:, :n]


def _take(x: NDArray[Any], places: NDArray[np.intp]) -> NDArray[Any]:
    return np.take_along_axis(x, places, axis=1)


def _softmax(p: F32) -> F32:
    with np.errstate(invalid="ignore"):  # of infinity comes NaN
        e = np.exp(p - p.max(axis=1, keepdims=True))
    return (e / e.sum(axis=1, keepdims=True)).astype(np.float32)


class RoutedFFN:
    """See contract.Backend.RoutedFFN."""

    def __init__(
        self, *, norm: Norm | None, router: Any, routing: Routing, gate: Experts | None, up: Experts, down: Experts,
        gate_bias: F32 | None = None, up_bias: F32 | None = None, down_bias: F32 | None = None,
        activation: Activation = SILU, router_norm: Norm | None = None,
        router_bias: F32 | None = None, selection_bias: F32 | None = None, down_scale: F32 | None = None,
        out_norm: Norm | None = None, scale: float = 1.0,
    ) -> None:  # fmt: skip
        self.norm, self.router, self.routing, self.gate, self.up, self.down = norm, router, routing, gate, up, down
        self.gate_bias, self.up_bias, self.down_bias, self.activation = gate_bias, up_bias, down_bias, activation
        self.router_norm, self.router_bias, self.selection_bias = router_norm, router_bias, selection_bias
        self.down_scale, self.out_norm, self.scale = down_scale, out_norm, scale

    def __call__(self, x: F32, residual: F32 | None) -> F32:
        h = normalise(x, self.norm)
        routed = h if self.router_norm is None else normalise(x, self.router_norm)
        chosen, weights = route(linear(routed, self.router, self.router_bias), self.routing, self.selection_bias)
        parts = np.empty((*chosen.shape, self.down.rows), np.float32)  # of each token's experts, in their order
        for expert in np.unique(chosen):
            tokens, slots = np.nonzero(chosen == expert)
            weight = weights[tokens, slots][:, None]
            if self.routing.on_input:
                parts[tokens, slots] = self._expert(int(expert), h[tokens] * weight)
            else:
                parts[tokens, slots] = weight * self._expert(int(expert), h[tokens])
        y = parts[:, 0]
        for slot in range(1, parts.shape[1]):
            y = y + parts[:, slot]
        return add_to(residual, y, self.out_norm, self.scale)

    def _expert(self, expert: int, h: F32) -> F32:
        """What an expert makes of rows h (n, dim)."""

        def product(rows: F32, experts: Experts, bias: F32 | None) -> F32:
            return linear(rows, experts.of(expert), None if bias is None else bias[expert])

        up = product(h, self.up, self.up_bias)
        g, u = (up, np.float32(1)) if self.gate is None else (product(h, self.gate, self.gate_bias), up)
        y = product(activate(self.activation, g, u), self.down, self.down_bias)
        return y if self.down_scale is None else y * self.down_scale[expert]
