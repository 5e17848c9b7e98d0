"""Tiny random models of every family, written byte by byte without the code under test.

Each has what its family brings, and layers of each of its kinds; sizes are odd where a family allows it. A tensor's
numbers depend on its name and shape alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from zlib import crc32

import numpy as np
from gguf import GGMLQuantizationType
from gguf.quants import quantize
from gguf_tools import Packed, spm_vocabulary, write_gguf

Shapes = dict[str, tuple[int, ...]]
VOCABULARY = spm_vocabulary()
DIM, VOCAB, WINDOW = 32, len(VOCABULARY["tokenizer.ggml.tokens"]), 24  # type: ignore[arg-type]
QKV = ("attn_q", "attn_k", "attn_v")
EXPERTS = {"expert_count": 6, "expert_used_count": 2, "expert_feed_forward_length": 16}
YARN = {
    "rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 64,
}  # fmt: skip


@dataclass(frozen=True)
class TinyFile:
    """keys: below the architecture, with what all have left out; extra: keys as they are."""

    arch: str
    shapes: Shapes
    keys: Mapping[str, object]
    extra: Mapping[str, object] = field(default_factory=dict)

    def metadata(self) -> dict[str, object]:
        eps = 1e-5
        all_have: dict[str, object] = {
            "context_length": 4096, "embedding_length": DIM, "attention.head_count": 4, "attention.head_count_kv": 2,
            "attention.key_length": 16, "attention.value_length": 16, "attention.layer_norm_epsilon": eps,
            "attention.layer_norm_rms_epsilon": eps, "feed_forward_length": 48,
        }  # fmt: skip
        keys = {f"{self.arch}.{k}": v for k, v in (all_have | dict(self.keys)).items()}
        found = {"general.architecture": self.arch, **keys, **self.extra}
        arrays = {key: _array(value) if isinstance(value, list) else value for key, value in found.items()}
        return arrays | VOCABULARY

    def tensors(self, kind: str = "F32") -> dict[str, np.ndarray | Packed]:
        """kind: what matrices are stored as, where their rows are long enough."""
        return {name: _random(name, shape, kind) for name, shape in self.shapes.items()}

    def write(self, path: Path, kind: str = "F32") -> Path:
        """The file; returns path."""
        return write_gguf(path, self.metadata(), self.tensors(kind))


def _array(values: list[object]) -> np.ndarray:
    """As files have them: flags, whole numbers of 32 bits, float32."""
    found = np.asarray(values)
    return found.astype({"b": np.bool_, "i": np.int32, "f": np.float32}[found.dtype.kind])


def _random(name: str, shape: tuple[int, ...], kind: str) -> np.ndarray | Packed:
    x = np.random.default_rng(crc32(name.encode())).standard_normal(shape).astype(np.float32)
    if name.endswith("ssm_a"):
        return -np.exp(x / 2)
    if "rope_f" in name:
        return np.exp(np.abs(x)).astype(np.float32)
    if name.endswith((".bias", "sinks.weight", "ssm_d")):
        return x / 2
    if "norm" in name or name.endswith((".scale", "output_scale.weight", "correct_scale.weight")):
        return 1 + x / 4
    if len(shape) == 1:
        return x / 4
    gain = 2 if "attn_q" in name or "attn_k" in name or "ffn_gate_inp" in name else 1
    matrix = gain * x / np.sqrt(np.float32(shape[-1]))
    ggml_type = GGMLQuantizationType[kind]
    if ggml_type == GGMLQuantizationType.F32 or shape[-1] % 32 or "conv" in name:
        return matrix
    return Packed(shape[::-1], ggml_type, quantize(matrix, ggml_type).tobytes())


# What layers are made of: each gives the tensors of one layer, without "blk.N." in front.


def attention(
    *, heads: int = 4, kv: int = 2, size: int = 16, qk_norm: str = "", biases: tuple[str, ...] = (),
    fused: bool = False, gate: bool = False, sinks: bool = False, no_v: bool = False, shared: bool = False,
) -> Shapes:  # fmt: skip
    q, k = heads * size, kv * size
    found: Shapes = {"attn_output.weight": (DIM, q)}
    if fused:
        found["attn_qkv.weight"] = (q + 2 * k, DIM)
    else:
        found["attn_q.weight"] = (q * (2 if gate else 1), DIM)
        if not shared:
            found |= {"attn_k.weight": (k, DIM)} | ({} if no_v else {"attn_v.weight": (k, DIM)})
    shapes = {"head": ((size,), (size,)), "each": ((heads, size), (kv, size)), "row": ((q,), (k,))}
    if qk_norm:
        found["attn_q_norm.weight"] = shapes[qk_norm][0]
        if not shared:
            found["attn_k_norm.weight"] = shapes[qk_norm][1]
    if sinks:
        found["attn_sinks.weight"] = (heads,)
    return found | {f"{name}.bias": found[f"{name}.weight"][:1] for name in biases}


def ffn(width: int = 48, *, gated: bool = True, fused: bool = False, biases: bool = False, end: str = "") -> Shapes:
    found: Shapes = {f"ffn_up{end}.weight": (width * (2 if fused else 1), DIM), f"ffn_down{end}.weight": (DIM, width)}
    if gated and not fused:
        found[f"ffn_gate{end}.weight"] = (width, DIM)
    return found | ({name[:-6] + "bias": shape[:1] for name, shape in found.items()} if biases else {})


def experts(
    width: int = 16, *, n: int = 6, gated: bool = True, biased: bool = False, shared: int = 0,
    shared_gate: bool = False, biases: bool = False, fused: bool = False,
) -> Shapes:  # fmt: skip
    found: Shapes = {"ffn_gate_inp.weight": (n, DIM), "ffn_down_exps.weight": (n, DIM, width)}
    if fused:
        found["ffn_gate_up_exps.weight"] = (n, 2 * width, DIM)
    else:
        found["ffn_up_exps.weight"] = (n, width, DIM)
        found |= {"ffn_gate_exps.weight": (n, width, DIM)} if gated else {}
    if biases:
        found |= {name[:-6] + "bias": shape[:-1] for name, shape in found.items()}
    if biased:
        found["exp_probs_b.bias"] = (n,)
    if shared:
        found |= ffn(shared, gated=gated, end="_shexp")
    return found | ({"ffn_gate_inp_shexp.weight": (DIM,)} if shared_gate else {})


def norms(*names: str, bias: bool = False) -> Shapes:
    found: Shapes = {f"{name}.weight": (DIM,) for name in names}
    return found | ({f"{name}.bias": (DIM,) for name in names} if bias else {})


def mamba2(heads: int = 6, inner: int = 48, groups: int = 2, size: int = 16) -> Shapes:
    channels = inner + 2 * groups * size
    return {
        "ssm_in.weight": (inner + channels + heads, DIM), "ssm_conv1d.weight": (channels, 4),
        "ssm_conv1d.bias": (channels,), "ssm_dt.bias": (heads,), "ssm_a": (heads, 1), "ssm_d": (heads, 1),
        "ssm_norm.weight": (groups, inner // groups), "ssm_out.weight": (DIM, inner),
    }  # fmt: skip


SSM = {
    "ssm.conv_kernel": 4, "ssm.inner_size": 48, "ssm.state_size": 16, "ssm.time_step_rank": 6, "ssm.group_count": 2
}  # fmt: skip


def delta_net(*, merged: bool = False, heads: int = 4, keys: int = 2, size: int = 16) -> Shapes:
    channels = (heads + 2 * keys) * size
    rest: Shapes = {"ssm_ba.weight": (2 * heads, DIM)} if merged else {
        "ssm_alpha.weight": (heads, DIM), "ssm_beta.weight": (heads, DIM)
    }  # fmt: skip
    return rest | {
        "attn_qkv.weight": (channels, DIM), "attn_gate.weight": (heads * size, DIM), "ssm_conv1d.weight": (channels, 4),
        "ssm_dt.bias": (heads,), "ssm_a": (heads,), "ssm_norm.weight": (size,), "ssm_out.weight": (DIM, heads * size),
    }  # fmt: skip


NET = {
    "ssm.conv_kernel": 4, "ssm.inner_size": 64, "ssm.state_size": 16, "ssm.time_step_rank": 4, "ssm.group_count": 2,
    "full_attention_interval": 2, "rope.dimension_count": 8,
}  # fmt: skip
SHORT_CONV: Shapes = {
    "shortconv.conv.weight": (DIM, 3), "shortconv.in_proj.weight": (3 * DIM, DIM),
    "shortconv.out_proj.weight": (DIM, DIM),
}  # fmt: skip
BEFORE = norms("attn_norm", "ffn_norm")
OTHER_NAME = norms("attn_norm", "post_attention_norm")
BEHIND = norms("post_attention_norm", "post_ffw_norm")


def whole(
    arch: str, layers: list[Shapes], *, tied: bool = True, extra: Mapping[str, object] | None = None,
    more: Shapes | None = None, bias: bool = False, output_norm: str = "output_norm", **keys: object,
) -> TinyFile:  # fmt: skip
    """keys: two underscores stand for a dot."""
    shapes: Shapes = {"token_embd.weight": (VOCAB, DIM)} | norms(output_norm, bias=bias)
    if not tied:
        shapes["output.weight"] = (VOCAB, DIM)
    for i, layer in enumerate(layers):
        shapes |= {f"blk.{i}.{name}": shape for name, shape in layer.items()}
    named = {key.replace("__", "."): value for key, value in keys.items()}
    return TinyFile(arch, shapes | (more or {}), {"block_count": len(layers)} | named, extra or {})


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
        "gemma4": gemma4(), "gemma4, experts": gemma4_with_experts(), "gemma3n": gemma3n(),
    }  # fmt: skip
    return found


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
