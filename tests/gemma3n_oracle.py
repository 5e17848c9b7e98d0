"""Gemma 3n's forward pass in float64: predicted and corrected streams, a shortcut of low rank, sparse gates."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from float_forward import F64
from oracle_parts import gelu

if TYPE_CHECKING:
    from family_oracle import Oracle

STREAMS, SPARSE_LAYERS, DEVIATIONS = 4, 10, 1.6448533535003662


def logits_of_gemma3n(o: Oracle, ids: list[int]) -> F64:
    """(n, n_vocab)."""

    def size(x: F64) -> F64:
        return np.linalg.norm(x, axis=-1, keepdims=True)

    x = o.embed(ids)
    told = o.told(ids, x)
    assert told is not None
    others = [x @ m.T for m in o.tensors["altup_proj.weight"]]
    streams = np.stack([x, *(y * size(x) / size(y) for y in others)])
    o.kept = {}
    for i in range(o.n_layers):
        b = f"blk.{i}."

        def router(x: F64, b: str = b) -> F64:
            return np.tanh(o.product(o.norm(x, b + "altup_router_norm") / o.dim, b + "altup_router"))

        mix = o.product(router(streams[0]), b + "altup_predict_coef").reshape(-1, STREAMS, STREAMS)
        predicted = streams + np.einsum("njk,knd->jnd", mix, streams)
        h = o.norm(predicted[0], b + "attn_norm")
        low_rank = h + o.norm(o.product(o.product(h, b + "laurel_l"), b + "laurel_r"), b + "laurel_post_norm")
        attended = predicted[0] + o.norm(o.attention(h, i), b + "post_attention_norm")
        mixed = (attended + low_rank) / np.sqrt(2)
        f = o.norm(mixed, b + "ffn_norm")
        gate = o.product(f, b + "ffn_gate")
        if i < SPARSE_LAYERS:
            cut = gate.mean(axis=1, keepdims=True) + DEVIATIONS * gate.std(axis=1, ddof=1, keepdims=True)
            gate = np.maximum(gate - cut, 0)
        made = o.product(gelu(gate) * o.product(f, b + "ffn_up"), b + "ffn_down")
        out = mixed + o.norm(made, b + "post_ffw_norm")
        factor = 1 + o.product(router(out), b + "altup_correct_coef")
        streams = predicted + (out - predicted[0]) * factor.T[:, :, None]
        streams[1:] += o.takes(streams[0] * o.tensors[b + "altup_correct_scale.weight"], told[:, i], b)
    x = streams[0].copy()
    for y, m in zip(streams[1:], o.tensors["altup_unembd_proj.weight"], strict=True):
        z = y @ m.T
        x += z * size(streams[0]) / size(z)
    return o.head(x / STREAMS)
