"""Multi-head latent attention (DeepSeek-V2), absorbed: what is kept of a token is one row that all heads read.

A head's key is a matrix times the latent row, beside numbers that turn with the position and are the same for all
heads. So its score is that of the query times the matrix with the latent row itself, and the sum of latent rows by
weight, times a second matrix, is the sum of its values: neither its keys nor its values are ever made.
"""

from __future__ import annotations

import numpy as np

from mixkv.kernels.contract_parts import Experts, NormLinear, NormQKV, Weight
from mixkv.kernels.parts import F32, Norm
from mixkv.models.attention import Rotations
from mixkv.models.batch import Batch, Rows, States
from mixkv.models.layer_weights import LayerWeights
from mixkv.models.layers import Attention, LayerSpec


class LatentMixer:
    """Queries, latent rows and what turns; attention over the past; the way back to the residual stream.

    norm: the one before; out_norm: the one behind; None where there is none.
    """

    def __init__(
        self, lw: LayerWeights, layer: int, spec: LayerSpec, rotations: Rotations, norm: Norm | None,
        out_norm: Norm | None,
    ) -> None:  # fmt: skip
        a, dim, backend = spec.mixer, lw.config.n_embd, lw.backend
        assert isinstance(a, Attention) and a.latent is not None
        m = self._m = a.latent
        self._layer, self._backend = layer, backend
        rotation = rotations(a.rope)

        def turned(w: Weight, norm: Norm | None, n_heads: int, head_dim: int, temperature: bool) -> NormQKV:
            return backend.NormQKV(
                norm=norm, wq=w, wk=None, wv=None, rotation=rotation, n_heads=n_heads, n_kv_heads=1,
                head_dim=head_dim, temperature=a.temperature if temperature else None,
            )  # fmt: skip

        self._down: NormLinear | None = None
        q_norm, q_name, q_cols = norm, "attn_q", dim
        if m.q_rank:
            self._down = backend.NormLinear(norm=norm, weights=[lw.matrix("attn_q_a", m.q_rank, dim)])
            q_norm, q_name, q_cols = lw.norm("attn_q_a_norm", m.q_rank), "attn_q_b", m.q_rank
        wq = _turning_first(lw, q_name, a.n_heads, m.head_dim, m.n_rot, q_cols)
        self._q = turned(wq, q_norm, a.n_heads, m.head_dim, True)
        wk = _turning_first(lw, "attn_kv_a_mqa", 1, m.rank + m.n_rot, m.n_rot, dim)
        self._k = turned(wk, norm, 1, m.rank + m.n_rot, False)
        self._k_norm = lw.norm("attn_kv_a_norm", m.rank)
        absorb, give = _matrices_of_heads(lw, a)
        self._absorb, self._give = backend.HeadLinear(w=absorb), backend.HeadLinear(w=give)
        self._out = backend.Project(
            w=lw.matrix("attn_output", dim, a.n_heads * m.head_dim_v), bias=lw.bias("attn_output", dim),
            out_norm=out_norm, scale=spec.residual_scale,
        )  # fmt: skip

    def __call__(self, x: F32, batch: Batch, states: States, rows: Rows | None) -> F32:
        """x (n, dim), the residual stream -> with what attention adds, of `rows` alone (None: of all)."""
        n_rot = self._m.n_rot
        h = x if self._down is None else self._down(x)[0]
        q, k = self._q(h, batch.positions)[0], self._k(x, batch.positions)[0]
        latent = self._backend.norm(np.ascontiguousarray(k[:, 0, n_rot:]), self._k_norm)
        k = np.concatenate([latent[:, None], k[..., :n_rot]], axis=2)
        q = np.concatenate([self._absorb(np.ascontiguousarray(q[..., n_rot:])), q[..., :n_rot]], axis=2)
        y = states.attend(self._layer, q, k, np.empty((len(x), 1, 0), np.float32), None)
        if rows is not None:
            y, x = np.ascontiguousarray(y[rows]), x[rows]
        return self._out(self._give(y).reshape(len(x), -1), x) if len(x) else x


def _turning_first(lw: LayerWeights, name: str, n_heads: int, head_dim: int, n_rot: int, cols: int) -> Weight:
    """A matrix whose heads end with the n_rot rows that turn, these moved to each head's beginning, where rotations
    are."""
    rows = np.arange(n_heads)[:, None] * head_dim + np.roll(np.arange(head_dim), n_rot)
    return lw.parts(name, [rows.ravel()], cols)[0]


def _matrices_of_heads(lw: LayerWeights, a: Attention) -> tuple[Experts, Experts]:
    """Of each head: (rank, numbers of a query that do not turn), from queries to latent rows; and (head_dim_v,
    rank)."""
    assert a.latent is not None
    m, plain = a.latent, a.latent.head_dim - a.latent.n_rot
    if m.merged:
        return lw.merged_heads("attn_kv_b", a.n_heads, plain, m.head_dim_v, m.rank)
    absorb = lw.experts("attn_k_b", a.n_heads, m.rank, plain)
    return absorb, lw.experts("attn_v_b", a.n_heads, m.head_dim_v, m.rank)
