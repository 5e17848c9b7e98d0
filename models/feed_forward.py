"""A layer's feed-forward, built from what its `Dense` or `Routed` says."""

from __future__ import annotations

from mixkv.kernels.contract_parts import Experts, FeedForward, Weight
from mixkv.kernels.parts import F32, Norm
from mixkv.models.layer_weights import LayerWeights
from mixkv.models.layers import Dense, LayerSpec, Routed


def feed_forward(lw: LayerWeights, spec: LayerSpec, norm: Norm | None, out_norm: Norm | None) -> FeedForward:
    """norm, out_norm: those around it; None where there is none."""
    ffn = spec.ffn
    if isinstance(ffn, Dense):
        return dense(lw, ffn, norm, out_norm, scale=spec.residual_scale)
    assert ffn is not None
    routed = routed_experts(lw, ffn, norm, out_norm, scale=spec.residual_scale)
    if not ffn.n_shared:
        return routed
    assert out_norm is None, "a norm after the sum of both is nobody's yet"
    shared = Dense(ffn.n_shared, ffn.activation, ffn.gated)
    token_gate = lw.vector("ffn_gate_inp_shexp", lw.config.n_embd) if ffn.shared_gate else None
    return WithShared(
        routed, dense(lw, shared, norm, None, scale=spec.residual_scale, end="_shexp", token_gate=token_gate)
    )


class WithShared:
    """Routed experts and one for all tokens, which read the same."""

    def __init__(self, routed: FeedForward, shared: FeedForward) -> None:
        self._routed, self._shared = routed, shared

    def __call__(self, x: F32, residual: F32 | None) -> F32:
        return self._routed(x, self._shared(x, residual))


def dense(
    lw: LayerWeights, ffn: Dense, norm: Norm | None, out_norm: Norm | None, *, scale: float = 1.0, end: str = "",
    token_gate: F32 | None = None,
) -> FeedForward:  # fmt: skip
    """One feed-forward; end: what its tensors' names end with."""
    dim, n_ff = lw.config.n_embd, ffn.n_ff
    gate: Weight | None = None
    if not ffn.gated:
        up = lw.matrix("ffn_up" + end, n_ff, dim)
    elif lw.rows("ffn_up" + end) == 2 * n_ff and "ffn_gate" + end not in lw:  # both in one matrix, the gate first
        gate, up = lw.parts("ffn_up" + end, [slice(0, n_ff), slice(n_ff, 2 * n_ff)], dim)
    else:
        gate, up = lw.matrix("ffn_gate" + end, n_ff, dim), lw.matrix("ffn_up" + end, n_ff, dim)
    return lw.backend.NormFFN(
        norm=norm, gate=gate, up=up, down=lw.matrix("ffn_down" + end, dim, n_ff),
        gate_bias=lw.bias("ffn_gate" + end, n_ff) if gate is not None else None, up_bias=lw.bias("ffn_up" + end, n_ff),
        down_bias=lw.bias("ffn_down" + end, dim), activation=ffn.activation, token_gate=token_gate, out_norm=out_norm,
        scale=scale,
    )  # fmt: skip


def routed_experts(
    lw: LayerWeights, ffn: Routed, norm: Norm | None, out_norm: Norm | None, *, scale: float = 1.0,
    router_norm: Norm | None = None, down_scale: F32 | None = None,
) -> FeedForward:  # fmt: skip
    """The routed part alone."""
    dim, n_ff, n = lw.config.n_embd, ffn.n_ff, ffn.routing.n_experts

    def biases(name: str, width: int) -> F32 | None:
        full = lw.name(name, ".bias")
        return lw.weights.array(full, (n, width)) if full in lw.weights else None

    gate: Experts | None = None
    if ffn.gated and "ffn_gate_up_exps" in lw:
        gate, up = lw.expert_halves("ffn_gate_up_exps", n, n_ff, dim)
    else:
        gate = lw.experts("ffn_gate_exps", n, n_ff, dim) if ffn.gated else None
        up = lw.experts("ffn_up_exps", n, n_ff, dim)
    return lw.backend.RoutedFFN(
        norm=norm, router=lw.matrix("ffn_gate_inp", n, dim), routing=ffn.routing, gate=gate, up=up,
        down=lw.experts("ffn_down_exps", n, dim, n_ff),
        gate_bias=biases("ffn_gate_exps", n_ff) if ffn.gated else None, up_bias=biases("ffn_up_exps", n_ff),
        down_bias=biases("ffn_down_exps", dim), activation=ffn.activation, router_norm=router_norm,
        router_bias=lw.bias("ffn_gate_inp", n), selection_bias=lw.bias("exp_probs_b", n), down_scale=down_scale,
        out_norm=out_norm, scale=scale,
    )  # fmt: skip
