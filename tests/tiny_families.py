"""Tiny random models of every family: each has what its family brings, and layers of each of its kinds."""

from __future__ import annotations

from tiny_gemma import gemma3n, gemma4, gemma4_with_experts
from tiny_latent import deepseek2
from tiny_parts import (
    BEFORE,
    BEHIND,
    DIM,
    EXPERTS,
    NET,
    OTHER_NAME,
    QKV,
    SHORT_CONV,
    SSM,
    VOCAB,
    WINDOW,
    YARN,
    TinyFile,
    attention,
    delta_net,
    experts,
    ffn,
    mamba2,
    norms,
    whole,
)


def families() -> dict[str, TinyFile]:
    """Name of a case -> its file; one at least of each architecture."""
    att, two = attention(), 2
    dense = BEFORE | att | ffn()
    gemma = norms("attn_norm", "ffn_norm") | BEHIND | ffn()
    head = attention(qk_norm="head")
    multipliers = {"embedding_scale": 3.0, "residual_scale": 0.4, "logit_scale": 2.0, "attention.scale": 0.35}
    late = {"leading_dense_block_count": 1, "expert_weights_scale": 1.8, "expert_weights_norm": True}
    hybrid_kv = {"attention.head_count_kv": [0, 2, 0]}
    found: dict[str, TinyFile] = {
        "llama": whole("llama", [dense] * two),
        "mixtral": whole("llama", [BEFORE | att | experts(48)] * two, tied=False, expert_count=6, expert_used_count=2),
        "mistral3": whole(
            "mistral3", [dense] * two, attention__temperature_scale=0.3, rope__scaling__yarn_beta_fast=2.0,
            rope__scaling__yarn_beta_slow=0.5, rope__scaling__yarn_log_multiplier=0.7, **YARN,
        ),
        "smollm3": whole("smollm3", [dense] * 5),
        "granite": whole("granite", [dense] * two, **multipliers),
        "granite, no rope": whole("granite", [dense], rope__scaling__finetuned=False, **multipliers),
        "granitemoe": whole(
            "granitemoe", [BEFORE | att | experts(shared=24)] * two, expert_shared_feed_forward_length=24,
            **multipliers, **EXPERTS,
        ),
        "minicpm": whole("minicpm", [dense] * two, embedding_scale=4.0, residual_scale=0.5, logit_scale=1.5),
        "minicpm, nothing said": whole("minicpm", [dense] * two),
        "internlm2": whole("internlm2", [dense] * two),
        "seed_oss": whole("seed_oss", [OTHER_NAME | attention(biases=QKV) | ffn()] * two),
        "arcee": whole("arcee", [BEFORE | att | ffn(gated=False)] * two, **YARN),
        "apertus": whole(
            "apertus", [BEFORE | head | ffn(gated=False)] * two, more={"rope_freqs.weight": (8,)},
            extra={f"xielu.{k}": v for k, v in (
                ("alpha_p", [0.9, 0.8]), ("alpha_n", [0.8, 0.9]), ("beta", [0.5, 0.4]), ("eps", [-1e-6, -1e-6])
            )},
        ),
        "qwen2": whole("qwen2", [BEFORE | attention(biases=QKV) | ffn()] * two),
        "qwen3": whole("qwen3", [BEFORE | head | ffn()] * two),
        "qwen2moe": whole(
            "qwen2moe", [BEFORE | attention(biases=QKV) | experts(shared=24, shared_gate=True)] * two,
            expert_shared_feed_forward_length=24, **EXPERTS,
        ),
        "qwen3moe": whole("qwen3moe", [BEFORE | head | experts()] * two, tied=False, **EXPERTS),
        "gemma2": whole("gemma2", [att | gemma] * 3, attention__sliding_window=WINDOW, attn_logit_softcapping=4.0,
                        final_logit_softcapping=5.0),
        "gemma2, 27B": whole("gemma2", [att | gemma] * 46, attention__sliding_window=WINDOW),
        "gemma3": whole("gemma3", [head | gemma] * 7, attention__sliding_window=WINDOW, rope__freq_base=1e6,
                        rope__scaling__type="linear", rope__scaling__factor=8.0),
        "gpt-oss": whole(
            "gpt-oss", [OTHER_NAME | attention(biases=(*QKV, "attn_output"), sinks=True) | experts(biases=True)] * two,
            attention__sliding_window=WINDOW, **EXPERTS, **YARN,
        ),
        "phi3": whole("phi3", [BEFORE | attention(fused=True) | ffn(fused=True)] * two, rope__dimension_count=12,
                      attention__sliding_window=WINDOW),
        "phi3, long": whole(
            "phi3", [BEFORE | attention(fused=True) | ffn(fused=True)] * two, rope__dimension_count=12,
            rope__scaling__original_context_length=64, rope__scaling__attn_factor=1.2, rope__scaling__type="longrope",
            more={"rope_factors_long.weight": (6,), "rope_factors_short.weight": (6,)},
        ),
        "phi2": whole(
            "phi2", [norms("attn_norm", bias=True) | attention(fused=True, biases=("attn_qkv", "attn_output"))
                     | ffn(gated=False, biases=True)] * two,
            bias=True, tied=False, more={"output.bias": (VOCAB,)}, rope__dimension_count=8,
        ),
        "olmo2": whole("olmo2", [BEHIND | attention(qk_norm="row") | ffn()] * two),
        "olmo3": whole("olmo2", [BEHIND | attention(qk_norm="row") | ffn()] * 4, attention__sliding_window=WINDOW,
                       attention__sliding_window_pattern=[True, True, False, True], **YARN),
        "olmoe": whole("olmoe", [BEFORE | attention(qk_norm="row") | experts()] * two, **EXPERTS),
        "exaone4": whole("exaone4", [BEHIND | head | ffn()] * two),
        "exaone4, 32B": whole("exaone4", [BEHIND | head | ffn()] * 64, attention__sliding_window=WINDOW),
        "glm4": whole("glm4", [BEFORE | BEHIND | attention(biases=QKV) | ffn(fused=True)] * two,
                      rope__dimension_count=8),
        "glm4moe": whole(
            "glm4moe", [OTHER_NAME | attention(qk_norm="head", biases=QKV) | ffn(),
                        *[OTHER_NAME | attention(qk_norm="head", biases=QKV) | experts(biased=True, shared=16)] * 2],
            nextn_predict_layers=1, expert_shared_count=1, rope__dimension_count=8, **EXPERTS, **late,
        ),
        "ernie4_5": whole("ernie4_5", [dense] * two),
        "ernie4_5-moe": whole(
            "ernie4_5-moe", [dense, dense, BEFORE | att | experts(biased=True, shared=32), dense,
                             BEFORE | att | experts(biased=True, shared=32)][1:],
            interleave_moe_layer_step=2, leading_dense_block_count=1, expert_shared_count=2, **EXPERTS,
        ),
        "hunyuan-dense": whole("hunyuan-dense", [BEFORE | head | ffn()] * two),
        "hunyuan-moe": whole("hunyuan-moe", [BEFORE | head | experts(shared=16)] * two, expert_shared_count=1,
                             **EXPERTS),
        "dots1": whole("dots1", [BEFORE | head | ffn(), BEFORE | head | experts(biased=True, shared=32)],
                       expert_gating_func=2, expert_shared_count=2, **EXPERTS, **late),
        "bailingmoe2": whole(
            "bailingmoe2", [BEFORE | attention(qk_norm="head", fused=True) | ffn(),
                            BEFORE | attention(qk_norm="head", fused=True) | experts(n=12, biased=True, shared=24)],
            expert_gating_func=2, expert_group_count=4, expert_group_used_count=2, expert_shared_count=1,
            expert_shared_feed_forward_length=24, rope__dimension_count=8, **(EXPERTS | {"expert_count": 12}), **late,
        ),
        "minimax-m2": whole("minimax-m2", [BEFORE | attention(qk_norm="row") | experts(biased=True)] * two,
                            expert_gating_func=2, rope__dimension_count=8, **EXPERTS),
        "qwen35": whole("qwen35", [OTHER_NAME | delta_net() | ffn(),
                                   OTHER_NAME | attention(qk_norm="head", gate=True) | ffn()] * 2, **NET),
        "qwen35moe": whole(
            "qwen35moe", [OTHER_NAME | delta_net() | experts(shared=24, shared_gate=True), OTHER_NAME
                          | attention(qk_norm="head", gate=True) | experts(shared=24, shared_gate=True)],
            expert_shared_feed_forward_length=24, **NET, **EXPERTS,
        ),
        "qwen3next": whole(
            "qwen3next", [OTHER_NAME | delta_net(merged=True) | experts(shared=24, shared_gate=True), OTHER_NAME
                          | attention(qk_norm="head", gate=True) | experts(shared=24, shared_gate=True)],
            expert_shared_feed_forward_length=24, **NET, **EXPERTS,
        ),
        "lfm2": whole("lfm2", [BEFORE | SHORT_CONV | ffn(), BEFORE | head | ffn(), BEFORE | SHORT_CONV | ffn()],
                      output_norm="token_embd_norm", shortconv__l_cache=3, **hybrid_kv),
        "lfm2moe": whole(
            "lfm2moe", [BEFORE | SHORT_CONV | ffn(), BEFORE | head | experts(biased=True),
                        BEFORE | SHORT_CONV | experts(biased=True)],
            output_norm="token_embd_norm", shortconv__l_cache=3, expert_gating_func=2, leading_dense_block_count=1,
            **hybrid_kv, **EXPERTS,
        ),
        "granitehybrid": whole("granitehybrid", [BEFORE | mamba2() | ffn(), dense, BEFORE | mamba2() | ffn()],
                               rope__scaling__finetuned=False, **hybrid_kv, **SSM, **multipliers),
        "granitehybrid, experts": whole(
            "granitehybrid", [BEFORE | mamba2() | experts(shared=24), BEFORE | att | experts(shared=24)],
            expert_shared_feed_forward_length=24, attention__head_count_kv=[0, 2], **SSM, **multipliers, **EXPERTS,
        ),
        "falcon-h1": whole(
            "falcon-h1", [norms("attn_norm") | {"ffn_norm": (DIM,)} | att | mamba2() | ffn()] * two, **SSM
        ),
        "nemotron_h": whole(
            "nemotron_h", [norms("attn_norm") | kind for kind in (mamba2(), ffn(gated=False), att, ffn(gated=False))],
            **{"attention.head_count_kv": [0, 0, 2, 0], "feed_forward_length": [0, 48, 0, 48]}, **SSM,
        ),
        "nemotron_h_moe": whole(
            "nemotron_h_moe", [norms("attn_norm") | kind for kind in (
                mamba2(), experts(gated=False, biased=True, shared=48), att)],
            expert_shared_feed_forward_length=48, expert_weights_scale=1.7, expert_weights_norm=True,
            **{"attention.head_count_kv": [0, 0, 2], "feed_forward_length": [0, 48, 0]}, **SSM, **EXPERTS,
        ),
        "mamba2": whole("mamba2", [norms("attn_norm") | mamba2()] * two, **SSM),
        "command-r": whole("command-r", [norms("attn_norm") | att | ffn()] * two, logit_scale=0.3),
        "command-r+": whole("command-r", [norms("attn_norm") | attention(qk_norm="each") | ffn()] * two,
                            logit_scale=0.8),
        "cohere2": whole("cohere2", [norms("attn_norm") | att | ffn()] * 5, logit_scale=0.3,
                         attention__sliding_window=WINDOW),
        "stablelm": whole("stablelm", [norms("attn_norm", "ffn_norm", bias=True) | attention(biases=QKV) | ffn()] * two,
                          bias=True, rope__dimension_count=4),
        "stablelm, parallel": whole(
            "stablelm", [norms("attn_norm", bias=True) | attention(qk_norm="each") | ffn()] * two, bias=True,
            rope__dimension_count=4, use_parallel_residual=True,
        ),
        "starcoder2": whole(
            "starcoder2", [norms("attn_norm", "ffn_norm", bias=True) | attention(biases=(*QKV, "attn_output"))
                           | ffn(gated=False, biases=True)] * two, bias=True,
        ),
        "llama4": whole(
            "llama4", [dense, BEFORE | att | experts(shared=16)] * 2 + [dense], interleave_moe_layer_step=2,
            more={"rope_freqs.weight": (8,)}, **EXPERTS,
        ),
        "llama4, 128 experts": whole(
            "llama4", [BEFORE | att | experts(n=128, shared=16)] * two, interleave_moe_layer_step=1, tied=False,
            **(EXPERTS | {"expert_count": 128, "expert_used_count": 1}),
        ),
        **deepseek2(), "gemma4": gemma4(), "gemma4, experts": gemma4_with_experts(), "gemma3n": gemma3n(),
    }  # fmt: skip
    return found
