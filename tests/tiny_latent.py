"""Tiny files of DeepSeek-V2's kinds: matrices of keys and values apart or in one, queries of latent rows or not."""

from __future__ import annotations

from tiny_parts import BEFORE, DIM, EXPERTS, YARN, Shapes, TinyFile, experts, ffn, whole

VALUE, QUERIES, HEADS = 24, 32, 4
"""Numbers of a value, and of the row that queries are made of; heads."""


def deepseek2() -> dict[str, TinyFile]:
    """Name of a case -> its file."""
    v3 = {"rank": 32, "plain": 32, "turning": 8}
    old = {"rank": 20, "plain": 16, "turning": 12, "merged": True}  # 20 of a key's 32 numbers: too few for its rotation
    lite = {"rank": 24, "plain": 16, "turning": 16, "direct": True}
    return {
        "deepseek2": whole(
            "deepseek2", [BEFORE | latent(**v3) | ffn(), BEFORE | latent(**v3) | experts(n=12, biased=True, shared=16)],
            expert_gating_func=2, expert_group_count=4, expert_group_used_count=2, expert_shared_count=1,
            leading_dense_block_count=1, expert_weights_scale=1.8, expert_weights_norm=True,
            rope__scaling__yarn_log_multiplier=0.1, **lengths(**v3), **(EXPERTS | {"expert_count": 12}), **YARN,
        ),
        "deepseek2, merged": whole(
            "deepseek2", [BEFORE | latent(**old) | ffn(), BEFORE | latent(**old) | experts(shared=32)],
            expert_shared_count=2, leading_dense_block_count=1, **lengths(**old), **EXPERTS,
        ),
        "deepseek2, Lite": whole(
            "deepseek2", [BEFORE | latent(**lite) | ffn()] * 2, attention__temperature_scale=0.3,
            rope__scaling__yarn_log_multiplier=0.0707, **lengths(**lite), **YARN,
        ),
    }  # fmt: skip


def latent(*, rank: int, plain: int, turning: int, merged: bool = False, direct: bool = False) -> Shapes:
    """A layer's attention."""
    size = plain + turning
    found: Shapes = {
        "attn_kv_a_mqa.weight": (rank + turning, DIM), "attn_kv_a_norm.weight": (rank,),
        "attn_output.weight": (DIM, HEADS * VALUE),
    }  # fmt: skip
    if direct:
        found["attn_q.weight"] = (HEADS * size, DIM)
    else:
        found |= {"attn_q_a.weight": (QUERIES, DIM), "attn_q_a_norm.weight": (QUERIES,)}
        found["attn_q_b.weight"] = (HEADS * size, QUERIES)
    if merged:
        return found | {"attn_kv_b.weight": (HEADS * (plain + VALUE), rank)}
    return found | {"attn_k_b.weight": (HEADS, rank, plain), "attn_v_b.weight": (HEADS, VALUE, rank)}


def lengths(
    *, rank: int, plain: int, turning: int, merged: bool = False, direct: bool = False
) -> dict[str, object]:  # fmt: skip
    """Where keys and values have matrices of their own, the file's lengths are those of what is kept."""
    found: dict[str, object] = {
        "attention.kv_lora_rank": rank, "rope.dimension_count": turning,
        "attention.head_count_kv": HEADS if merged else 1,
        "attention.key_length": plain + turning if merged else rank + turning,
        "attention.value_length": VALUE if merged else rank,
    }  # fmt: skip
    if not merged:
        found |= {"attention.key_length_mla": plain + turning, "attention.value_length_mla": VALUE}
    return found if direct else found | {"attention.q_lora_rank": QUERIES}
