"""A layer's attention, built from what its `Attention` says."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mixkv.kernels.contract_parts import Weight
from mixkv.kernels.parts import F32, Norm, Rotation
from mixkv.models.batch import Batch, Rows, States
from mixkv.models.layer_weights import LayerWeights
from mixkv.models.layers import Attention, LayerSpec
from mixkv.models.rope import RopeConfig

Rotations = Callable[[RopeConfig | None], Rotation | None]
"""From what a file says of a rotation to its frequencies."""


class AttentionMixer:
    """Q, K and V of one layer, attention over the past, and the way back to the residual stream.

    norm, out_norm: those around it; None where there is none.
    """

    def __init__(
        self, lw: LayerWeights, layer: int, spec: LayerSpec, rotations: Rotations, norm: Norm | None,
        out_norm: Norm | None,
    ) -> None:  # fmt: skip
        a, dim = spec.mixer, lw.config.n_embd
        assert isinstance(a, Attention)
        self._layer = layer
        out_dim = a.n_heads * a.head_dim_v
        (wq, wk, wv, gate), (bq, bk, bv) = _weights(lw, a), _biases(lw, a)
        self._qkv = lw.backend.NormQKV(
            norm=norm, wq=wq, wk=wk, wv=wv, gate=gate, bq=bq, bk=bk, bv=bv,
            q_norm=_qk_norm(lw, a, "attn_q_norm", a.n_heads),
            k_norm=None if wk is None else _qk_norm(lw, a, "attn_k_norm", a.n_kv_heads),
            v_norm=Norm(None, lw.config.norm_eps) if a.v_norm and wk is not None else None,
            norms_last=a.norms_last, rotation=rotations(a.rope), temperature=a.temperature,
            n_heads=a.n_heads, n_kv_heads=a.n_kv_heads, head_dim=a.head_dim_k,
        )  # fmt: skip
        lw.ignore("attn_rot_embd")
        self._sinks = lw.vector("attn_sinks", a.n_heads) if a.sinks else None
        required = "attn_output" in a.biases
        self._out = lw.backend.Project(
            w=lw.matrix("attn_output", dim, out_dim), bias=lw.bias("attn_output", dim, required=required),
            out_norm=out_norm, scale=spec.residual_scale,
        )  # fmt: skip

    def __call__(self, x: F32, batch: Batch, states: States, rows: Rows | None) -> F32:
        """x (n, dim), the residual stream -> with what attention adds, of `rows` alone (None: of all)."""
        q, k, v, gate = self._qkv(x, batch.positions)
        h = states.attend(self._layer, q, k, v, self._sinks).reshape(len(x), -1)
        if rows is not None:
            h, x, gate = h[rows], x[rows], None if gate is None else gate[rows]
        return self._out(h, x, gate) if len(x) else x


def _weights(lw: LayerWeights, a: Attention) -> tuple[Weight, Weight | None, Weight | None, Weight | None]:
    """wq, wk, wv and the gate's, from matrices of their own or from one that holds them all."""
    dim, q_dim = lw.config.n_embd, a.n_heads * a.head_dim_k
    k_dim, v_dim = a.n_kv_heads * a.head_dim_k, a.n_kv_heads * a.head_dim_v
    if a.kv_from is not None:
        return lw.matrix("attn_q", q_dim, dim), None, None, None
    if a.gate:  # rows of attn_q are, head by head, the query's and then the gate's
        heads = _alternating(a.n_heads, a.head_dim_k, a.head_dim_v)
        wq, gate = lw.parts("attn_q", heads, dim)
        return wq, lw.matrix("attn_k", k_dim, dim), lw.matrix("attn_v", v_dim, dim), gate
    if "attn_qkv" in lw:
        stops = q_dim, q_dim + k_dim, q_dim + k_dim + v_dim
        wq, wk, wv = lw.parts("attn_qkv", [slice(0, stops[0]), slice(*stops[:2]), slice(*stops[1:])], dim)
        return wq, wk, wv, None
    wq, wk = lw.matrix("attn_q", q_dim, dim), lw.matrix("attn_k", k_dim, dim)
    return wq, wk, None if a.v_from_k else lw.matrix("attn_v", v_dim, dim), None


def _alternating(n_heads: int, first: int, second: int) -> tuple[Rows, Rows]:
    """Rows of a matrix whose heads have `first` rows of one kind, then `second` of another: of each kind."""
    starts = np.arange(n_heads)[:, None] * (first + second)
    return (starts + np.arange(first)).ravel(), (starts + first + np.arange(second)).ravel()


def _biases(lw: LayerWeights, a: Attention) -> tuple[F32 | None, F32 | None, F32 | None]:
    q_dim, k_dim, v_dim = a.n_heads * a.head_dim_k, a.n_kv_heads * a.head_dim_k, a.n_kv_heads * a.head_dim_v
    if "attn_qkv" in lw:
        whole = lw.bias("attn_qkv", q_dim + k_dim + v_dim, required="attn_qkv" in a.biases)
        if whole is not None:
            return whole[:q_dim], whole[q_dim : q_dim + k_dim], whole[q_dim + k_dim :]

    def bias(name: str, n: int) -> F32 | None:
        return lw.bias(name, n, required=name in a.biases)

    bq = bias("attn_q", q_dim)
    return (bq, None, None) if a.kv_from is not None else (bq, bias("attn_k", k_dim), bias("attn_v", v_dim))


def _qk_norm(lw: LayerWeights, a: Attention, name: str, n_heads: int) -> Norm | None:
    """The norm of queries or keys."""
    if not a.qk_norm:
        return None
    if a.qk_norm == "unit":
        return Norm(None, lw.config.norm_eps)
    shapes: dict[str, tuple[int, ...]] = {
        "head": (a.head_dim_k,), "each": (n_heads, a.head_dim_k), "row": (n_heads * a.head_dim_k,),
    }  # fmt: skip
    return lw.norm(name, shapes[a.qk_norm])
