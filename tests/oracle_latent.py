"""Multi-head latent attention in float64, as it is defined: each head's keys and values are made of the latent rows."""

from __future__ import annotations

import numpy as np
from float_forward import F64, Rotation, rotation_of
from oracle_parts import OracleFile, softmax


def latent_attention(o: OracleFile, x: F64, b: str) -> F64:
    """x (n, dim), normed -> (n, dim)."""
    n, heads, turning = len(x), int(o.key("attention.head_count")), int(o.key("rope.dimension_count"))
    merged = b + "attn_kv_b.weight" in o.tensors
    size = int(o.key("attention.key_length" + ("" if merged else "_mla")))
    size_v = int(o.key("attention.value_length" + ("" if merged else "_mla")))
    plain, rank = size - turning, int(o.key("attention.kv_lora_rank"))
    turn = Rotation(rotation_of(o.keys, turning, 1.0, True).freq, 1.0, True)
    if b + "attn_q_a.weight" in o.tensors:
        q = o.product(o.norm(o.product(x, b + "attn_q_a"), b + "attn_q_a_norm"), b + "attn_q_b")
    else:
        q = o.product(x, b + "attn_q")
    steps = np.arange(n) // o.key("rope.scaling.original_context_length", 4096)
    warmth = 1 + o.key("attention.temperature_scale", 0.0) * np.log(1 + steps)
    q = q.reshape(n, heads, size) * warmth[:, None, None]
    latent, key = np.split(o.product(x, b + "attn_kv_a_mqa"), [rank], axis=1)
    latent = o.norm(latent, b + "attn_kv_a_norm")
    key = turn(key[:, None])[:, 0]
    q_turned = turn(q[:, :, plain:])
    if merged:
        both = o.tensors[b + "attn_kv_b.weight"].reshape(heads, plain + size_v, rank)
        of_key, of_value = both[:, :plain], both[:, plain:]
    else:
        of_key, of_value = o.tensors[b + "attn_k_b.weight"].transpose(0, 2, 1), o.tensors[b + "attn_v_b.weight"]
    factor = o.key("rope.scaling.factor", 1.0)
    stretch = 1 + o.key("rope.scaling.yarn_log_multiplier", 0.0) * np.log(factor)
    out = []
    for h in range(heads):
        score = (q[:, h, :plain] @ (latent @ of_key[h].T).T + q_turned[:, h] @ key.T) * stretch**2 / np.sqrt(size)
        score[np.triu_indices(n, 1)] = -np.inf
        out.append(softmax(score) @ (latent @ of_value[h].T))
    return o.product(np.concatenate(out, axis=1), b + "attn_output")
