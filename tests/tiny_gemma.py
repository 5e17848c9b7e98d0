"""Tiny random models of Gemma 4 and 3n, for tiny_families.py."""

from __future__ import annotations

from tiny_parts import (
    BEHIND,
    DIM,
    EXPERTS,
    VOCAB,
    WINDOW,
    Shapes,
    TinyFile,
    attention,
    experts,
    ffn,
    norms,
    whole,
)

LOCAL = {"attention.key_length_swa": 16, "attention.value_length_swa": 16, "rope.dimension_count_swa": 16}
GLOBAL = {"attention.key_length": 32, "attention.value_length": 32, "rope.dimension_count": 32}
PATTERN = [True, True, True, False, True, False]


def _per_layer(width: int) -> Shapes:
    return {"inp_gate.weight": (width, DIM), "proj.weight": (DIM, width), "post_norm.weight": (DIM,)}


def _told(n_layers: int, width: int) -> Shapes:
    return {
        "per_layer_token_embd.weight": (VOCAB, n_layers * width), "per_layer_proj_norm.weight": (width,),
        "per_layer_model_proj.weight": (n_layers * width, DIM),
    }  # fmt: skip


def gemma4() -> TinyFile:
    """Two head sizes, keys shared by the last two layers, embeddings for each layer."""
    layers = [
        norms("attn_norm", "ffn_norm") | BEHIND | ffn(48 if i < 4 else 64) | {"layer_output_scale.weight": (1,)}
        | attention(size=16 if local else 32, qk_norm="head", shared=i >= 4) | _per_layer(12)
        for i, local in enumerate(PATTERN)
    ]  # fmt: skip
    return whole(
        "gemma4", layers, more={"rope_freqs.weight": (16,), **_told(6, 12)}, attention__sliding_window=WINDOW,
        attention__sliding_window_pattern=PATTERN, attention__shared_kv_layers=2, embedding_length_per_layer_input=12,
        final_logit_softcapping=6.0, feed_forward_length=[48, 48, 48, 48, 64, 64], rope__freq_base=1e6,
        rope__freq_base_swa=1e4, **LOCAL, **GLOBAL,
    )  # fmt: skip


def gemma4_with_experts() -> TinyFile:
    """Experts beside a dense feed-forward; global layers have fewer KV heads, whose values are their keys."""
    layers = [
        norms("attn_norm", "ffn_norm", "pre_ffw_norm_2", "post_ffw_norm_1", "post_ffw_norm_2") | BEHIND | ffn()
        | experts(fused=True) | {"ffn_gate_inp.scale": (DIM,), "ffn_down_exps.scale": (6,)}
        | attention(size=16 if local else 32, kv=2 if local else 1, qk_norm="head", no_v=not local)
        for local in PATTERN
    ]  # fmt: skip
    return whole(
        "gemma4", layers, more={"rope_freqs.weight": (16,)}, attention__sliding_window=WINDOW,
        attention__sliding_window_pattern=PATTERN, final_logit_softcapping=6.0, rope__freq_base_swa=1e4,
        **{"attention.head_count_kv": [2 if local else 1 for local in PATTERN]}, **LOCAL, **GLOBAL, **EXPERTS,
    )  # fmt: skip


def gemma3n() -> TinyFile:
    """Four streams; keys shared by the last two layers."""
    width, n_layers = 12, 12
    layer = (
        norms("attn_norm", "ffn_norm", "altup_router_norm", "altup_correct_scale", "laurel_post_norm") | BEHIND | ffn()
        | attention(qk_norm="head") | _per_layer(width)
        | {"altup_correct_coef.weight": (4, 4), "altup_predict_coef.weight": (16, 4), "altup_router.weight": (4, DIM),
           "laurel_l.weight": (64, DIM), "laurel_r.weight": (DIM, 64)}
    )  # fmt: skip
    more: Shapes = {"altup_proj.weight": (3, DIM, DIM), "altup_unembd_proj.weight": (3, DIM, DIM)}
    return whole(
        "gemma3n", [layer] * n_layers, more=more | _told(n_layers, width), attention__sliding_window=WINDOW,
        attention__shared_kv_layers=2, attention__sliding_window_pattern=[(i + 1) % 5 > 0 for i in range(n_layers)],
        embedding_length_per_layer_input=width, rope__freq_base=1e6,
    )  # fmt: skip
